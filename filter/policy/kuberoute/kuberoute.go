// Package kuberoute converts Ingresses, the routes of the Gateway API and of OpenShift, and the objects
// to which they refer, into plain structs. These objects lead requests from outside the cluster to
// Services. Only this package knows the fields of their kinds.
package kuberoute

import (
	"net/netip"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"sluice/filter"
	"sluice/filter/policy"
)

// Objects are the objects that lead from outside the cluster to Services.
type Objects struct {
	Routes   []*Route
	Classes  []*Class
	Gateways []*Gateway
	Grants   []*Grant
}

// Route leads requests to Services: an Ingress, or a route of the Gateway API or of OpenShift.
type Route struct {
	Ref      policy.Ref
	Protocol filter.Protocol // of the packets to the Services
	// Class is the class of an Ingress, which names its controller; empty for the default class.
	Class string
	// Gateways are the Gateways to which the route is attached; they take the requests.
	Gateways []Parent
	Targets  []Target
	// Addrs and Names are the addresses and host names in the status, at which requests arrive.
	Addrs []netip.Addr
	Names []string
}

// Parent is a Gateway, or a listener of it.
type Parent struct {
	Gateway  policy.Ref
	Listener string // empty for every listener
}

// Target is a backend of a route, with the requests that go to it.
type Target struct {
	Field   string     // the field of the route that names the backend
	Hosts   []string   // host names, such as shop.example.com or *.example.com; empty for every name
	Path    string     // such as /cart; empty for every path
	Service policy.Ref // its Kind is empty if the target is not a Service
	Port    string     // number or name; empty if it is missing
	// ByTarget reports that Port is the targetPort or the name of a port of the Service, as in OpenShift.
	// If Port is empty, it means the first port of the Service.
	ByTarget bool `json:",omitempty"` // omitted, so that digests of other routes do not change
}

// Class is an IngressClass or a GatewayClass.
type Class struct {
	Ref        policy.Ref
	Controller string
	Labels     map[string]string
	Default    bool // reports that it is the class of Ingresses that name none
}

// Text returns the name of the class; empty for nil.
func (c *Class) Text() string {
	if c == nil {
		return ""
	}
	return c.Ref.Name
}

// Gateway takes requests for routes.
type Gateway struct {
	Ref       policy.Ref
	Class     string
	Listeners []Listener
	Addrs     []netip.Addr // Addrs and Names are in the status: where requests arrive
	Names     []string
}

// Listener is a port of a Gateway.
type Listener struct {
	Name, Host string // Host is empty for every host name
	Port       uint16
}

// Grant is a ReferenceGrant: it lets routes of other namespaces refer to Services of its namespace.
type Grant struct {
	Ref  policy.Ref
	From []policy.Ref // kinds and namespaces of the routes, without names
	To   []string     // names of Services; "" for all of the namespace
}

// Kind is a kind of objects that Add converts.
type Kind struct {
	Name, Group string
	Versions    []string // the versions with the fields of New, the preferred one first
	Resource    string   // as in "ingresses"
	InCluster   bool     // the objects are in no namespace
	New         func() metav1.Object
}

// Kinds returns the kinds of objects that Add converts.
func Kinds() []Kind {
	gateway := func(name, resource string, empty func() metav1.Object, versions ...string) Kind {
		return Kind{Name: name, Group: gatewayv1.GroupName, Versions: versions, Resource: resource, New: empty}
	}
	class := gateway("GatewayClass", "gatewayclasses", func() metav1.Object { return &gatewayv1.GatewayClass{} }, "v1", "v1beta1")
	class.InCluster = true
	return []Kind{
		{networkingIngress, networkingv1.GroupName, []string{"v1"}, "ingresses", false, func() metav1.Object { return &networkingv1.Ingress{} }},
		{"IngressClass", networkingv1.GroupName, []string{"v1"}, "ingressclasses", true, func() metav1.Object { return &networkingv1.IngressClass{} }},
		class,
		gateway("Gateway", "gateways", func() metav1.Object { return &gatewayv1.Gateway{} }, "v1", "v1beta1", "v1alpha2"),
		gateway("HTTPRoute", "httproutes", func() metav1.Object { return &gatewayv1.HTTPRoute{} }, "v1", "v1beta1", "v1alpha2"),
		gateway("GRPCRoute", "grpcroutes", func() metav1.Object { return &gatewayv1.GRPCRoute{} }, "v1", "v1alpha2"),
		gateway("TLSRoute", "tlsroutes", func() metav1.Object { return &gatewayv1.TLSRoute{} }, "v1", "v1alpha3", "v1alpha2"),
		gateway("TCPRoute", "tcproutes", func() metav1.Object { return &gatewayv1.TCPRoute{} }, "v1", "v1alpha2"),
		gateway("UDPRoute", "udproutes", func() metav1.Object { return &gatewayv1.UDPRoute{} }, "v1", "v1alpha2"),
		{"Route", openShiftGroup, []string{"v1"}, "routes", false, func() metav1.Object { return &openShiftRoute{} }},
		gateway("ReferenceGrant", "referencegrants", func() metav1.Object { return &gatewayv1.ReferenceGrant{} }, "v1", "v1beta1", "v1alpha2"),
	}
}

const networkingIngress = "Ingress"

// Add converts an object and appends it. It ignores objects of kinds that Kinds does not return.
func (o *Objects) Add(object metav1.Object) {
	switch x := object.(type) {
	case *networkingv1.Ingress:
		o.Routes = append(o.Routes, readIngress(x))
	case *networkingv1.IngressClass:
		o.Classes = append(o.Classes, &Class{
			Ref: policy.Ref{Kind: "IngressClass", Name: x.Name}, Controller: x.Spec.Controller, Labels: x.Labels,
			Default: x.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true",
		})
	case *gatewayv1.GatewayClass:
		o.Classes = append(o.Classes, &Class{Ref: policy.Ref{Kind: "GatewayClass", Name: x.Name}, Controller: string(x.Spec.ControllerName), Labels: x.Labels})
	case *gatewayv1.Gateway:
		o.Gateways = append(o.Gateways, readGateway(x))
	case *openShiftRoute:
		o.Routes = append(o.Routes, readOpenShift(x))
	case *gatewayv1.ReferenceGrant:
		o.Grants = append(o.Grants, readGrant(x))
	default:
		if r := readRoute(object); r != nil {
			o.Routes = append(o.Routes, r)
		}
	}
}

// refOf returns the reference to an object.
func refOf(kind string, o metav1.Object) policy.Ref {
	return policy.Ref{Kind: kind, Namespace: o.GetNamespace(), Name: o.GetName()}
}

// arrival divides texts from a status into addresses and host names.
func arrival(texts ...string) (addrs []netip.Addr, names []string) {
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, a.Unmap())
		} else if text != "" {
			names = append(names, strings.ToLower(text))
		}
	}
	return addrs, names
}
