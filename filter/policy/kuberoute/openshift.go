package kuberoute

import (
	"cmp"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
	"sluice/filter/policy"
)

// openShiftGroup is the API group of OpenShift's Route.
const openShiftGroup = "route.openshift.io"

// openShiftRoute is a Route of OpenShift. Its fields of type any are not used: they are declared so that
// strict decoding accepts them. The struct is written here because OpenShift's module would add its
// whole API.
type openShiftRoute struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec   openShiftSpec   `json:"spec"`
	Status openShiftStatus `json:"status"`
}

type openShiftSpec struct {
	Host              string            `json:"host"`
	Path              string            `json:"path"`
	To                openShiftTarget   `json:"to"`
	AlternateBackends []openShiftTarget `json:"alternateBackends"`
	Port              *struct {
		TargetPort intstr.IntOrString `json:"targetPort"`
	} `json:"port"`

	Subdomain      any `json:"subdomain"`
	WildcardPolicy any `json:"wildcardPolicy"`
	TLS            any `json:"tls"`
	HTTPHeaders    any `json:"httpHeaders"`
}

type openShiftTarget struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Weight any    `json:"weight"`
}

type openShiftStatus struct {
	Ingress []struct {
		Host string `json:"host"`

		RouterName              any `json:"routerName"`
		RouterCanonicalHostname any `json:"routerCanonicalHostname"`
		WildcardPolicy          any `json:"wildcardPolicy"`
		Conditions              any `json:"conditions"`
	} `json:"ingress"`
}

func readOpenShift(o *openShiftRoute) *Route {
	r := &Route{Ref: refOf("Route", o), Protocol: filter.TCP}
	host := o.Spec.Host
	for _, at := range o.Status.Ingress {
		host = cmp.Or(host, at.Host)
	}
	r.openShift(o, "spec.to", host, &o.Spec.To)
	for i := range o.Spec.AlternateBackends {
		r.openShift(o, fmt.Sprintf("spec.alternateBackends[%d]", i), host, &o.Spec.AlternateBackends[i])
	}
	return r
}

func (r *Route) openShift(o *openShiftRoute, field, host string, to *openShiftTarget) {
	t := Target{Field: field, Path: o.Spec.Path, ByTarget: true}
	if host != "" {
		t.Hosts = []string{host}
	}
	if to.Kind == "Service" || to.Kind == "" {
		t.Service = policy.Ref{Kind: "Service", Namespace: o.Namespace, Name: to.Name}
	}
	if o.Spec.Port != nil {
		t.Port = o.Spec.Port.TargetPort.String()
	}
	r.Targets = append(r.Targets, t)
}
