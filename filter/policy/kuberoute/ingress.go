package kuberoute

import (
	"fmt"
	"strconv"

	networkingv1 "k8s.io/api/networking/v1"

	"sluice/filter"
	"sluice/filter/policy"
)

// classAnnotation is the predecessor of spec.ingressClassName. Controllers still read it.
const classAnnotation = "kubernetes.io/ingress.class"

func readIngress(o *networkingv1.Ingress) *Route {
	r := &Route{Ref: refOf(networkingIngress, o), Protocol: filter.TCP, Class: o.Annotations[classAnnotation]}
	if o.Spec.IngressClassName != nil {
		r.Class = *o.Spec.IngressClassName
	}
	for i, rule := range o.Spec.Rules {
		if rule.HTTP == nil {
			continue // the requests go to the default backend
		}
		for j := range rule.HTTP.Paths {
			path := &rule.HTTP.Paths[j]
			t := ingressTarget(o.Namespace, &path.Backend)
			t.Field, t.Path = fmt.Sprintf("spec.rules[%d].http.paths[%d].backend", i, j), path.Path
			if rule.Host != "" {
				t.Hosts = []string{rule.Host}
			}
			r.Targets = append(r.Targets, t)
		}
	}
	if b := o.Spec.DefaultBackend; b != nil {
		t := ingressTarget(o.Namespace, b)
		t.Field = "spec.defaultBackend"
		r.Targets = append(r.Targets, t)
	}
	for _, at := range o.Status.LoadBalancer.Ingress {
		addrs, names := arrival(at.IP, at.Hostname)
		r.Addrs, r.Names = append(r.Addrs, addrs...), append(r.Names, names...)
	}
	return r
}

func ingressTarget(namespace string, b *networkingv1.IngressBackend) (t Target) {
	if b.Service == nil {
		return t
	}
	t.Service = policy.Ref{Kind: "Service", Namespace: namespace, Name: b.Service.Name}
	if t.Port = b.Service.Port.Name; b.Service.Port.Number != 0 {
		t.Port = strconv.Itoa(int(b.Service.Port.Number))
	}
	return t
}
