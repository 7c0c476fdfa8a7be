package manifests

import (
	"reflect"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/netpol"
)

// policyKind describes a kind of policies to the parser.
type policyKind struct {
	name     string
	cluster  bool // its objects are in no namespace
	version  schema.GroupVersion
	also     string            // another version with the same fields and meaning; empty if there is none
	former   map[string]string // see workloadKind
	siblings []string          // other kinds of the group, which are not policies
	retired  map[string]string // by former kind of the group, which is not read: what to write instead
	spec     reflect.Type
	instead  map[string]string // by field of a similar kind: a hint what to write instead
	empty    func() metav1.Object
	// check applies the defaulting and checks of the API server. A rule that it cannot read
	// allows nothing.
	check func(metav1.Object, *checker)
	read  func(metav1.Object) *policy.Policy
}

// policyKinds lists all kinds of policies.
var policyKinds = []*policyKind{{
	name: netpol.Kind, version: networkingv1.SchemeGroupVersion,
	former:   map[string]string{"extensions/v1beta1": "1.16"},
	siblings: []string{"Ingress", "IngressClass", "IPAddress", "ServiceCIDR"},
	spec:     reflect.TypeFor[networkingv1.NetworkPolicySpec](),
	empty:    func() metav1.Object { return &networkingv1.NetworkPolicy{} },
	check:    func(o metav1.Object, c *checker) { checkNetworkPolicy(o.(*networkingv1.NetworkPolicy), c) },
	read:     func(o metav1.Object) *policy.Policy { return netpol.Read(o.(*networkingv1.NetworkPolicy)) },
}, {
	name: clusterpolicy.Kind, cluster: true,
	version: schema.GroupVersion{Group: clusterpolicy.Group, Version: clusterpolicy.Version},
	also:    clusterpolicy.Group + "/" + clusterpolicy.OlderVersion,
	retired: map[string]string{
		"AdminNetworkPolicy":         "write a ClusterNetworkPolicy of tier Admin",
		"BaselineAdminNetworkPolicy": "write a ClusterNetworkPolicy of tier Baseline",
	},
	instead: map[string]string{
		"ports":       "write protocols",
		"port":        "write destinationPort",
		"ipBlock":     "write networks, a list of CIDRs",
		"podSelector": "write pods, with podSelector and namespaceSelector; in spec, write subject",
		"policyTypes": "remove it: the policy decides only where its rules match",
		"icmp":        "only a rule without protocols matches ICMP, as it matches everything",
		"icmpv6":      "only a rule without protocols matches ICMP, as it matches everything",
	},
	spec:  reflect.TypeFor[v1beta1.ClusterNetworkPolicySpec](),
	empty: func() metav1.Object { return &v1beta1.ClusterNetworkPolicy{} },
	check: func(o metav1.Object, c *checker) { checkClusterPolicy(o.(*v1beta1.ClusterNetworkPolicy), c) },
	read:  func(o metav1.Object) *policy.Policy { return clusterpolicy.Read(o.(*v1beta1.ClusterNetworkPolicy)) },
}}

// closedEffect returns the effect of a problem for which the whole policy is closed. It is empty
// if k is nil.
func (k *policyKind) closedEffect() string {
	switch {
	case k == nil:
		return ""
	case k.cluster:
		return "the policy is the first of its tier, and denies everything to and from its pods"
	}
	return "the policy denies everything to and from its pods"
}

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

// inCluster reports whether the objects of a kind are in no namespace.
func inCluster(kind string) bool {
	switch kind {
	case "Namespace", "Node", "IngressClass", "GatewayClass":
		return true
	}
	k := policyKindOf(kind)
	return k != nil && k.cluster
}
