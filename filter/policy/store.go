package policy

import (
	"crypto/sha256"
	"hash/maphash"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// Store holds the known state of the cluster: namespaces, pods, policies, and this node.
// Objects are set one by one, in any order. The store records what each change affects, and
// Commit compiles only that.
//
// A Store is not safe for concurrent use. It keeps references to the objects that it is
// given, which must not be changed afterwards.
type Store struct {
	namespaces map[string]*namespace
	pods       map[objectKey]*pod
	policies   map[Ref]*policy
	deleted    []Ref                   // that were deleted since the last Commit
	tiers      [numTiers]int           // the number of policies of each tier
	overlaps   map[overlap]int         // the number of policy sets that have the overlap
	faulty     map[*policy]struct{}    // policies that have problems
	faultyNS   map[string]Problem      // problems of namespaces, by name
	node       map[netip.Addr]struct{} // this node's addresses; if kube-proxy uses IPVS, they include the addresses of all Services
	self       *Endpoint               // the owner of the node's addresses
	local      local
	ranges     rangeSources
	nodes      nodes
	unknowns   unknowns

	nsSelectors selectors // namespace selectors of peers
	scopes      selectors // namespace selectors of subjects
	subjects    selectors // pod selectors of subjects
	peers       selectors // pod selectors of peers

	owners     map[netip.Addr]*pod   // a live pod that claims the address
	rivals     map[netip.Addr][]*pod // further live pods that claim the address; rarely any
	hosts      map[hostKey]*host
	policySets map[policySetKey]*policySet
	shape      shape  // bounds the size of rule sets
	cluster    budget // of the policies that are in no namespace

	drafts   drafts
	deferred deferred
	versions versions
	logs     logs
	large    int         // policies with more encoded bytes are large
	dying    []*selector // peer selectors of removed large policies; one entry for each use that is still to be released
	sweep    *sweep      // nil if none is in progress
	limbo    limbo
	due      bool // a policy came into force or was refused since the last Commit

	limits    Limits
	cost      int64         // estimated bytes of all policies that are not refused
	refused   int           // encoded bytes of refused policies that are kept
	overdrawn bool          // some policies are refused because of limits.Policies
	recount   bool          // balance must decide again which policies are refused
	denial    filter.Denial // of this node
	rejecting int           // policies and namespaces that reject
	toNode    int           // policies that may deny flows from pods to their node
	classes   map[string]*class

	selectedBy [numTiers][]*policy // scratch; see selecting

	dirtyPods        []*pod // pods that are dirty, each once
	dirtyAddrs       map[netip.Addr]struct{}
	touched          []*pod      // pods whose endpoints this Commit has replaced
	staleIdentities  []*identity // identities that are stale, each once
	staleNS          bool        // a namespace selector was added or removed
	added            []*selector // peer selectors added since the last match
	removed          []*selector // peer selectors removed since the last match
	ids, spare, mask idBits

	prefixes prefixes
	kinds    map[kind]*kindUse
	groups   map[groupKey]*group
	few      int       // a set of up to that many addresses is moved to other groups one by one
	addrs    bart.Lite // the addresses in table

	table    *addrTable              // the owners and IDs of addresses; shared with the last snapshot
	everyone []idSet                 // peer selectors that match all pods of a namespace, by the id of the namespace; shared with the last snapshot
	unusedNS []uint32                // namespace ids that can be reused
	dirtyNS  map[*namespace]struct{} // namespaces whose entry everyone[ns.id] is out of date
	staleIn  []*namespace            // namespaces with identities that affectIn has tested since the last match
	compiled []*identity             // identities with a pod that this Commit has compiled; see identity.recent
	// If wideOnly is set, stale() marks an identity to be matched only with the peer selectors
	// whose scope is a namespace selector.
	wideOnly      bool
	seeds         [2]maphash.Seed
	lastEpoch     uint64
	lastID        ID
	lastNumber    uint64 // number of the last snapshot
	lastPolicy    uint64
	lastPolicySet uint64
}

// NewStore returns an empty store.
func NewStore() *Store {
	w := &Store{
		namespaces:  make(map[string]*namespace),
		pods:        make(map[objectKey]*pod),
		policies:    make(map[Ref]*policy),
		faulty:      make(map[*policy]struct{}),
		faultyNS:    make(map[string]Problem),
		nsSelectors: newSelectors(),
		scopes:      newSelectors(),
		subjects:    newSelectors(),
		peers:       newSelectors(),
		owners:      make(map[netip.Addr]*pod),
		rivals:      make(map[netip.Addr][]*pod),
		hosts:       make(map[hostKey]*host),
		nodes:       newNodes(),
		unknowns:    newUnknowns(),
		policySets:  make(map[policySetKey]*policySet),
		overlaps:    make(map[overlap]int),
		shape:       defaultShape(),
		limits:      DefaultLimits(),
		deferred:    make(deferred),
		ranges:      newRangeSources(),
		large:       largeSize,
		classes:     make(map[string]*class),
		dirtyAddrs:  make(map[netip.Addr]struct{}),
		dirtyNS:     make(map[*namespace]struct{}),
		table:       new(addrTable),
		prefixes:    newPrefixes(),
		kinds:       make(map[kind]*kindUse),
		groups:      make(map[groupKey]*group),
		few:         fewAddrs,
		seeds:       [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()},
	}
	w.ids.few = 32
	w.self = &Endpoint{epoch: w.newEpoch()}
	return w
}

// SetNode sets this node's own addresses. Traffic from and to them is always allowed.
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

// SetPod adds or updates a pod. If a [Draft] may isolate the pod, the pod's new addresses are
// deferred: they stay unknown until no such Draft is left (see the type deferred).
func (w *Store) SetPod(o *Pod) {
	p := readPod(o)
	p.local = w.local.node != "" && o.Node == w.local.node
	if old := w.pods[p.objectKey]; old != nil {
		w.replacePod(old, p, o.Labels)
		return
	}
	if len(p.addrs) == 0 {
		return // the pod has no address of its own, or none yet
	}
	p.host = w.useHost(p.host)
	w.pods[p.objectKey] = p
	w.join(p, w.namespace(p.namespace), o.Labels)
	w.claim(p, nil)
	w.dirty(p)
}

// replacePod updates a known pod in place, so that references to it stay valid.
func (w *Store) replacePod(p, now *pod, set labels.Set) {
	otherLabels := !labels.Equals(p.identity.labels, set)
	if !otherLabels && p.equalButLabels(now) {
		return
	}
	if len(now.addrs) == 0 {
		w.DeletePod(p.namespace, p.name)
		return
	}
	known := w.known(p)
	if p.created != now.created {
		known = nil // the pod was replaced by a new one with the same name
	}
	w.disclaim(p)
	host := p.host
	p.addrs, p.host, p.ports, p.created = now.addrs, w.useHost(now.host), now.ports, now.created
	w.releaseHost(host)
	p.local, p.ending, p.about = now.local, now.ending, now.about
	w.claim(p, known)
	if otherLabels {
		identity, place := p.identity, p.place
		w.join(p, identity.ns, set)
		p.due |= relabeled
		leave(identity, place)
	} else {
		p.identity.describe(p)
	}
	w.dirty(p)
}

// DeletePod removes a pod. It ignores a pod that is not known: a deletion may be reported
// twice, and pods without addresses are not stored.
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

// claim records a pod as an owner or rival of its addresses. "known" lists the addresses that
// the store already knew as this pod's. claim may defer the pod's other addresses (see the type
// deferred).
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

// join adds a pod to the identity with its labels, and creates the identity if necessary.
func (w *Store) join(p *pod, ns *namespace, set labels.Set) {
	p.due |= reselected
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

// leave removes the pod k.pods[place] from the identity k. If that was the last pod, leave
// removes the identity too.
func leave(k *identity, place uint32) {
	if k.remove(place); !k.gone() {
		return
	}
	enroll(k, k.subjects, nil)
	k.ns.identities.remove(k)
}

// dirty marks a pod to be compiled again.
func (w *Store) dirty(p *pod) {
	if !p.due.has(toCompile) {
		p.due |= toCompile
		w.dirtyPods = append(w.dirtyPods, p)
	}
}

// renew marks a pod to be compiled again, and to get a new epoch.
func (w *Store) renew(p *pod) {
	p.due |= toRenew
	w.dirty(p)
}

// stale marks an identity: the next call of matchPods matches it with all peer selectors again.
// But if wideOnly was set at each call of stale for this identity, matchPods uses only the
// selectors whose scope is a namespace selector.
func (w *Store) stale(k *identity) {
	if !k.stale {
		k.stale = true
		w.staleIdentities = append(w.staleIdentities, k)
	}
	k.staleOwn = k.staleOwn || !w.wideOnly
}

// SetPolicy adds or replaces a policy.
func (w *Store) SetPolicy(form *Policy) {
	w.SetEncoded(Encoded{Ref: form.Ref, Digest: form.Digest, Source: form.source(), Form: form, Log: form.Log})
}

// SetEncoded adds or replaces a policy that may not have been read yet.
func (w *Store) SetEncoded(e Encoded) {
	w.logs.put(e.Ref, e.Log)
	old := w.policies[e.Ref]
	known := e.Digest != [sha256.Size]byte{}
	newest, ok := w.newest(e.Ref)
	switch {
	case known && ok && newest == e.Digest:
		w.setNewest(e.Ref, e.Resource)
	case known && old != nil && old.sum == e.Digest: // the new version is the one in force
		w.dropDrafts(e.Ref)
		w.setResource(old, e.Resource)
	case !w.drafted(e.Ref, e.Source):
		w.dropDrafts(e.Ref)
		w.stamp(w.put(e.Ref, old, e.Source, func() *policy { return w.admit(e.policy()) }), e.Digest, e.Resource)
	case !w.draft(e.draft()):
		w.dropDrafts(e.Ref)
		w.stamp(w.put(e.Ref, old, e.Source, func() *policy { return w.refuseOverBacklog(e.policy()) }), e.Digest, e.Resource)
		w.recount = true
	}
}

// put reads a policy and puts it in force. It replaces the previous version, the parameter
// "old", which may be nil.
func (w *Store) put(ref Ref, old *policy, from Source, read func() *policy) *policy {
	if !ref.clusterWide() {
		w.namespace(ref.Namespace).policies++
	}
	w.due = true
	if old != nil {
		w.discount(old)
	}
	p := read()
	w.enterPrefixes(p)
	w.lastPolicy++
	p.id = w.lastPolicy
	p.mark = mark{maphash.Comparable(w.seeds[0], p.id), maphash.Comparable(w.seeds[1], p.id)}
	if p.large = w.isLarge(from); !p.large {
		w.budgetOf(ref).size += p.size[0] + p.size[1]
	}
	w.count(p, from)
	w.policies[p.ref] = p
	w.tiers[p.tier]++
	if p.mayDenyToNode() {
		w.toNode++
	}
	if p.unsafe = p.needsNamespaces(); p.unsafe {
		w.unknowns.policies++
	}
	w.countDenial(p.denial, 1)
	if len(p.problems) > 0 {
		w.faulty[p] = struct{}{}
	}
	if len(p.nodes) > 0 {
		w.nodes.users[p] = struct{}{}
	}
	p.subject.attach(p)
	w.touch(p.subject)
	if old != nil { // remove the old version last: selectors that both versions use then stay in use
		w.removePolicy(old)
	}
	return p
}

// DeletePolicy removes a policy. It ignores a policy that is not known.
func (w *Store) DeletePolicy(ref Ref) {
	w.logs.put(ref, LogSetting{})
	w.dropDrafts(ref)
	if p := w.policies[ref]; p != nil {
		delete(w.policies, ref)
		w.deleted = append(w.deleted, ref)
		w.discount(p)
		w.removePolicy(p)
	}
}

func (w *Store) removePolicy(p *policy) {
	w.tiers[p.tier]--
	w.versions.digest.subtract(p.digest())
	if p.mayDenyToNode() {
		w.toNode--
	}
	if p.unsafe {
		w.unknowns.policies--
	}
	w.countDenial(p.denial, -1)
	delete(w.faulty, p)
	p.subject.detach(p)
	w.touch(p.subject)
	w.releaseSubject(p.subject)
	w.releaseNodes(p)
	w.releasePrefixes(p)
	if w.drafts.on && p.large {
		w.dying = append(w.dying, p.uses...)
	} else {
		for _, s := range p.uses {
			w.releasePeer(s)
		}
	}
	if !p.large {
		w.budgetOf(p.ref).size -= p.size[0] + p.size[1]
	}
	if !p.ref.clusterWide() {
		ns := w.namespaces[p.ref.Namespace]
		ns.policies--
		w.dropNamespace(ns)
	}
}

// Problems returns the problems of the namespaces and of all policies in force, sorted by name.
func (w *Store) Problems() []Problem {
	var all []Problem
	for _, name := range slices.Sorted(maps.Keys(w.faultyNS)) {
		all = append(all, w.faultyNS[name])
	}
	all = append(all, w.logs.problems()...)
	for p := range w.faulty {
		all = append(all, p.problems...)
	}
	slices.SortStableFunc(all, func(a, b Problem) int { return strings.Compare(a.Policy.String(), b.Policy.String()) })
	return all
}
