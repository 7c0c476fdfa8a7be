package kuberoute

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sluice/filter"
	"sluice/filter/policy"
)

func readGateway(o *gatewayv1.Gateway) *Gateway {
	g := &Gateway{Ref: refOf("Gateway", o), Class: string(o.Spec.GatewayClassName)}
	for _, l := range o.Spec.Listeners {
		g.Listeners = append(g.Listeners, Listener{string(l.Name), string(value(l.Hostname)), uint16(l.Port)})
	}
	for _, at := range o.Status.Addresses {
		addrs, names := arrival(at.Value)
		g.Addrs, g.Names = append(g.Addrs, addrs...), append(g.Names, names...)
	}
	return g
}

func readGrant(o *gatewayv1.ReferenceGrant) *Grant {
	g := &Grant{Ref: refOf("ReferenceGrant", o)}
	for _, f := range o.Spec.From {
		if f.Group == gatewayv1.GroupName {
			g.From = append(g.From, policy.Ref{Kind: string(f.Kind), Namespace: string(f.Namespace)})
		}
	}
	for _, t := range o.Spec.To {
		if t.Group == "" && t.Kind == "Service" {
			g.To = append(g.To, string(value(t.Name)))
		}
	}
	return g
}

// readRoute converts a route of the Gateway API. It returns nil for other objects.
func readRoute(object metav1.Object) *Route {
	switch o := object.(type) {
	case *gatewayv1.HTTPRoute:
		return newRoute("HTTPRoute", o, &o.Spec.CommonRouteSpec).http(o.Spec.Rules, o.Spec.Hostnames)
	case *gatewayv1.GRPCRoute:
		return newRoute("GRPCRoute", o, &o.Spec.CommonRouteSpec).grpc(o.Spec.Rules, o.Spec.Hostnames)
	case *gatewayv1.TLSRoute:
		r := newRoute("TLSRoute", o, &o.Spec.CommonRouteSpec)
		for i := range o.Spec.Rules {
			r.backends(i, o.Spec.Rules[i].BackendRefs, hostNames(o.Spec.Hostnames), "")
		}
		return r
	case *gatewayv1.TCPRoute:
		r := newRoute("TCPRoute", o, &o.Spec.CommonRouteSpec)
		for i := range o.Spec.Rules {
			r.backends(i, o.Spec.Rules[i].BackendRefs, nil, "")
		}
		return r
	case *gatewayv1.UDPRoute:
		r := newRoute("UDPRoute", o, &o.Spec.CommonRouteSpec)
		r.Protocol = filter.UDP
		for i := range o.Spec.Rules {
			r.backends(i, o.Spec.Rules[i].BackendRefs, nil, "")
		}
		return r
	}
	return nil
}

func newRoute(kind string, o metav1.Object, spec *gatewayv1.CommonRouteSpec) *Route {
	r := &Route{Ref: refOf(kind, o), Protocol: filter.TCP}
	for _, p := range spec.ParentRefs {
		if value(p.Kind) != "" && *p.Kind != "Gateway" || p.Group != nil && *p.Group != gatewayv1.GroupName {
			continue // a Service (of a mesh) or a ListenerSet
		}
		namespace := cmp.Or(string(value(p.Namespace)), o.GetNamespace())
		r.Gateways = append(r.Gateways, Parent{policy.Ref{Kind: "Gateway", Namespace: namespace, Name: string(p.Name)}, string(value(p.SectionName))})
	}
	return r
}

func (r *Route) http(rules []gatewayv1.HTTPRouteRule, names []gatewayv1.Hostname) *Route {
	for i, rule := range rules {
		refs := refsOf(rule.BackendRefs, func(b gatewayv1.HTTPBackendRef) gatewayv1.BackendRef { return b.BackendRef })
		paths := []string{}
		for _, m := range rule.Matches {
			path := "" // a match without a path takes every path
			if m.Path != nil {
				path = value(m.Path.Value)
			}
			paths = append(paths, path)
		}
		r.backends(i, refs, hostNames(names), paths...)
	}
	return r
}

func (r *Route) grpc(rules []gatewayv1.GRPCRouteRule, names []gatewayv1.Hostname) *Route {
	for i, rule := range rules {
		refs := refsOf(rule.BackendRefs, func(b gatewayv1.GRPCBackendRef) gatewayv1.BackendRef { return b.BackendRef })
		paths := []string{}
		for _, m := range rule.Matches {
			path := ""
			if m.Method != nil {
				path = strings.TrimSuffix("/"+value(m.Method.Service)+"/"+value(m.Method.Method), "/")
			}
			paths = append(paths, path)
		}
		r.backends(i, refs, hostNames(names), paths...)
	}
	return r
}

// refsOf returns what the backends of a kind of route refer to.
func refsOf[B any](backends []B, ref func(B) gatewayv1.BackendRef) []gatewayv1.BackendRef {
	refs := make([]gatewayv1.BackendRef, len(backends))
	for i, b := range backends {
		refs[i] = ref(b)
	}
	return refs
}

// backends adds a target for each path and each backend of rule i. Without paths, the targets take
// every path.
func (r *Route) backends(i int, refs []gatewayv1.BackendRef, hosts []string, paths ...string) {
	if len(paths) == 0 {
		paths = []string{""}
	}
	for _, path := range paths {
		for j := range refs {
			b := &refs[j]
			t := Target{Field: fmt.Sprintf("spec.rules[%d].backendRefs[%d]", i, j), Hosts: hosts, Path: path}
			if value(b.Group) == "" && (b.Kind == nil || *b.Kind == "Service") {
				t.Service = policy.Ref{Kind: "Service", Namespace: cmp.Or(string(value(b.Namespace)), r.Ref.Namespace), Name: string(b.Name)}
			}
			if b.Port != nil {
				t.Port = strconv.Itoa(int(*b.Port))
			}
			r.Targets = append(r.Targets, t)
		}
	}
}

func hostNames(names []gatewayv1.Hostname) (texts []string) {
	for _, n := range names {
		texts = append(texts, string(n))
	}
	return texts
}

// value returns *p, or the zero value if p is nil.
func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}
