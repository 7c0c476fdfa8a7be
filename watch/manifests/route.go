package manifests

import (
	"fmt"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sluice/filter/policy/kuberoute"
)

// routeKindOf returns the kind of [kuberoute.Kinds] with this group and name, or nil. It also accepts
// extensions, the former group of Ingress.
func routeKindOf(group, name string) *kuberoute.Kind {
	if group == "extensions" {
		group = networkingv1.GroupName
	}
	for _, k := range kuberoute.Kinds() {
		if k.Group == group && k.Name == name {
			return &k
		}
	}
	return nil
}

// route parses an object of the kind k. Packets do not depend on it, so route skips an object of an
// unknown version with a note.
func (p *parser) route(k *kuberoute.Kind, apiVersion string, text []byte, at string) {
	version, same := strings.CutPrefix(apiVersion, k.Group+"/")
	name, present := k.Name+" "+p.nameIn(text, k.Name), k.Group+"/"+k.Versions[0]
	switch removed := routeRemovedIn(k, apiVersion); {
	case removed != "" && k.Name == "Ingress":
		p.outdate(name, at, apiVersion, removed, present, "write "+present+", and in backends service.name and service.port instead of serviceName and servicePort")
		p.formerIngress(text, at)
		return
	case removed != "":
		p.outdate(name, at, apiVersion, removed, present, "write "+present)
	case !same || !slices.Contains(k.Versions, version):
		p.note(name, at+"apiVersion", fmt.Sprintf("%q is not read, and answers lack the way in from outside that it opens", apiVersion), "write "+present)
		return
	}
	object := k.New()
	c := &checker{p: p, at: at, object: k.Name + " " + p.nameIn(text, k.Name), text: text}
	c.check(object, k.Name)
	checkRoute(object, c)
	if !c.unidentified {
		p.keep(&item{object: object, outside: true}, k.Name)
	}
}

// checkRoute checks the fields of a route that answers depend on.
func checkRoute(o metav1.Object, c *checker) {
	switch o := o.(type) {
	case *networkingv1.Ingress:
		c.ingress(&o.Spec)
	case *gatewayv1.Gateway:
		if o.Spec.GatewayClassName == "" {
			c.problem("spec.gatewayClassName", "it is missing", "write the name of a GatewayClass")
		}
	}
}

func (c *checker) ingress(spec *networkingv1.IngressSpec) {
	if spec.DefaultBackend != nil {
		c.ingressBackend("spec.defaultBackend", spec.DefaultBackend)
	}
	for i, rule := range spec.Rules {
		if rule.HTTP == nil {
			continue
		}
		for j := range rule.HTTP.Paths {
			c.ingressBackend(fmt.Sprintf("spec.rules[%d].http.paths[%d].backend", i, j), &rule.HTTP.Paths[j].Backend)
		}
	}
}

func (c *checker) ingressBackend(at string, b *networkingv1.IngressBackend) {
	switch {
	case b.Service == nil && b.Resource == nil:
		c.problem(at, "it has neither a service nor a resource", "write service, with name and port")
	case b.Service == nil:
	case b.Service.Name == "":
		c.problem(at+".service.name", "it is missing", "write the name of a Service")
	case b.Service.Port.Name == "" && b.Service.Port.Number == 0:
		c.problem(at+".service.port", "it is missing", "write the number or the name of a port of the Service")
	case b.Service.Port.Name != "" && b.Service.Port.Number != 0:
		c.problem(at+".service.port", "it has a number and a name", "remove one of them")
	}
}
