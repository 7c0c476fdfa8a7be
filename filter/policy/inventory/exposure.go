package inventory

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kuberoute"
)

// Exposure is a port of a Service that clients outside the cluster reach: through a route, such
// as an Ingress, through an external address of the Service, or through its port on the nodes.
type Exposure struct {
	By     policy.Ref // the route, or the Service itself
	Field  string     // the field of By that exposes the port
	Hosts  []string   // the host names that requests must have; empty if any matches
	Path   string     // the path that requests must have; empty if any matches
	Means  string     // how the Service is reached, as in "LoadBalancer 203.0.113.7"; empty for a route
	Policy string     // externalTrafficPolicy of the Service, Cluster or Local; empty for a route

	Service string // "namespace/name"
	Port    uint16 // of the Service; 0 if its port is not known
	// Backends are the pods and addresses to which the Service sends the packets, with their ports.
	Backends []Backend
	Senders  Senders
	// Broken is the reason why there are no Backends; empty if there are some.
	Broken string
	// Missing reports that Broken is a mistake in the route, such as a Service that does not exist.
	Missing bool

	protocol filter.Protocol
}

// Backend is an endpoint of a Service, with its port.
type Backend struct {
	*End
	Port uint16
}

// Senders are the sources of the packets that arrive at the pods of an exposure. For a route, these
// are the pods of the Ingress controller or of the Gateway, and not the client. For a Service, they
// are the clients and, with externalTrafficPolicy Cluster, also the nodes.
type Senders struct {
	Ends []*End // empty if they are not known
	How  string // by what evidence the senders are known, or why they are not
}

// Known reports whether the senders are known.
func (s Senders) Known() bool { return len(s.Ends) > 0 }

// Name returns the names of the senders, as in "ingress-nginx/controller".
func (s Senders) Name() string {
	var names []string
	for _, e := range s.Ends {
		names = append(names, e.Name)
	}
	return strings.Join(names, ", ")
}

// IsRoute reports whether the port is exposed by a route, and not by the Service itself.
func (x *Exposure) IsRoute() bool { return x.Means == "" }

// Requests describes the requests or packets that the exposure takes, as in "shop.example.com/cart",
// "any host name" or "NodePort 30080".
func (x *Exposure) Requests() string {
	switch {
	case !x.IsRoute():
		return x.Means
	case len(x.Hosts) == 0 && x.Path == "":
		return "any host name"
	case len(x.Hosts) == 0:
		return "*" + x.Path
	}
	var texts []string
	for _, h := range x.Hosts {
		texts = append(texts, h+strings.TrimSuffix(x.Path, "/"))
	}
	return strings.Join(texts, ", ")
}

// String names the exposure, as in "Ingress shop/web (shop.example.com/cart)".
func (x *Exposure) String() string { return x.By.Object() + " (" + x.Requests() + ")" }

// Describe returns an exposure in words. The text also states if policies keep the senders from
// the pods, or if the senders or the pods are not known.
func (v *Inventory) Describe(x *Exposure) string {
	text := x.String()
	if x.IsRoute() && x.Senders.Known() {
		text += " through " + x.Senders.Name()
	}
	switch access, _ := v.Access(x); access {
	case Denied:
		text += ", which policies deny"
	case Unknown:
		text += ", through pods that are not known"
	}
	return text
}

// Protocol returns the protocol of the packets to the pods.
func (x *Exposure) Protocol() filter.Protocol { return x.protocol }

// Exposures returns all exposures: first those of routes, in the order of the route objects, then
// those of Services, sorted by name.
func (v *Inventory) Exposures() []*Exposure {
	if v.exposures == nil {
		v.exposures = []*Exposure{}
		for _, r := range v.Routing.Routes {
			v.exposures = append(v.exposures, v.routeExposures(r)...)
		}
		var names []string
		for name := range v.services {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			v.exposures = append(v.exposures, v.serviceExposures(v.services[name])...)
		}
	}
	return v.exposures
}

// ExposuresOf returns the exposures that have at least one of these pods as a backend.
func (v *Inventory) ExposuresOf(pods []*policy.Pod) (all []*Exposure) {
	for _, x := range v.Exposures() {
		if slices.ContainsFunc(x.Backends, func(b Backend) bool {
			return slices.ContainsFunc(b.Pods, func(p *policy.Pod) bool { return slices.Contains(pods, p) })
		}) {
			all = append(all, x)
		}
	}
	return all
}

// routeExposures returns the exposures of a route, one for each of its targets.
func (v *Inventory) routeExposures(r *kuberoute.Route) (all []*Exposure) {
	senders := v.senders(r)
	for i := range r.Targets {
		t := &r.Targets[i]
		x := &Exposure{By: r.Ref, Field: t.Field, Hosts: t.Hosts, Path: t.Path, Service: t.Service.String(), Senders: senders, protocol: r.Protocol}
		if len(x.Hosts) == 0 {
			x.Hosts = v.listenerHosts(r)
		}
		x.Broken, x.Missing = v.resolve(x, r, t)
		all = append(all, x)
	}
	return all
}

// listenerHosts returns the host names of the listeners to which a route is attached. It returns
// none if one of the listeners takes every name, or if a Gateway is not known.
func (v *Inventory) listenerHosts(r *kuberoute.Route) (hosts []string) {
	for _, parent := range r.Gateways {
		g := v.gateway(parent.Gateway)
		if g == nil {
			return nil
		}
		for _, l := range g.Listeners {
			switch {
			case parent.Listener != "" && parent.Listener != l.Name:
			case l.Host == "":
				return nil
			case !slices.Contains(hosts, l.Host):
				hosts = append(hosts, l.Host)
			}
		}
	}
	return hosts
}

func (v *Inventory) gateway(ref policy.Ref) *kuberoute.Gateway {
	i := slices.IndexFunc(v.Routing.Gateways, func(g *kuberoute.Gateway) bool { return g.Ref == ref })
	if i < 0 {
		return nil
	}
	return v.Routing.Gateways[i]
}

// resolve sets the backends of x to those of a target of the route. If there are none, it returns
// the reason, and whether the reason is a mistake in the route.
func (v *Inventory) resolve(x *Exposure, r *kuberoute.Route, t *kuberoute.Target) (broken string, missing bool) {
	if t.Service.Kind == "" {
		return "its target is not a Service", false
	}
	s := v.services[t.Service.String()]
	switch {
	case s == nil:
		return "there is no Service " + t.Service.String(), true
	case !v.granted(r, t):
		return fmt.Sprintf("no ReferenceGrant in namespace %s lets %ss of namespace %s refer to Service %s", t.Service.Namespace, r.Ref.Kind, r.Ref.Namespace, t.Service.Name), true
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		return fmt.Sprintf("Service %s is another name for %s, which is outside the cluster", s.text(), s.Spec.ExternalName), false
	case t.Port == "" && !t.ByTarget:
		return "the route names no port of Service " + s.text(), true
	}
	index, err := s.targeted(t, r.Protocol)
	if err != nil {
		return err.Error(), true
	}
	v.expose(x, s, &s.Spec.Ports[index])
	if len(x.Backends) == 0 {
		return s.nothingBehind(), false
	}
	return "", false
}

// targeted returns the index of the Service's port that a route names.
func (s *service) targeted(t *kuberoute.Target, proto filter.Protocol) (int, error) {
	if t.ByTarget {
		for i := range s.Spec.Ports {
			p := &s.Spec.Ports[i]
			of, ok := protocolOf(p)
			if ok && of == proto && (t.Port == "" || t.Port == p.Name || t.Port == cmp.Or(untranslated(p), strconv.Itoa(int(p.Port)))) {
				return i, nil
			}
		}
	}
	return s.port(t.Port, proto)
}

// expose sets the Service and the port of x, and adds the endpoints of the port to its backends.
func (v *Inventory) expose(x *Exposure, s *service, port *corev1.ServicePort) {
	x.Service, x.Port = s.text(), uint16(port.Port)
	for _, b := range v.behind(s, port) {
		x.Backends = append(x.Backends, Backend{b.end, b.port})
	}
}

// granted reports whether a route may refer to the Service of a target: because it is in the
// namespace of the route, or because a ReferenceGrant lets the route do so.
func (v *Inventory) granted(r *kuberoute.Route, t *kuberoute.Target) bool {
	return t.Service.Namespace == r.Ref.Namespace || slices.ContainsFunc(v.Routing.Grants, func(g *kuberoute.Grant) bool {
		return g.Ref.Namespace == t.Service.Namespace &&
			slices.Contains(g.From, policy.Ref{Kind: r.Ref.Kind, Namespace: r.Ref.Namespace}) &&
			(slices.Contains(g.To, "") || slices.Contains(g.To, t.Service.Name))
	})
}

// serviceExposures returns the exposures that a Service has without a route: by its load balancer,
// its node ports, or its external addresses.
func (v *Inventory) serviceExposures(s *service) (all []*Exposure) {
	for i := range s.Spec.Ports {
		port := &s.Spec.Ports[i]
		field, means := meansOf(s.Service, port)
		proto, ok := protocolOf(port)
		if means == "" || !ok { // the API server refuses other protocols
			continue
		}
		x := &Exposure{
			By: policy.Ref{Kind: "Service", Namespace: s.Namespace, Name: s.Name}, Field: field, Means: means, protocol: proto,
			Policy: cmp.Or(string(s.Spec.ExternalTrafficPolicy), string(corev1.ServiceExternalTrafficPolicyCluster)),
		}
		v.expose(x, s, port)
		if x.Senders = v.clients(x.Policy); len(x.Backends) == 0 {
			x.Broken = s.nothingBehind()
		}
		all = append(all, x)
	}
	return all
}

// meansOf returns how a port of a Service is reached from outside, as in "NodePort 30080", and the field
// of the Service that exposes it. Both are empty if the Service does not expose the port.
func meansOf(s *corev1.Service, port *corev1.ServicePort) (field, means string) {
	switch {
	case s.Spec.Type == corev1.ServiceTypeLoadBalancer:
		return "spec.type", strings.TrimSpace("LoadBalancer " + strings.Join(balancerTexts(s), ", "))
	case s.Spec.Type == corev1.ServiceTypeNodePort && port.NodePort != 0:
		return "spec.type", "NodePort " + strconv.Itoa(int(port.NodePort))
	case s.Spec.Type == corev1.ServiceTypeNodePort:
		return "spec.type", "NodePort"
	case len(s.Spec.ExternalIPs) > 0:
		return "spec.externalIPs", "externalIPs " + strings.Join(s.Spec.ExternalIPs, ", ")
	}
	return "", ""
}

// clients returns the sources of packets to a Service that is reached from outside.
func (v *Inventory) clients(trafficPolicy string) Senders {
	return v.once("externalTrafficPolicy "+trafficPolicy, func() Senders { return v.findClients(trafficPolicy) })
}

func (v *Inventory) findClients(trafficPolicy string) Senders {
	if trafficPolicy == string(corev1.ServiceExternalTrafficPolicyLocal) {
		return Senders{v.world(), "with externalTrafficPolicy Local, the source is the client"}
	}
	return Senders{slices.Concat(v.world(), v.NodeEnds()), "with externalTrafficPolicy Cluster, the source is the client if the packet arrives at the node of the pod, and otherwise the node where it arrives"}
}

// balancerTexts returns the addresses and names of a Service's load balancer.
func balancerTexts(s *corev1.Service) (texts []string) {
	for _, at := range s.Status.LoadBalancer.Ingress {
		texts = append(texts, cmp.Or(at.IP, at.Hostname))
	}
	return texts
}

// outerAddrs returns the external addresses of a Service that nodes replace with the address of an
// endpoint, as they do with its cluster addresses.
func outerAddrs(s *corev1.Service) (addrs []netip.Addr) {
	texts := slices.Clone(s.Spec.ExternalIPs)
	for _, at := range s.Status.LoadBalancer.Ingress {
		if at.IPMode == nil || *at.IPMode == corev1.LoadBalancerIPModeVIP {
			texts = append(texts, at.IP)
		}
	}
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	return addrs
}

// atNodePort returns the Service that has the number in text as a node port, with its port. It returns
// nil if no Service has it, or if one of the ends is not a node. Nodes replace the destination of a
// packet to a node port before Sluice sees the packet.
func (v *Inventory) atNodePort(ends []*End, text string, proto filter.Protocol) (*service, *corev1.ServicePort) {
	number, err := strconv.Atoi(text)
	if err != nil || number == 0 || len(ends) == 0 || slices.ContainsFunc(ends, func(e *End) bool { return !e.Node }) {
		return nil, nil
	}
	for _, o := range v.Services {
		for i := range o.Spec.Ports {
			p := &o.Spec.Ports[i]
			if of, ok := protocolOf(p); ok && of == proto && int(p.NodePort) == number && o.Spec.Type != corev1.ServiceTypeClusterIP {
				return v.services[o.Namespace+"/"+o.Name], p
			}
		}
	}
	return nil, nil
}
