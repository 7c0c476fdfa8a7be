package kube

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// kind is a kind of objects that is followed.
type kind struct {
	name     string // as in "Pod"
	resource string // as in "pods", the name that RBAC uses
	group    schema.GroupVersion
	remove   func(w *policy.Store, namespace, name string)
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
