package policy

import (
	"crypto/sha256"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Store is what is known of the cluster. It is fed object by object, in any
// order, and notes what each change touches; Commit compiles just that.
//
// A Store is not safe for concurrent use, and keeps references to the objects it
// is given: they must not be changed afterwards.
type Store struct {
	namespaces map[string]*namespace
	pods       map[objectKey]*pod
	policies   map[Ref]*policy
	faulty     map[*policy]struct{}    // those that have problems
	node       map[netip.Addr]struct{} // with IPVS, also the address of every Service
	self       *Endpoint               // the owner of the node's addresses
	local      local
	ranges     rangeSources

	nsSelectors selectors // of namespaces, as peers name them
	subjects    selectors // of the pods that policies select
	peers       selectors // of the pods that policies name as peers

	owners     map[netip.Addr]*pod   // a live pod that claims the address
	rivals     map[netip.Addr][]*pod // the other live pods that claim it too; seldom any
	hosts      map[netip.Addr]*host  // by the first of their addresses
	policySets map[policySetKey]*policySet
	shape      shape // of what groups are compiled to

	drafts   drafts
	deferred deferred
	large    int         // bytes of a policy that is not large
	dying    []*selector // uses by large policies that are gone
	sweep    *sweep      // nil if none goes on
	limbo    limbo
	due      bool // a policy came or was refused since the last Commit

	limits    Limits
	cost      int64 // of all policies but those that are refused
	refused   int   // bytes that are kept of policies that are refused
	overdrawn bool  // some are refused for what all take together
	recount   bool  // those may be others now
	classes   map[string]*class

	dirtyPods        []*pod // each once: those that are dirty
	renewed          []*pod // each once: those that are to have a new epoch
	dirtyAddrs       map[netip.Addr]struct{}
	touched          []*pod // those with other endpoints since the last commit
	staleIdentities  []*identity
	staleNS          bool        // a selector of namespaces came or went
	added            []*selector // of peers, since the last commit
	removed          []*selector
	ids, spare, mask idBits

	table         *addrTable // by address, shared with the last snapshot
	everyone      []idSet    // by namespace id: the selectors that match all its pods; shared too
	unusedNS      []uint32
	dirtyNS       map[*namespace]struct{}
	staleIn       []*namespace // those in which a selector came or went
	compiled      []*identity  // whose pods this commit has compiled
	wideOnly      bool         // only selectors of peers whose scope is a selector are matched again
	seeds         [2]maphash.Seed
	lastEpoch     uint64
	lastNumber    uint64 // of snapshots
	lastPolicy    uint64
	lastPolicySet uint64
}

// namespace is a namespace that has an object, a pod or a policy.
type namespace struct {
	id         uint32
	name       string
	declared   bool // there is a Namespace object
	labels     labels.Set
	identities identitySet
	policies   int
	size       int   // entries of its policies' rules, but for large ones
	merged     int   // entries of rules that are merged for sets of its policies
	matched    idSet // selectors of namespaces that match, as of the last commit

	relabeled bool // since the last commit
	stale     bool // all of its pods may match other peers
	staleOwn  bool // also such of its own policies
	tests     int  // how many of its pods were tested for that in this commit
}

// NewStore returns an empty store.
func NewStore() *Store {
	w := &Store{
		namespaces:  make(map[string]*namespace),
		pods:        make(map[objectKey]*pod),
		policies:    make(map[Ref]*policy),
		faulty:      make(map[*policy]struct{}),
		nsSelectors: newSelectors(),
		subjects:    newSelectors(),
		peers:       newSelectors(),
		owners:      make(map[netip.Addr]*pod),
		rivals:      make(map[netip.Addr][]*pod),
		hosts:       make(map[netip.Addr]*host),
		policySets:  make(map[policySetKey]*policySet),
		shape:       defaultShape(),
		limits:      DefaultLimits(),
		deferred:    make(deferred),
		ranges:      newRangeSources(),
		large:       largeSize,
		classes:     make(map[string]*class),
		dirtyAddrs:  make(map[netip.Addr]struct{}),
		dirtyNS:     make(map[*namespace]struct{}),
		table:       new(addrTable),
		seeds:       [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
	}
	w.ids.few = 32
	w.self = &Endpoint{epoch: w.newEpoch()}
	return w
}

// SetNode says which addresses are this node's own: traffic from and to the node
// that a pod runs on is always allowed.
func (w *Store) SetNode(addrs []netip.Addr) {
	now := make(map[netip.Addr]struct{}, len(addrs))
	for _, a := range addrs {
		a = a.Unmap().WithZone("")
		now[a] = struct{}{}
		if _, had := w.node[a]; !had {
			w.dirtyAddrs[a] = struct{}{}
		}
	}
	for a := range w.node {
		if _, has := now[a]; !has {
			w.dirtyAddrs[a] = struct{}{}
		}
	}
	w.node = now
}

// SetNamespace adds a namespace or replaces what is known of it. Its label
// kubernetes.io/metadata.name is set as the API server sets it.
func (w *Store) SetNamespace(name string, labels labels.Set) {
	ns := w.namespace(name)
	ns.declared = true
	w.relabelNamespace(ns, labels)
}

// DeleteNamespace removes the namespace's object. Pods and policies that are
// still in it go on, as in a namespace without labels, until they are deleted.
func (w *Store) DeleteNamespace(name string) {
	if ns := w.namespaces[name]; ns != nil {
		ns.declared = false
		w.relabelNamespace(ns, nil)
		w.dropNamespace(ns)
	}
}

// namespace returns the namespace, which comes into being with its first use:
// pods and policies may be seen before it.
func (w *Store) namespace(name string) *namespace {
	if ns := w.namespaces[name]; ns != nil {
		return ns
	}
	ns := &namespace{id: uint32(len(w.namespaces)), name: name, identities: identitySet{seed: w.seeds[0]}}
	if last := len(w.unusedNS) - 1; last >= 0 {
		ns.id, w.unusedNS = w.unusedNS[last], w.unusedNS[:last]
	}
	w.namespaces[name] = ns
	w.dirtyNS[ns] = struct{}{} // even if no selector matches it: its id was perhaps another's
	w.relabelNamespace(ns, nil)
	return ns
}

// dropNamespace forgets a namespace that nothing is left of.
func (w *Store) dropNamespace(ns *namespace) {
	if ns.declared || ns.policies > 0 || !ns.identities.all.empty() {
		return
	}
	w.unusedNS = append(w.unusedNS, ns.id)
	delete(w.namespaces, ns.name)
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
}

// SetPod adds a pod or replaces what is known of it. An address that it did not have stays
// unknown for now (deferred) if a draft may isolate the pod.
func (w *Store) SetPod(o *Pod) {
	p := readPod(o)
	p.local = w.local.node != "" && o.Node == w.local.node
	if old := w.pods[p.objectKey]; old != nil {
		w.replacePod(old, p, o.Labels)
		return
	}
	if len(p.addrs) == 0 {
		return // it has no address, or not yet
	}
	p.host = w.useHost(p.host)
	w.pods[p.objectKey] = p
	w.join(p, w.namespace(p.namespace), o.Labels)
	w.claim(p, nil)
	w.dirty(p)
}

// replacePod updates a known pod in place, so that what refers to it stays right.
func (w *Store) replacePod(p, now *pod, set labels.Set) {
	relabeled := !labels.Equals(p.identity.labels, set)
	if !relabeled && p.sameIdentity(now) {
		return
	}
	if len(now.addrs) == 0 {
		w.DeletePod(p.namespace, p.name)
		return
	}
	known := w.known(p)
	if p.created != now.created {
		known = nil // it is another pod of the name
	}
	w.disclaim(p)
	host := p.host
	p.addrs, p.host, p.ports, p.created = now.addrs, w.useHost(now.host), now.ports, now.created
	w.releaseHost(host)
	p.local, p.ending = now.local, now.ending
	w.claim(p, known)
	if relabeled {
		identity, place := p.identity, p.place
		w.join(p, identity.ns, set)
		p.relabeled = true
		leave(identity, place)
	}
	w.dirty(p)
}

// DeletePod removes a pod. A pod that is not known is no error: informers may
// say so twice.
func (w *Store) DeletePod(namespace, name string) {
	p := w.pods[objectKey{namespace, name}]
	if p == nil {
		return
	}
	delete(w.pods, p.objectKey)
	p.gone = true
	w.disclaim(p)
	w.releaseHost(p.host)
	leave(p.identity, p.place)
	w.dirty(p)
	w.dropNamespace(p.identity.ns)
}

// claim gives a pod its addresses, some of which it was known to have.
func (w *Store) claim(p *pod, known []netip.Addr) {
	for _, a := range p.addrs {
		if !slices.Contains(known, a) {
			w.deferNew(p, a)
		}
		if w.owners[a] == nil {
			w.owners[a] = p
		} else {
			w.rivals[a] = append(w.rivals[a], p)
		}
		w.dirtyAddrs[a] = struct{}{}
	}
}

func (w *Store) disclaim(p *pod) {
	for _, a := range p.addrs {
		w.deferred.remove(p, a)
		w.dirtyAddrs[a] = struct{}{}
		rivals := w.rivals[a]
		switch last := len(rivals) - 1; {
		case w.owners[a] != p:
			rivals = slices.DeleteFunc(rivals, func(o *pod) bool { return o == p })
		case last < 0:
			delete(w.owners, a)
			continue
		default:
			w.owners[a] = rivals[last]
			rivals = slices.Delete(rivals, last, last+1)
		}
		if w.rivals[a] = rivals; len(rivals) == 0 {
			delete(w.rivals, a)
		}
	}
}

// join puts a pod among those of its namespace that have its labels.
func (w *Store) join(p *pod, ns *namespace, set labels.Set) {
	p.reselected = true
	hash := ns.identities.hashOf(set)
	if k := ns.identities.byHash[hash]; k != nil && labels.Equals(k.labels, set) {
		k.add(p)
		return
	}
	k := &identity{ns: ns, labels: set, hash: hash}
	k.add(p)
	ns.identities.add(k)
	w.matchSubjects(k)
	w.stale(k)
}

// leave takes a pod out of those that it was among, at their place.
func leave(k *identity, place uint32) {
	if k.remove(place); !k.gone() {
		return
	}
	enroll(k, k.subjects, nil)
	k.ns.identities.remove(k)
}

// matchSubjects finds the policies' subjects that pods are among.
func (w *Store) matchSubjects(k *identity) {
	in := scope{namespace: k.ns.name}
	found := w.subjects.matching(in, k.labels, nil)
	if all := w.subjects.everyone(in); all != nil {
		found = append(found, all)
	}
	k.subjects = enroll(k, k.subjects, found)
}

// enroll moves the membership of pods from old selectors to found ones.
func enroll(k *identity, old, found []*selector) []*selector {
	for _, s := range old {
		delete(s.members, k)
	}
	for _, s := range found {
		s.members[k] = struct{}{}
	}
	return found
}

// touch marks the pods that a selector matches to be compiled again.
func (w *Store) touch(s *selector) {
	for k := range s.members {
		for _, p := range k.pods {
			p.reselected = true
			w.dirty(p)
		}
	}
}

// dirty marks a pod to be compiled again.
func (w *Store) dirty(p *pod) {
	if !p.dirty {
		p.dirty = true
		w.dirtyPods = append(w.dirtyPods, p)
	}
}

// renew gives a pod a new epoch, and nothing else.
func (w *Store) renew(p *pod) {
	if !p.renewed {
		p.renewed = true
		w.renewed = append(w.renewed, p)
	}
}

// stale marks an identity: the peer selectors that match its pods must be found again.
func (w *Store) stale(k *identity) {
	if !k.stale {
		k.stale = true
		w.staleIdentities = append(w.staleIdentities, k)
	}
	k.staleOwn = k.staleOwn || !w.wideOnly
}

// SetPolicy adds a policy or replaces it.
func (w *Store) SetPolicy(form *Policy) {
	w.SetEncoded(Encoded{Ref: form.Ref, Digest: form.Digest, Source: form.source(), Form: form})
}

// SetEncoded is SetPolicy for a policy that may not have been read.
func (w *Store) SetEncoded(e Encoded) {
	old := w.policies[e.Ref]
	known := e.Digest != [sha256.Size]byte{}
	newest, ok := w.newest(e.Ref)
	switch {
	case known && ok && newest == e.Digest:
	case known && old != nil && old.sum == e.Digest: // it is back at the version in force
		w.dropDrafts(e.Ref)
	case !w.drafts.on || !w.isLarge(e.Source):
		w.dropDrafts(e.Ref)
		w.put(e.Ref, old, e.Source, func() *policy { return w.admit(e.policy()) }).sum = e.Digest
	case !w.draft(e.draft()):
		w.dropDrafts(e.Ref)
		w.put(e.Ref, old, e.Source, func() *policy { return w.refuseToWait(e.policy()) }).sum = e.Digest
		w.recount = true
	}
}

// put has a policy read, and put in the place of the one before, if there is one.
func (w *Store) put(ref Ref, old *policy, from Source, read func() *policy) *policy {
	ns := w.namespace(ref.Namespace)
	ns.policies++
	w.due = true
	if old != nil {
		w.discount(old)
	}
	p := read()
	w.lastPolicy++
	p.id = w.lastPolicy
	p.mark = mark{maphash.Comparable(w.seeds[0], p.id), maphash.Comparable(w.seeds[1], p.id)}
	if p.large = w.isLarge(from); !p.large {
		ns.size += p.size[0] + p.size[1]
	}
	w.count(p, from)
	w.policies[p.ref] = p
	if len(p.problems) > 0 {
		w.faulty[p] = struct{}{}
	}
	p.subject.subjects[p] = struct{}{}
	w.touch(p.subject)
	if old != nil { // last, so that the selectors they share are never let go
		w.removePolicy(old)
	}
	return p
}

// DeletePolicy removes a policy. One that is not known is no error.
func (w *Store) DeletePolicy(ref Ref) {
	w.dropDrafts(ref)
	if p := w.policies[ref]; p != nil {
		delete(w.policies, ref)
		w.discount(p)
		w.removePolicy(p)
	}
}

func (w *Store) removePolicy(p *policy) {
	delete(w.faulty, p)
	delete(p.subject.subjects, p)
	w.touch(p.subject)
	w.releaseSubject(p.subject)
	if w.drafts.on && p.large {
		w.dying = append(w.dying, p.uses...)
	} else {
		for _, s := range p.uses {
			w.releasePeer(s)
		}
	}
	ns := w.namespaces[p.ref.Namespace]
	ns.policies--
	if !p.large {
		ns.size -= p.size[0] + p.size[1]
	}
	w.dropNamespace(ns)
}

// Problems lists what could not be understood in the policies, by policy.
func (w *Store) Problems() []Problem {
	var all []Problem
	for p := range w.faulty {
		all = append(all, p.problems...)
	}
	slices.SortStableFunc(all, func(a, b Problem) int { return strings.Compare(a.Policy.String(), b.Policy.String()) })
	return all
}
