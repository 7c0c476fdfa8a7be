package policy

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// namespace is a namespace for which there is a Namespace object, a pod or a policy.
type namespace struct {
	id         uint32
	version    ID // part of the classes of its pods: a new one when other namespace selectors match its labels
	name       string
	declared   bool // there is a Namespace object
	unknown    unknownLabels
	labels     labels.Set
	identities identitySet
	policies   int
	denial     filter.Denial
	counted    Digest // the namespace's summand of the store's digest
	budget     budget
	scopes     idBits // namespace selectors of subjects that match it
	matched    idSet  // namespace selectors of peers that match it, as of the last Commit

	relabeled bool // the namespace's labels changed since the last Commit
	stale     bool // all pods of the namespace must be matched with the peer selectors again
	staleOwn  bool // has a meaning only if "stale" is set: the pods must also be matched with the peer selectors whose scope is this namespace by name
	tests     int  // number of tests of the namespace's identities against single selectors in this Commit; see affectIn
}

// SetNamespace adds or updates a namespace. Its label kubernetes.io/metadata.name is always
// its name, as the API server sets it.
func (w *Store) SetNamespace(name string, labels labels.Set) {
	ns := w.namespace(name)
	w.declare(ns, true)
	w.relabelNamespace(ns, labels)
	w.countNamespace(ns)
}

// DeleteNamespace removes a Namespace object. Pods and policies of the namespace remain
// until they are deleted. Meanwhile the only label of the namespace is its name; see also
// RequireNamespaces.
func (w *Store) DeleteNamespace(name string) {
	if ns := w.namespaces[name]; ns != nil {
		w.declare(ns, false)
		w.SetNamespaceDenial(name, filter.DenialUnset, nil)
		w.SetNamespaceLog(name, LogSetting{})
		w.relabelNamespace(ns, nil)
		w.countNamespace(ns)
		w.dropNamespace(ns)
	}
}

// namespace returns a namespace, and creates it on first use: pods and policies may arrive
// before their namespace.
func (w *Store) namespace(name string) *namespace {
	if ns := w.namespaces[name]; ns != nil {
		return ns
	}
	ns := &namespace{id: uint32(len(w.namespaces)), version: w.newID(), name: name, identities: identitySet{seed: w.seeds[0]}}
	if last := len(w.unusedNS) - 1; last >= 0 {
		ns.id, w.unusedNS = w.unusedNS[last], w.unusedNS[:last]
	}
	w.namespaces[name] = ns
	w.declare(ns, false)
	w.dirtyNS[ns] = struct{}{} // w.everyone may have the selectors of an earlier namespace with this id
	w.relabelNamespace(ns, nil)
	return ns
}

// dropNamespace removes a namespace that has no object, no policies and no pods.
func (w *Store) dropNamespace(ns *namespace) {
	if ns.declared || ns.policies > 0 || !ns.identities.all.empty() {
		return
	}
	w.unusedNS = append(w.unusedNS, ns.id)
	delete(w.namespaces, ns.name)
	delete(w.unknowns.undeclared, ns)
	w.dirtyNS[ns] = struct{}{}
}

func (w *Store) relabelNamespace(ns *namespace, given labels.Set) {
	set := given
	if set[corev1.LabelMetadataName] != ns.name {
		set = labels.Merge(given, labels.Set{corev1.LabelMetadataName: ns.name})
	}
	if ns.labels != nil && labels.Equals(set, ns.labels) {
		return
	}
	ns.labels, ns.relabeled = set, true
	w.dirtyNS[ns] = struct{}{}
	w.rescope(ns)
}
