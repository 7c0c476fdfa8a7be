package manifests

import (
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	networkingv1beta1 "k8s.io/api/networking/v1beta1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter/policy/kuberoute"
)

// removedIn returns the Kubernetes version that removed an API version of a supported kind, if the API
// version had all fields that are read, with the same meaning. Otherwise it returns "".
func removedIn(name, apiVersion string) string {
	if k := policyKindOf(name); k != nil {
		return k.former[apiVersion]
	}
	if k := workloadKindOf(name); k != nil {
		return k.former[apiVersion]
	}
	return ""
}

// routeRemovedIn is removedIn for the kinds of routes.
func routeRemovedIn(k *kuberoute.Kind, apiVersion string) string {
	ingress := k.Name == "Ingress" && (apiVersion == "networking.k8s.io/v1beta1" || apiVersion == "extensions/v1beta1")
	if ingress || k.Name == "IngressClass" && apiVersion == "networking.k8s.io/v1beta1" {
		return "1.22"
	}
	return ""
}

// outdate records that an object has an API version that was removed in the Kubernetes version removed,
// and is read as the present one.
func (p *parser) outdate(object, at, apiVersion, removed, present, hint string) {
	p.outdated = append(p.outdated, Problem{
		File: p.path, Document: p.document, Object: object, Field: at + "apiVersion",
		Detail: fmt.Sprintf("%q was removed in Kubernetes %s; it is read as %s", apiVersion, removed, present), Hint: hint,
	})
}

// formerIngress parses an Ingress of version v1beta1, whose backends have other fields.
func (p *parser) formerIngress(text []byte, at string) {
	const kind = "Ingress"
	var old networkingv1beta1.Ingress
	c := &checker{p: p, at: at, object: kind + " " + p.nameIn(text, kind), text: text}
	c.check(&old, kind)
	now := &networkingv1.Ingress{ObjectMeta: old.ObjectMeta}
	now.Spec.IngressClassName = old.Spec.IngressClassName
	if old.Spec.Backend != nil {
		b := c.formerBackend("spec.backend", old.Spec.Backend)
		now.Spec.DefaultBackend = &b
	}
	for _, t := range old.Spec.TLS {
		now.Spec.TLS = append(now.Spec.TLS, networkingv1.IngressTLS(t))
	}
	for i := range old.Spec.Rules {
		now.Spec.Rules = append(now.Spec.Rules, c.formerRule(fmt.Sprintf("spec.rules[%d]", i), &old.Spec.Rules[i]))
	}
	for _, l := range old.Status.LoadBalancer.Ingress {
		now.Status.LoadBalancer.Ingress = append(now.Status.LoadBalancer.Ingress, networkingv1.IngressLoadBalancerIngress{IP: l.IP, Hostname: l.Hostname})
	}
	if !c.unidentified {
		p.keep(&item{object: now, outside: true}, kind)
	}
}

func (c *checker) formerRule(at string, old *networkingv1beta1.IngressRule) networkingv1.IngressRule {
	now := networkingv1.IngressRule{Host: old.Host}
	if old.HTTP == nil {
		return now
	}
	now.HTTP = &networkingv1.HTTPIngressRuleValue{}
	for i := range old.HTTP.Paths {
		path := &old.HTTP.Paths[i]
		now.HTTP.Paths = append(now.HTTP.Paths, networkingv1.HTTPIngressPath{
			Path: path.Path, PathType: (*networkingv1.PathType)(path.PathType),
			Backend: c.formerBackend(fmt.Sprintf("%s.http.paths[%d].backend", at, i), &path.Backend),
		})
	}
	return now
}

func (c *checker) formerBackend(at string, old *networkingv1beta1.IngressBackend) networkingv1.IngressBackend {
	now := networkingv1.IngressBackend{Resource: old.Resource}
	switch {
	case old.Resource != nil && old.ServiceName == "":
		return now
	case old.ServiceName == "":
		c.problem(at+".serviceName", "it is missing", "write the name of a Service")
	case old.ServicePort == intstr.IntOrString{}:
		c.problem(at+".servicePort", "it is missing", "write the number or the name of a port of the Service")
	}
	now.Service = &networkingv1.IngressServiceBackend{Name: old.ServiceName}
	if old.ServicePort.Type == intstr.String {
		now.Service.Port.Name = old.ServicePort.StrVal
	} else {
		now.Service.Port.Number = old.ServicePort.IntVal
	}
	return now
}
