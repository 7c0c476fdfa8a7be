package manifests

import (
	"reflect"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// policyKind describes a kind of policies to the parser.
type policyKind struct {
	name     string
	version  schema.GroupVersion
	former   string   // an earlier API version with the same fields and meaning; empty if there is none
	removed  string   // the Kubernetes version that removed the API version in the field "former"
	siblings []string // other kinds of the group, which are not policies
	spec     reflect.Type
	empty    func() metav1.Object
	// check applies the defaulting and checks of the API server. A rule that it cannot read
	// allows nothing.
	check func(metav1.Object, *checker)
	read  func(metav1.Object) *policy.Policy
}

// policyKinds lists all kinds of policies.
var policyKinds = []*policyKind{{
	name: netpol.Kind, version: networkingv1.SchemeGroupVersion,
	former: "extensions/v1beta1", removed: "1.16",
	siblings: []string{"Ingress", "IngressClass", "IPAddress", "ServiceCIDR"},
	spec:     reflect.TypeFor[networkingv1.NetworkPolicySpec](),
	empty:    func() metav1.Object { return &networkingv1.NetworkPolicy{} },
	check:    func(o metav1.Object, c *checker) { checkNetworkPolicy(o.(*networkingv1.NetworkPolicy), c) },
	read:     func(o metav1.Object) *policy.Policy { return netpol.Read(o.(*networkingv1.NetworkPolicy)) },
}}

// policyKindOf returns the kind of policies with this name, or nil.
func policyKindOf(name string) *policyKind {
	for _, k := range policyKinds {
		if strings.EqualFold(k.name, name) {
			return k
		}
	}
	return nil
}

// policyKindIn returns a kind of policies of the group, or nil.
func policyKindIn(group string) *policyKind {
	for _, k := range policyKinds {
		if k.version.Group == group {
			return k
		}
	}
	return nil
}
