package inventory

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/near"
)

// World is the name of all addresses outside the cluster.
const World = "world"

// kinds maps the words for a kind, as kubectl takes them, to the kind.
var kinds = map[string]string{
	"po": "Pod", "pod": "Pod", "pods": "Pod",
	"deploy": "Deployment", "deployment": "Deployment", "deployments": "Deployment",
	"sts": "StatefulSet", "statefulset": "StatefulSet", "statefulsets": "StatefulSet",
	"ds": "DaemonSet", "daemonset": "DaemonSet", "daemonsets": "DaemonSet",
	"rs": "ReplicaSet", "replicaset": "ReplicaSet", "replicasets": "ReplicaSet",
	"rc": "ReplicationController", "replicationcontroller": "ReplicationController", "replicationcontrollers": "ReplicationController",
	"job": "Job", "jobs": "Job",
	"cj": "CronJob", "cronjob": "CronJob", "cronjobs": "CronJob",
	"svc": "Service", "service": "Service", "services": "Service",
	"no": "Node", "node": "Node", "nodes": "Node",
	"ns": "Namespace", "namespace": "Namespace", "namespaces": "Namespace",
	"ing": "Ingress", "ingress": "Ingress", "ingresses": "Ingress",
	"gtw": "Gateway", "gateway": "Gateway", "gateways": "Gateway",
	"route": "Route", "routes": "Route",
	"httproute": "HTTPRoute", "httproutes": "HTTPRoute", "grpcroute": "GRPCRoute", "grpcroutes": "GRPCRoute",
	"tlsroute": "TLSRoute", "tlsroutes": "TLSRoute", "tcproute": "TCPRoute", "tcproutes": "TCPRoute", "udproute": "UDPRoute", "udproutes": "UDPRoute",
}

// target is the result of a lookup by name: ends, a Service, or exposures.
type target struct {
	ends    []*End
	service *service
	addr    netip.Addr // the address of the Service, if the user named it by its address
	// exposures are those of the route or Gateway, or those that take the requests for the URL.
	exposures []*Exposure
	port      string // the port after the colon in the name; empty if it has none
}

// find looks up a name; see [Question] for its forms. A name without a namespace is looked up in
// the given one. The ends are destinations if to is true, and sources otherwise.
func (v *Inventory) find(text, namespace string, to bool) (target, error) {
	switch text {
	case "":
		return target{}, errors.New("it is missing: write namespace/name of a pod or a workload, or an IP address")
	case World:
		if ends := v.world(); len(ends) > 0 {
			return target{ends: ends}, nil
		}
		return target{}, errors.New("no address is outside the cluster: the ranges of the pods contain all")
	}
	if t, is, err := v.atURL(text); is {
		return t, err
	}
	if isSelector(text) {
		return v.selected(text, namespace, to)
	}
	if addr, err := netip.ParseAddr(text); err == nil {
		return v.atAddress(addr.Unmap().WithZone("")), nil
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return v.inRange(p, to)
	}
	if addr, port, is := addressAndPort(text); is {
		t := v.atAddress(addr)
		t.port = port
		return t, nil
	}
	name, port, _ := strings.Cut(text, ":")
	t, err := v.named(name, namespace, to)
	if meant := worldLike(text); err != nil && meant != nil {
		return target{}, meant
	}
	if err != nil && addressLike(text) {
		return target{}, fmt.Errorf("%s is neither an IP address nor a range: write them as in 10.0.0.1, fd00::1 or 10.0.0.0/8", text)
	}
	t.port = port
	return t, err
}

// worldLike returns an error if a text was probably meant as World. Objects may have the same name, so
// look up the text as a name first.
func worldLike(text string) error {
	name, port, has := strings.Cut(text, ":")
	switch {
	case name == World && has:
		return fmt.Errorf("%s has no ports of its own: write %s, and the port %s as the port of the flow", World, World, port)
	case strings.EqualFold(text, World) || strings.EqualFold(text, "internet"):
		return fmt.Errorf("there is no end %s: write %s for every address outside the cluster", text, World)
	}
	return nil
}

// addressAndPort splits an address and its port, as in "10.0.0.1:53/udp" or "[fd00::1]:53". The port
// may be any text.
func addressAndPort(text string) (addr netip.Addr, port string, is bool) {
	host, port, is := strings.Cut(text, ":")
	if inner, bracketed := strings.CutPrefix(text, "["); bracketed {
		host, port, is = strings.Cut(inner, "]:")
	}
	addr, err := netip.ParseAddr(host)
	return addr.Unmap().WithZone(""), port, is && err == nil && port != ""
}

// addressLike reports whether a text that cannot be parsed was probably meant as an address or a
// range. Names may have the same form, so look up the text as a name first.
func addressLike(text string) bool {
	const digits, hex = "0123456789./", "0123456789abcdefABCDEF:./"
	return strings.Count(text, ".") >= 3 && strings.Trim(text, digits) == "" || strings.Count(text, ":") >= 2 && strings.Trim(text, hex) == ""
}

// named finds an object by its name, by "kind/name", "namespace/name" or "namespace/kind/name", or
// by the DNS name of a Service.
func (v *Inventory) named(text, namespace string, to bool) (target, error) {
	parts := strings.Split(text, "/")
	if slices.Contains(parts, "") || len(parts) > 3 {
		return target{}, fmt.Errorf("%q is neither a name nor an address: write namespace/name of a pod or a workload, kind/name as kubectl does, or an IP address", text)
	}
	kind := ""
	switch len(parts) {
	case 3: // namespace/kind/name
		namespace, kind = parts[0], KindOf(parts[1])
		if kind == "" {
			return target{}, fmt.Errorf("%q is not a kind: write one of pod, deploy, sts, ds, rs, rc, job, cronjob, svc, ingress, httproute", parts[1])
		}
	case 2:
		if kind = KindOf(parts[0]); kind == "" || v.hasNamespace(parts[0]) && v.has(parts[0], parts[1]) {
			namespace, kind = parts[0], ""
		}
	}
	name := parts[len(parts)-1]
	switch kind {
	case "":
		return v.anyKind(namespace, name, to)
	case "Node":
		return v.node(name)
	case "Namespace":
		return v.inNamespace(name, to)
	case "Service":
		if host, rest, dotted := strings.Cut(name, "."); dotted { // svc/db.shop
			name = host
			namespace, _, _ = strings.Cut(rest, ".")
		}
		return v.serviceNamed(namespace, name)
	case "Pod":
		if p := v.pods[namespace+"/"+name]; p != nil && !v.ofTemplate(p) {
			return v.ends([]*policy.Pod{p}, to)
		}
		return target{}, v.notOfKind(kind, namespace, name)
	}
	if isRoute(kind) {
		return v.routeNamed(kind, namespace, name)
	}
	if pods := v.madeBy(policy.Ref{Kind: kind, Namespace: namespace, Name: name}); len(pods) > 0 {
		return v.ends(pods, to)
	}
	return target{}, v.notOfKind(kind, namespace, name)
}

// KindOf returns the kind that a word stands for, as in "deploy" or "deployments.apps"; empty if it
// stands for none.
func KindOf(word string) string {
	word, _, _ = strings.Cut(word, ".")
	return kinds[strings.ToLower(word)]
}

// replicaSetOf returns the ReplicaSet of a pod of a Deployment: its name is that of the Deployment with
// the hash of the pod's template behind.
func replicaSetOf(p *policy.Pod) policy.Ref {
	if hash := p.Labels["pod-template-hash"]; p.Owner.Kind == "Deployment" && hash != "" {
		return policy.Ref{Kind: "ReplicaSet", Namespace: p.Namespace, Name: p.Owner.Name + "-" + hash}
	}
	return policy.Ref{}
}

// madeBy returns the pods of a workload. A workload that another one has made, such as the ReplicaSet of
// a Deployment, has the pods that it owns; if there are none, those of the other one.
func (v *Inventory) madeBy(workload policy.Ref) []*policy.Pod {
	if pods := v.workloads[workload]; len(pods) > 0 {
		return pods
	}
	var pods []*policy.Pod
	for _, p := range v.AllPods() {
		if p.Owner == workload || replicaSetOf(p) == workload {
			pods = append(pods, p)
		}
	}
	if i := slices.IndexFunc(v.Workloads, func(w *kubepod.Workload) bool { return w.Ref == workload }); len(pods) == 0 && i >= 0 {
		return v.workloads[v.Workloads[i].Owner]
	}
	return pods
}

// anyKind finds an object by a name without a kind. It tries, in this order: a pod, workloads, pods
// whose names begin with the name and a dash, a Service, a Node, and the DNS name of a Service.
func (v *Inventory) anyKind(namespace, name string, to bool) (target, error) {
	if p := v.pods[namespace+"/"+name]; p != nil && !v.ofTemplate(p) {
		return v.ends([]*policy.Pod{p}, to)
	}
	if pods := v.podsOf(namespace, name); len(pods) > 0 {
		return v.ends(pods, to)
	}
	if s := v.services[namespace+"/"+name]; s != nil {
		return target{service: s}, nil
	}
	if v.Snapshot.Node(name) != nil {
		return v.node(name)
	}
	if s, namespace := v.inDNS(name); s != nil {
		return target{service: s}, nil
	} else if namespace != "" {
		in, name, _ := strings.Cut(namespace, "/")
		return v.serviceNamed(in, name)
	}
	return target{}, v.notFound(namespace, name)
}

// ofTemplate reports whether the inventory has made the pod from the template of a workload.
func (v *Inventory) ofTemplate(p *policy.Pod) bool {
	return !slices.Contains(v.Objects.Pods, p)
}

// podsOf returns the pods of all workloads with this name. If there are none, it returns the pods
// whose names begin with the name and a dash.
func (v *Inventory) podsOf(namespace, name string) (pods []*policy.Pod) {
	for ref, of := range v.workloads {
		if ref.Namespace == namespace && ref.Name == name {
			pods = append(pods, of...)
		}
	}
	if len(pods) == 0 {
		for _, p := range v.pods {
			if p.Namespace == namespace && strings.HasPrefix(p.Name, name+"-") {
				pods = append(pods, p)
			}
		}
	}
	sortPods(pods)
	return pods
}

func sortPods(pods []*policy.Pod) {
	slices.SortFunc(pods, func(a, b *policy.Pod) int { return strings.Compare(a.String(), b.String()) })
}

func (v *Inventory) ends(pods []*policy.Pod, to bool) (target, error) {
	ends, err := v.group(pods, to)
	return target{ends: ends}, err
}

// isSelector reports whether a text is a label selector. It looks for characters that no name has.
func isSelector(text string) bool { return strings.ContainsAny(text, "=!*, ") }

// selected returns the pods that a selector matches: "app=web" in the given namespace,
// "shop/app=web" in another, "*/app=web" in all. The selector * matches all pods.
func (v *Inventory) selected(text, namespace string, to bool) (target, error) {
	selector := text
	if first, rest, cut := strings.Cut(text, "/"); cut && !isSelector(strings.TrimPrefix(first, "*")) {
		namespace, selector = first, rest
	}
	sel := labels.Everything()
	if selector != "*" {
		var err error
		if sel, err = labels.Parse(selector); err != nil {
			if rest, is := strings.CutPrefix(selector, "-l"); is {
				return target{}, fmt.Errorf("%q is not a selector: leave out -l: %s", selector, strings.TrimSpace(rest))
			}
			why, _, _ := strings.Cut(err.Error(), " (e.g.") // examples and regular expressions follow
			return target{}, fmt.Errorf("%q is not a selector: %s: write it as kubectl get -l does, such as app=web", selector, why)
		}
	}
	var pods []*policy.Pod
	for _, p := range v.pods {
		if (namespace == "*" || p.Namespace == namespace) && sel.Matches(p.Labels) {
			pods = append(pods, p)
		}
	}
	if len(pods) == 0 {
		what := text
		if selector == "*" {
			what = "the pods of " + namespaceWords(namespace)
		}
		if err := v.hidden("Pod", namespace, what); err != nil {
			return target{}, err
		}
		if namespace != "*" && !v.hasNamespace(namespace) {
			return target{}, v.noNamespace(namespace)
		}
		return target{}, fmt.Errorf("no pod in %s matches %s: correct the labels", namespaceWords(namespace), selector)
	}
	sortPods(pods)
	return v.ends(pods, to)
}

func namespaceWords(name string) string {
	if name == "*" {
		return "any namespace"
	}
	return "namespace " + name
}

// inNamespace returns all pods of a namespace.
func (v *Inventory) inNamespace(name string, to bool) (target, error) {
	return v.selected("*", name, to)
}

// node returns a Node by its name.
func (v *Inventory) node(name string) (target, error) {
	n := v.Snapshot.Node(name)
	if n == nil {
		if err := v.hidden("Node", "", "Node "+name); err != nil {
			return target{}, err
		}
		var names []string
		for n := range v.Snapshot.Nodes() {
			names = append(names, n.Name)
		}
		slices.Sort(names)
		if len(names) == 0 {
			return target{}, fmt.Errorf("there is no Node %s, nor any other: add Nodes, as from kubectl get nodes -o yaml, or write an IP address", name)
		}
		if best, ok := near.Name(name, names); ok {
			names = []string{best}
		}
		return target{}, fmt.Errorf("there is no Node %s: write %s", name, near.List(names, 5, " or "))
	}
	e := &End{Name: name, Node: true, NodeName: name}
	for _, a := range n.Addrs {
		if !slices.ContainsFunc(e.Addrs, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) {
			e.Addrs = append(e.Addrs, a)
		}
	}
	if len(e.Addrs) == 0 {
		return target{}, fmt.Errorf("the Node %s has no address in its status: write an IP address", name)
	}
	slices.SortFunc(e.Addrs, netip.Addr.Compare)
	e.Endpoint = v.Snapshot.Endpoint(e.Addrs[0])
	return target{ends: []*End{e}}, nil
}
