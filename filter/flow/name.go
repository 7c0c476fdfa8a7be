package flow

import (
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation"

	"sluice/filter/policy/inventory"
)

// Name is a name that a user writes for the source or the destination of flows. Several pods may have the
// same Name.
type Name struct {
	prefix    netip.Prefix    // the address or the range; the zero Prefix for other names
	end       string          // as End.Kind: the kind of the named end; empty for addresses and ranges
	namespace string          // of pods; empty: any
	kind      string          // Pod or the kind of a workload; empty: any
	name      string          // of a pod, a workload or a node; empty: any
	labels    labels.Selector // nil: any
}

// nameForms lists the forms of a Name, for error messages.
const nameForms = "write a pod or a workload, as in web, shop/web or deploy/web, labels, as in app=web, all of a namespace, as in ns/shop, an address or a range, world, host or remote-node"

// ParseName reads the name of a source or destination: "web" or "shop/web" for a pod or a workload,
// "deploy/web" or "shop/deploy/web" for one of a kind, "app=web", "shop/app=web" or "*/app=web" for pods
// with labels, "ns/shop" for all pods of a namespace, "node/n1", an address or a range, world, host or
// remote-node. A name or labels without a namespace are looked for in the given namespace. If namespace is
// empty, they are looked for in all namespaces.
func ParseName(text, namespace string) (Name, error) {
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		return Name{prefix: netip.PrefixFrom(a, a.BitLen())}, nil
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return Name{prefix: p.Masked()}, nil
	}
	switch text {
	case WorldEnd, HostEnd, RemoteNodeEnd:
		return Name{end: text}, nil
	}
	if isSelector(text) {
		return parseLabels(text, namespace)
	}
	if isAddressLike(text) {
		return Name{}, fmt.Errorf("%s is neither an IP address nor a range: write them as in 10.0.0.1, fd00::1 or 10.0.0.0/8", text)
	}
	if before, port, has := strings.Cut(text, ":"); has {
		return Name{}, fmt.Errorf("%q has a port: write %s here, and --port %s", text, before, port)
	}
	return parseObject(text, namespace)
}

// isSelector reports whether a text is a label selector. It looks for characters that no name has.
func isSelector(text string) bool { return strings.ContainsAny(text, "=!*, ") }

// isAddressLike reports whether a text was probably meant as an address or a range.
func isAddressLike(text string) bool {
	const digits, hex = "0123456789./", "0123456789abcdefABCDEF:./"
	return strings.Count(text, ".") >= 3 && strings.Trim(text, digits) == "" || strings.Count(text, ":") >= 2 && strings.Trim(text, hex) == ""
}

// parseLabels reads a label selector, which may have a namespace or * and a slash before it. A key of a
// label may contain a slash, too: then what is before it contains a dot, as no namespace does.
func parseLabels(text, namespace string) (Name, error) {
	selector := text
	if first, rest, cut := strings.Cut(text, "/"); cut && !strings.Contains(first, ".") && !isSelector(strings.TrimPrefix(first, "*")) {
		namespace, selector = first, rest
	}
	if namespace == "*" {
		namespace = ""
	}
	n := Name{end: PodEnd, namespace: namespace}
	if selector == "*" {
		return n, nil
	}
	var err error
	if n.labels, err = labels.Parse(selector); err != nil {
		why, _, _ := strings.Cut(err.Error(), " (e.g.") // examples and regular expressions follow
		return Name{}, fmt.Errorf("%q is not a selector: %s: write it as kubectl get -l does, such as app=web", selector, why)
	}
	return n, nil
}

// parseObject reads the name of a pod, a workload, a node or a namespace.
func parseObject(text, namespace string) (Name, error) {
	parts := strings.Split(text, "/")
	for _, part := range parts {
		if len(validation.IsDNS1123Subdomain(part)) > 0 || len(parts) > 3 {
			return Name{}, fmt.Errorf("%q is not the name of an end: %s", text, nameForms)
		}
	}
	n := Name{end: PodEnd, namespace: namespace, name: parts[len(parts)-1]}
	switch len(parts) {
	case 2:
		if n.kind = inventory.KindOf(parts[0]); n.kind == "" {
			n.namespace = parts[0]
		}
	case 3:
		if n.namespace, n.kind = parts[0], inventory.KindOf(parts[1]); n.kind == "" {
			return Name{}, fmt.Errorf("%q is not a kind: write one of pod, deploy, sts, ds, rs, rc, job, cronjob", parts[1])
		}
	}
	switch n.kind {
	case "", "Pod", "Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob":
		return n, nil
	case "Namespace":
		return Name{end: PodEnd, namespace: n.name}, nil
	case "Node":
		return Name{end: HostEnd, name: n.name}, nil
	case "Service":
		return Name{}, fmt.Errorf("%q: a flow has no name of a Service: write the address of the Service, or its pods", text)
	}
	return Name{}, fmt.Errorf("%q: no end of a flow is of the kind %s: %s", text, n.kind, nameForms)
}

// matches reports whether n is a name of the end e with the address addr.
func (n *Name) matches(e *End, addr netip.Addr) bool {
	switch {
	case n.prefix.IsValid():
		return n.prefix.Contains(addr)
	case e == nil:
		return false
	case n.end == HostEnd && n.name != "":
		return (e.Kind == HostEnd || e.Kind == RemoteNodeEnd) && e.Node == n.name
	case n.end != PodEnd, e.Kind != PodEnd:
		return e.Kind == n.end
	}
	return (n.namespace == "" || e.Namespace == n.namespace) && (n.labels == nil || n.labels.Matches(labels.Set(e.Labels))) &&
		(n.name == "" || n.isNameOf(e))
}

// isNameOf reports whether the name and the kind are those of a pod or its workload. The beginning of a
// pod's name, before a dash, counts as the name of its workload if the record does not have the workload:
// that of a CronJob's Job and that of a Deployment's ReplicaSet never are in records.
func (n *Name) isNameOf(e *End) bool {
	begins := strings.HasPrefix(e.Pod, n.name+"-")
	switch w := e.Workload; {
	case n.kind == "":
		return e.Pod == n.name || w != nil && w.Name == n.name || begins
	case n.kind == "Pod":
		return e.Pod == n.name
	case w == nil, n.kind == "ReplicaSet" && w.Kind == "Deployment", n.kind == "CronJob" && w.Kind == "Job":
		return begins
	default:
		return w.Kind == n.kind && w.Name == n.name
	}
}
