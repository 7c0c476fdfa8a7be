package kube

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/netpol"
)

// kind describes a kind of objects that the source follows.
type kind struct {
	name     string // as in "Pod"
	resource string // as in "pods", the name that RBAC uses
	group    schema.GroupVersion
	// older are the versions to follow if the server does not serve the version of group, the
	// preferred one first. All have the same schema, so that types can decode each of them.
	older []schema.GroupVersion
	// optional reports that the kind is defined by a CustomResourceDefinition, which a
	// cluster may lack. A server serves its objects only as JSON.
	optional bool
	// inCluster reports that the objects are in no namespace.
	inCluster bool
	// asked reports that only commands read the objects, to answer questions: packets do not depend
	// on them.
	asked bool
	// types are the API's types of an object and of a list.
	types  [2]runtime.Object
	slim   func(o runtime.Object, shared *pools) object
	remove func(s *policy.Store, namespace, name string)
	read   func(o runtime.Object) *policy.Policy // only for kinds of policies
}

var (
	namespaceKind = &kind{
		name: "Namespace", resource: "namespaces", group: corev1.SchemeGroupVersion, inCluster: true,
		types:  [2]runtime.Object{&corev1.Namespace{}, &corev1.NamespaceList{}},
		slim:   func(o runtime.Object, _ *pools) object { return slimNamespace(o.(*corev1.Namespace)) },
		remove: func(s *policy.Store, _, name string) { s.DeleteNamespace(name) },
	}
	podKind = &kind{
		name: "Pod", resource: "pods", group: corev1.SchemeGroupVersion,
		types:  [2]runtime.Object{&corev1.Pod{}, &corev1.PodList{}},
		slim:   func(o runtime.Object, shared *pools) object { return slimPod(o.(*corev1.Pod), shared) },
		remove: (*policy.Store).DeletePod,
	}
	nodeKind = &kind{
		name: "Node", resource: "nodes", group: corev1.SchemeGroupVersion, inCluster: true,
		types:  [2]runtime.Object{&corev1.Node{}, &corev1.NodeList{}},
		slim:   func(o runtime.Object, _ *pools) object { return slimNode(o.(*corev1.Node)) },
		remove: func(s *policy.Store, _, name string) { s.DeleteNodeObject(name) },
	}
	networkPolicyKind = policyKind(netpol.Kind, "networkpolicies", networkingv1.SchemeGroupVersion, &networkingv1.NetworkPolicyList{}, netpol.Encode, netpol.Read)

	clusterNetworkPolicyKind = optionalPolicyKind(
		policyKind(clusterpolicy.Kind, "clusternetworkpolicies", schema.GroupVersion(v1beta1.GroupVersion), &v1beta1.ClusterNetworkPolicyList{}, clusterpolicy.Encode, clusterpolicy.Read),
		clusterpolicy.OlderVersion)

	// kinds are all kinds, in the order in which reports list them.
	kinds = []*kind{namespaceKind, podKind, networkPolicyKind, clusterNetworkPolicyKind, nodeKind}
)

// versions returns the versions in which a server may serve the kind, the preferred one
// first.
func (k *kind) versions() []schema.GroupVersion {
	return append([]schema.GroupVersion{k.group}, k.older...)
}

// optionalPolicyKind changes k into a kind of policies without a namespace that a cluster may lack,
// or serve only in an older version.
func optionalPolicyKind(k *kind, older ...string) *kind {
	k.optional, k.inCluster = true, true
	for _, version := range older {
		k.older = append(k.older, schema.GroupVersion{Group: k.group.Group, Version: version})
	}
	return k
}

// policyObject is the API's type of a policy.
type policyObject[T any] interface {
	*T
	runtime.Object
	metav1.Object
}

// policyKind returns a kind of policies. encode and read are the functions Encode and Read of
// the package that reads this kind, such as netpol.
func policyKind[T any, P policyObject[T]](name, resource string, group schema.GroupVersion, list runtime.Object, encode func(P) policy.Encoded, read func(P) *policy.Policy) *kind {
	return &kind{
		name: name, resource: resource, group: group, types: [2]runtime.Object{P(new(T)), list},
		slim: func(o runtime.Object, _ *pools) object {
			p := o.(P)
			t := slimMetaOf(p)
			p.SetNamespace(t.Namespace) // the interned string, because the encoded policy keeps it
			e := encode(p)
			e.Resource = t.version
			return &encodedPolicy{t, e}
		},
		remove: func(s *policy.Store, namespace, object string) {
			s.DeletePolicy(policy.Ref{Kind: name, Namespace: namespace, Name: object})
		},
		read: func(o runtime.Object) *policy.Policy { return read(o.(P)) },
	}
}
