package policy

import (
	"crypto/sha256"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

const (
	// largeSize is the largest encoded size, in bytes, of a policy that SetPolicy and Commit
	// read and compile themselves, which takes some 2 ms. After UseDrafts, every larger
	// policy becomes a draft.
	largeSize = 16 << 10
	// mostWaiting bounds the total encoded size, in bytes, of the waiting drafts of a
	// namespace. A large policy that would exceed it is refused until there is room.
	mostWaiting = 16 << 20
	// mostDirty is the number of dirty pods (pods that the next Commit must compile) at which
	// Work stops, so that the next Commit is short. Work compares the number after each piece
	// of work, and one piece may exceed it.
	mostDirty = 1000
)

// Draft is a version of a large policy that is not in force yet. The previous version stays
// in force until the draft has been read and compiled, as if the API server had reported the
// new version later. A pod may start in the meantime. If the draft may isolate this pod and the
// previous version does not, the pod's address is deferred: it stays unknown.
type Draft struct {
	ref  Ref
	from Source
	sum  [sha256.Size]byte
	// resource is the resourceVersion of the version: see Encoded.Resource.
	resource string
	reach    Reach
	number   uint64 // position in the order of drafts; a draft takes over the number of the waiting draft that it replaces
	limits   Limits
	shape    shape
	dropped  bool // never comes into force: a later version or a delete replaced it, or the store refused it

	step    step
	err     error // the reason why the policy cannot be read
	cost    int64
	large   *Policy // the policy as read, if its cost exceeds Limits.Policy; otherwise nil
	policy  *policy
	subject *selector
	adopted int         // policy.uses[:adopted] are the selectors that the store has adopted
	fresh   []*selector // adopted selectors that must still be matched with all pods or namespaces
	known   bool        // the selectors in the list "fresh" have been matched
}

// step is the next step of a draft.
type step uint8

const (
	reading    step = iota // Prepare reads the policy
	adopting               // Work adds the policy's selectors to those of the store
	compiling              // Prepare compiles the policy's rules
	installing             // Work puts the policy in force
)

// drafts holds the large policies that are not in force yet. Namespaces take turns, so that
// the policies of one namespace do not delay those of another.
type drafts struct {
	on      bool
	waiting map[Ref]*Draft   // newest draft of each policy, until NextDraft makes it current
	of      map[string][]Ref // keys of the map "waiting" by namespace, in the order of the drafts' numbers
	size    map[string]int   // total encoded size of the waiting drafts by namespace, in bytes
	turns   []string         // namespaces with waiting drafts; NextDraft takes a draft of the first one
	last    uint64           // number of the last draft
	current *Draft           // draft that NextDraft has removed from the map "waiting", until it is in force or dropped
	out     bool             // NextDraft has returned the current draft, and Prepared has not been called yet
}

// UseDrafts makes drafts of large policies from now on, so that they are prepared outside
// of SetPolicy and Commit. The caller must call Prepare on each draft that NextDraft
// returns, on any goroutine, pass the draft to Prepared, and call Work until it reports
// that no work is left.
func (w *Store) UseDrafts() {
	w.drafts = drafts{
		on: true, waiting: make(map[Ref]*Draft), of: make(map[string][]Ref), size: make(map[string]int),
	}
}

// isLarge reports whether a policy is large by its encoded size.
func (w *Store) isLarge(from Source) bool { return len(from.Encoded) > w.large }

// drafted reports whether a version of a policy is first compiled as a draft. This is so for large
// policies in a namespace. Policies of the whole cluster are never drafts. They have at most 50
// rules of 25 peers, only administrators write them, and the largest ones take tens of
// milliseconds, so that they hardly delay other changes. As drafts, they would defer the addresses
// of all pods that start until the draft is ready, in every namespace (see defer.go).
func (w *Store) drafted(ref Ref, from Source) bool {
	return w.drafts.on && !ref.clusterWide() && w.isLarge(from)
}

// draft queues a version of a policy for preparation. It replaces a queued version of the same
// policy. It returns false if there is no room.
func (w *Store) draft(d *Draft) bool {
	in, before := d.ref.Namespace, w.drafts.waiting[d.ref]
	size := w.drafts.size[in] + len(d.from.Encoded)
	if before != nil {
		size -= len(before.from.Encoded)
	}
	if size > mostWaiting {
		return false
	}
	w.drafts.size[in] = size
	w.drafts.waiting[d.ref] = d
	d.limits, d.shape = w.limits, w.shape
	if before != nil {
		d.number = before.number
		return true // d takes the place of the previous draft, which is queued already
	}
	w.drafts.last++
	d.number = w.drafts.last
	if len(w.drafts.of[in]) == 0 {
		w.drafts.turns = append(w.drafts.turns, in)
	}
	w.drafts.of[in] = append(w.drafts.of[in], d.ref)
	return true
}

// unwait removes the waiting draft of a policy, if there is one.
func (w *Store) unwait(ref Ref) {
	d := w.drafts.waiting[ref]
	if d == nil {
		return
	}
	delete(w.drafts.waiting, ref)
	in := ref.Namespace
	w.drafts.size[in] -= len(d.from.Encoded)
	list := w.drafts.of[in]
	i := slices.Index(list, ref)
	if w.drafts.of[in] = slices.Delete(list, i, i+1); len(list) == 1 {
		delete(w.drafts.of, in)
		delete(w.drafts.size, in)
		i = slices.Index(w.drafts.turns, in)
		w.drafts.turns = slices.Delete(w.drafts.turns, i, i+1)
	}
}

// dropDrafts drops all drafts of a policy.
func (w *Store) dropDrafts(ref Ref) {
	w.unwait(ref)
	if d := w.drafts.current; d != nil && d.ref == ref {
		d.dropped = true
	}
}

// newest returns the digest of the newest version of a policy, whether it is in force or a
// draft.
func (w *Store) newest(ref Ref) (sum [sha256.Size]byte, ok bool) {
	if d := w.drafts.waiting[ref]; d != nil {
		return d.sum, true
	}
	if d := w.drafts.current; d != nil && d.ref == ref && !d.dropped {
		return d.sum, true
	}
	if p := w.policies[ref]; p != nil {
		return p.sum, true
	}
	return sum, false
}

// NextDraft returns the next draft to prepare. It returns nil if there is no draft to
// prepare, or if one is being prepared.
func (w *Store) NextDraft() *Draft {
	d := w.drafts.current
	switch {
	case w.drafts.out:
		return nil
	case d == nil && len(w.drafts.turns) > 0:
		in := w.drafts.turns[0]
		d = w.drafts.waiting[w.drafts.of[in][0]]
		more := len(w.drafts.of[in]) > 1
		w.unwait(d.ref)
		if more { // move the namespace to the end of the list
			w.drafts.turns = append(w.drafts.turns[1:], in)
		}
		w.drafts.current = d
	case d == nil, d.step != reading && d.step != compiling, d.dropped:
		return nil
	}
	w.drafts.out = true
	return d
}

// Prepare does the part of the work that takes long and does not need the store. Calls must
// not overlap.
func (d *Draft) Prepare() {
	if d.step == compiling {
		d.compile()
		return
	}
	form, err := d.from.Read(d.ref, d.from.Encoded)
	if d.err = err; err != nil {
		return
	}
	if d.cost = costOf(form, noNodes); d.limits.Policy > 0 && d.cost > d.limits.Policy {
		d.large = form
		return
	}
	d.policy, d.subject = read(form, make(unshared)), subjectOf(form)
	d.policy.cost = d.cost
}

func noNodes(labels.Selector) int { return 0 }

// compile builds the rule sets of this policy only. Policy sets use them unchanged.
func (d *Draft) compile() {
	for direction := range d.policy.rules {
		for i := range d.policy.rules[direction] {
			r := &d.policy.rules[direction][i]
			shareAll(r.some)
			shareAll(r.whole)
		}
		if len(d.policy.rules[direction]) > 0 {
			d.policy.compiled[direction] = compile(filter.Direction(direction), []*policy{d.policy}, d.shape)
		}
	}
}

// shareAll replaces each selector that has a twin, an equal selector of the store, with its twin.
func shareAll(list []*selector) {
	for i, s := range list {
		if s.twin != nil {
			list[i] = s.twin
		}
	}
}

// unshared interns the selectors of one draft, without the store.
type unshared map[selectorKey]*selector

func (u unshared) use(in scope, sel labels.Selector) *selector {
	key := selectorKey{in, sel.String()}
	s := u[key]
	if s == nil {
		s = newSelector(key, sel)
		s.id = uint32(len(u)) // a provisional id, because rule.content tells selectors apart by their ids
		u[key] = s
	}
	return s
}

func (u unshared) useNamespaces(sel labels.Selector) *selector     { return u.use(scope{}, sel) }
func (u unshared) usePeer(in scope, sel labels.Selector) *selector { return u.use(in, sel) }

// useNodes returns nil, because drafts have no peers that are nodes: only cluster-wide policies
// have such peers, and they are never drafts.
func (u unshared) useNodes(labels.Selector) *nodeSelector { return nil }

// Prepared returns a draft to the store. The draft comes from NextDraft, and its method Prepare
// has run.
func (w *Store) Prepared(d *Draft) {
	w.drafts.out = false
	if d.step == compiling {
		d.step = installing
		return
	}
	d.step = adopting
	switch {
	case d.dropped:
	case d.err != nil: // cannot happen: from.Read decodes what its own package has encoded
		d.dropped, w.due = true, true
	case d.large != nil:
		w.stamp(w.put(d.ref, w.policies[d.ref], d.from, func() *policy { return w.refuseTooLarge(d.large, d.cost) }), d.sum, d.resource)
		d.dropped = true
	}
}

// Work does outstanding work for large policies, in small pieces, until more() returns false.
// The first result reports whether work is left, the second whether the work that was done
// needs a Commit.
func (w *Store) Work(more func() bool) (again, commit bool) {
	if !w.drafts.on {
		return false, false
	}
	w.match() // first handle the selectors that were added or removed since the last Commit
	for again = w.workOn(); again && len(w.dirtyPods) < mostDirty && more(); {
		again = w.workOn()
	}
	return again, w.due || len(w.dirtyPods) > 0 || len(w.dirtyNS) > 0
}

// workOn does one piece of work, or returns false if there is none.
func (w *Store) workOn() bool {
	d := w.drafts.current
	switch {
	case len(w.dying) > 0:
		w.releaseDying()
	case d != nil && d.dropped && !w.drafts.out:
		w.drafts.current = nil
		if d.policy != nil {
			w.dying = append(w.dying, d.policy.uses[:d.adopted]...)
			w.releasePrefixes(d.policy)
		}
	case d != nil && d.step == adopting && !w.drafts.out:
		w.adoptOne(d)
	case d != nil && d.step == installing && d.known:
		w.install(d)
	case w.sweep != nil:
		w.sweepOne()
	case d != nil && d.step > adopting && !d.known, d == nil && len(w.drafts.turns) == 0 && !w.limbo.empty():
		w.beginSweep(d)
	default:
		return false
	}
	return true
}

// prefixesPerPiece bounds the prefixes that one call of adoptOne adds.
const prefixesPerPiece = 256

// adoptOne adds the next prefixes of a draft to the store's prefixes, or the next selector to the
// store's selectors.
func (w *Store) adoptOne(d *Draft) {
	if len(d.policy.named) > 0 {
		w.usePrefixes(d.policy, prefixesPerPiece)
		return
	}
	if d.adopted == len(d.policy.uses) {
		d.step, d.known = compiling, len(d.fresh) == 0
		return
	}
	s := d.policy.uses[d.adopted]
	if in := s.scope.selector; in != nil {
		in, isNew := w.nsSelectors.adopt(in)
		s.scope.selector = in
		d.addFresh(in, isNew)
	}
	s, isNew := w.peers.adopt(s)
	d.addFresh(s, isNew)
	d.policy.uses[d.adopted] = s
	d.adopted++
}

// addFresh adds a selector to d.fresh if it must still be matched with all pods or
// namespaces.
func (d *Draft) addFresh(s *selector, isNew bool) {
	if isNew || s.fresh {
		s.fresh = true
		d.fresh = append(d.fresh, s)
	}
}

// install puts a draft in force.
func (w *Store) install(d *Draft) {
	w.drafts.current = nil
	p := w.put(d.ref, w.policies[d.ref], d.from, func() *policy {
		d.policy.subject = w.useSubject(d.subject)
		return d.policy
	})
	w.stamp(p, d.sum, d.resource)
	w.recount = w.recount || w.limits.Policies > 0 && w.cost > w.limits.Policies
}
