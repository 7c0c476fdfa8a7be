package inventory

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
	"sluice/filter/policy/kuberoute"
)

// The labels of the pods that receive requests for routes: gatewayNameLabel is from the Gateway API
// (GEP-1762), the labels of Envoy also have the Gateway's namespace because Envoy Gateway runs its pods
// in its own namespace, and OpenShift's routers have routerLabel.
const (
	gatewayNameLabel    = "gateway.networking.k8s.io/gateway-name"
	envoyNameLabel      = "gateway.envoyproxy.io/owning-gateway-name"
	routerLabel         = "ingresscontroller.operator.openshift.io/deployment-ingresscontroller"
	envoyNamespaceLabel = "gateway.envoyproxy.io/owning-gateway-namespace"
)

// The labels that charts give to all objects of a release (Kubernetes' recommended labels).
const (
	nameLabel      = "app.kubernetes.io/name"
	instanceLabel  = "app.kubernetes.io/instance"
	componentLabel = "app.kubernetes.io/component"
)

// usualLabels returns the labels that the pods of a well-known controller usually have; nil for other
// controllers. If the name of the controller is not known, it goes by the usual name of the class.
func usualLabels(controller, class string) labels.Set {
	switch cmp.Or(controller, class) {
	case "k8s.io/ingress-nginx", "nginx":
		return labels.Set{nameLabel: "ingress-nginx", componentLabel: "controller"}
	case "nginx.org/ingress-controller":
		return labels.Set{nameLabel: "nginx-ingress"}
	case "traefik.io/ingress-controller", "traefik.io/gateway-controller", "traefik":
		return labels.Set{nameLabel: "traefik"}
	case "haproxy-ingress.github.io/controller", "haproxy":
		return labels.Set{nameLabel: "haproxy-ingress"}
	case "haproxy.org/ingress-controller/haproxy", "haproxy.org/ingress-controller":
		return labels.Set{nameLabel: "kubernetes-ingress"}
	case "ingress-controllers.konghq.com/kong", "konghq.com/kic-gateway-controller", "kong":
		return labels.Set{nameLabel: "kong"}
	case "projectcontour.io/ingress-controller", "projectcontour.io/gateway-controller", "contour":
		return labels.Set{nameLabel: "contour", componentLabel: "envoy"}
	}
	return nil
}

// once returns the senders stored for a key. On the first call with the key, it calls find and stores
// the result.
func (v *Inventory) once(key string, find func() Senders) Senders {
	if v.sendersBy == nil {
		v.sendersBy = make(map[string]Senders)
	}
	s, known := v.sendersBy[key]
	if !known {
		s = find()
		v.sendersBy[key] = s
	}
	return s
}

// senders finds the sources of the packets to the backends of a route. It uses the strongest
// evidence that it finds: the labels of the pods of a Gateway, then the Service whose address is in
// the status, then the labels of the class, then the usual labels of its controller.
func (v *Inventory) senders(r *kuberoute.Route) Senders {
	if r.Ref.Kind == "Ingress" {
		class := v.classOf("IngressClass", r.Class)
		if s := v.behindAddress(r.Addrs, r.Names, r.Ref); s.Known() {
			return s
		}
		return v.once("Ingress "+r.Class, func() Senders { return v.controllers(class, r.Class) })
	}
	if r.Ref.Kind == "Route" {
		return v.once("Route", v.routers)
	}
	if len(r.Gateways) == 0 {
		return Senders{How: r.Ref.Object() + " names no Gateway"}
	}
	var all Senders
	for _, parent := range r.Gateways {
		s := v.once(parent.Gateway.Object(), func() Senders { return v.gatewaySenders(parent.Gateway) })
		all.How = cmp.Or(all.How, s.How)
		if s.Known() && !all.Known() {
			all.How = s.How
		}
		all.Ends = append(all.Ends, s.Ends...)
	}
	return all
}

// routers returns the pods of OpenShift's routers.
func (v *Inventory) routers() Senders {
	of := func(p *policy.Pod) bool { return p.Labels[routerLabel] != "" }
	if s := v.labeled(nil, of, "they have the label of OpenShift's ingress controllers"); s.Known() {
		return s
	}
	return Senders{How: "there is no pod with the label " + routerLabel}
}

func (v *Inventory) gatewaySenders(ref policy.Ref) Senders {
	for _, set := range []labels.Set{{gatewayNameLabel: ref.Name}, {envoyNameLabel: ref.Name, envoyNamespaceLabel: ref.Namespace}} {
		of := func(p *policy.Pod) bool { return set[envoyNameLabel] != "" || p.Namespace == ref.Namespace }
		if s := v.labeled(set, of, "they have the labels of "+ref.Object()); s.Known() {
			return s
		}
	}
	g := v.gateway(ref)
	if g == nil {
		return Senders{How: "there is no " + ref.Object() + ", nor a pod with its labels"}
	}
	if s := v.behindAddress(g.Addrs, g.Names, ref); s.Known() {
		return s
	}
	return v.controllers(v.classOf("GatewayClass", g.Class), g.Class)
}

// classOf returns a class by its name, or the default class if the name is empty; nil if there is none.
func (v *Inventory) classOf(kind, name string) *kuberoute.Class {
	i := slices.IndexFunc(v.Routing.Classes, func(c *kuberoute.Class) bool {
		return c.Ref.Kind == kind && (c.Ref.Name == name || name == "" && c.Default)
	})
	if i < 0 {
		return nil
	}
	return v.Routing.Classes[i]
}

// behindAddress returns the endpoints of the first Service that has one of these addresses or host
// names, which are from the status of the route or Gateway that the parameter of names.
func (v *Inventory) behindAddress(addrs []netip.Addr, names []string, of policy.Ref) Senders {
	if len(addrs)+len(names) == 0 {
		return Senders{}
	}
	for _, o := range v.Services {
		s := v.services[o.Namespace+"/"+o.Name]
		same := slices.ContainsFunc(slices.Concat(outerAddrs(o), s.addrs), func(a netip.Addr) bool { return slices.Contains(addrs, a) }) ||
			slices.ContainsFunc(o.Status.LoadBalancer.Ingress, func(i corev1.LoadBalancerIngress) bool {
				return i.Hostname != "" && slices.Contains(names, strings.ToLower(i.Hostname))
			})
		if same {
			found := v.once("Service "+s.text(), func() Senders { return v.asSenders(v.podsBehind(s), "") })
			found.How = fmt.Sprintf("they are behind Service %s, whose address is in the status of %s", s.text(), of.Object())
			return found
		}
	}
	return Senders{}
}

// podsBehind returns the pods that are endpoints of any port of a Service.
func (v *Inventory) podsBehind(s *service) (pods []*policy.Pod) {
	for _, e := range v.backends(s) {
		for _, p := range e.Pods {
			if !slices.Contains(pods, p) {
				pods = append(pods, p)
			}
		}
	}
	for _, p := range v.podsOfNamespace(s.Namespace) { // an End of the host network has no Pods
		if p.HostNetwork && len(s.Spec.Selector) > 0 && labels.SelectorFromSet(s.Spec.Selector).Matches(p.Labels) {
			pods = append(pods, p)
		}
	}
	sortPods(pods)
	return pods
}

// controllers returns the pods of the controller of a class. class is nil if no class of this name
// is known.
func (v *Inventory) controllers(class *kuberoute.Class, name string) Senders {
	controller := ""
	if class != nil {
		controller = class.Controller
		set := labels.Set{}
		for _, key := range []string{nameLabel, instanceLabel} {
			if value := class.Labels[key]; value != "" {
				set[key] = value
			}
		}
		if set[nameLabel] != "" {
			if s := v.labeled(set, v.serving, "they have the labels of "+class.Ref.Object()); s.Known() {
				return s
			}
		}
	}
	set := usualLabels(controller, name)
	if set == nil {
		switch {
		case class != nil:
			return Senders{How: fmt.Sprintf("it is not known which pods are %s, the controller of %s", class.Controller, class.Ref.Object())}
		case name == "":
			return Senders{How: "it names no class, and there is no default one"}
		}
		return Senders{How: "there is no class " + name}
	}
	text := labels.FormatLabels(set)
	if s := v.labeled(set, v.serving, fmt.Sprintf("they have %s, the usual labels of the controller of class %s", text, cmp.Or(name, class.Text()))); s.Known() {
		return s
	}
	return Senders{How: "there is no pod with " + text + ", the usual labels of the controller of class " + cmp.Or(name, class.Text())}
}

func (v *Inventory) labeled(set labels.Set, also func(*policy.Pod) bool, how string) Senders {
	var pods []*policy.Pod
	for _, p := range v.AllPods() {
		if alive(p) && set.AsSelector().Matches(p.Labels) && also(p) {
			pods = append(pods, p)
		}
	}
	return v.asSenders(pods, how)
}

// serving reports whether a pod of a controller's chart may be the one that sends requests to
// backends: it belongs to no Job, and the chart does not label it as another component.
func (v *Inventory) serving(p *policy.Pod) bool {
	switch v.workloadOf[p].Kind {
	case "Job", "CronJob":
		return false
	}
	component := p.Labels[componentLabel]
	return component == "" || component == "controller" || component == "envoy" || component == "proxy" || component == "app"
}

func (v *Inventory) asSenders(pods []*policy.Pod, how string) Senders {
	if len(pods) == 0 {
		return Senders{How: how}
	}
	ends, err := v.group(pods, false)
	if err != nil {
		return Senders{How: err.Error()}
	}
	return Senders{ends, how}
}
