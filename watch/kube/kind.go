package kube

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// kind describes a kind of objects that the source follows.
type kind struct {
	name     string // as in "Pod"
	resource string // as in "pods", the name that RBAC uses
	group    schema.GroupVersion
	remove   func(w *policy.Store, namespace, name string) // removes an object from the policy store
}

var (
	namespaceKind = &kind{"Namespace", "namespaces", corev1.SchemeGroupVersion, func(w *policy.Store, _, name string) { w.DeleteNamespace(name) }}
	podKind       = &kind{"Pod", "pods", corev1.SchemeGroupVersion, (*policy.Store).DeletePod}
	policyKind    = &kind{netpol.Kind, "networkpolicies", networkingv1.SchemeGroupVersion, deletePolicy}
	nodeKind      = &kind{"Node", "nodes", corev1.SchemeGroupVersion, func(w *policy.Store, _, name string) { w.SetNodeRanges(name, nil) }}
)

func deletePolicy(w *policy.Store, namespace, name string) {
	w.DeletePolicy(netpol.Ref(namespace, name))
}

var kinds = []*kind{namespaceKind, podKind, policyKind, nodeKind}
