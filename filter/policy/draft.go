package policy

import (
	"crypto/sha256"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

const (
	// largeSize bounds the encoded size of policies that are read and compiled within
	// SetPolicy and Commit, which takes some 2 ms at this size.
	largeSize = 16 << 10
	// mostWaiting bounds the bytes of a namespace's drafts that wait. A policy beyond is
	// refused until there is room.
	mostWaiting = 16 << 20
	// mostDirty bounds the pods that one Work leaves for Commit, if they do not have the
	// same labels.
	mostDirty = 1000
)

// Draft is a version of a large policy that is not in force yet. The version before stays
// in force until Prepare has read and compiled this one, as if the API had reported it
// later. The address of a pod that starts meanwhile stays unknown (deferred) if this version
// may isolate the pod and the version before does not.
type Draft struct {
	ref     Ref
	from    Source
	sum     [sha256.Size]byte
	reach   Reach
	number  uint64 // grows with each; a later version that waits in its place has the same
	limits  Limits
	shape   shape
	dropped bool // a later version or a delete replaced it

	step    step
	err     error // it cannot be read
	cost    int64
	large   *Policy // if it is too large
	policy  *policy
	subject *selector
	adopted int         // of policy.uses
	fresh   []*selector // of these
	known   bool        // pods know these
}

// step is what happens to a draft next.
type step uint8

const (
	reading    step = iota // by Prepare
	adopting               // by Work
	compiling              // by Prepare
	installing             // by Work
)

// drafts are the large policies that are not in force yet, by namespace: these take
// turns, so that the policies of one do not hold up those of another.
type drafts struct {
	on      bool
	waiting map[Ref]*Draft // the last version of each
	of      map[string][]Ref
	size    map[string]int // of of, in bytes
	turns   []string
	last    uint64 // number of a draft
	current *Draft
	out     bool // current is being prepared
}

// UseDrafts has large policies prepared outside of SetPolicy and Commit from now on. The
// caller prepares each draft of NextDraft, on any goroutine, hands it back to Prepared,
// and calls Work until that returns false.
func (w *Store) UseDrafts() {
	w.drafts = drafts{
		on: true, waiting: make(map[Ref]*Draft), of: make(map[string][]Ref), size: make(map[string]int),
	}
}

// isLarge reports whether a policy is a draft before it is in force.
func (w *Store) isLarge(from Source) bool { return len(from.Encoded) > w.large }

// draft has a version of a policy wait. It replaces the one that waits. It returns false
// if there is no room.
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
		return true // in its place
	}
	w.drafts.last++
	d.number = w.drafts.last
	if len(w.drafts.of[in]) == 0 {
		w.drafts.turns = append(w.drafts.turns, in)
	}
	w.drafts.of[in] = append(w.drafts.of[in], d.ref)
	return true
}

// unwait forgets the version of a policy that waits.
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

// dropDrafts forgets what is not in force of a policy.
func (w *Store) dropDrafts(ref Ref) {
	w.unwait(ref)
	if d := w.drafts.current; d != nil && d.ref == ref {
		d.dropped = true
	}
}

// newest returns the last version of a policy, by the sum of its spec.
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

// NextDraft returns a draft that is to be prepared, or nil while there is none or one is
// being prepared.
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
		if more { // its namespace goes behind the others
			w.drafts.turns = append(w.drafts.turns[1:], in)
		}
		w.drafts.current = d
	case d == nil, d.step != reading && d.step != compiling, d.dropped:
		return nil
	}
	w.drafts.out = true
	return d
}

// Prepare does what takes long and needs nothing of the store. It is called by one
// goroutine at a time.
func (d *Draft) Prepare() {
	if d.step == compiling {
		d.compile()
		return
	}
	form, err := d.from.Read(d.ref, d.from.Encoded)
	if d.err = err; err != nil {
		return
	}
	if d.cost = costOf(form); d.limits.Policy > 0 && d.cost > d.limits.Policy {
		d.large = form
		return
	}
	d.policy, d.subject = read(form, make(unshared)), subjectOf(form)
	d.policy.cost = d.cost
}

// compile builds the policy's own rule sets, which groups then use as they are.
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

// shareAll replaces selectors by those that the store shares.
func shareAll(list []*selector) {
	for i, s := range list {
		if s.twin != nil {
			list[i] = s.twin
		}
	}
}

// unshared gives a draft selectors of its own.
type unshared map[selectorKey]*selector

func (u unshared) use(in scope, sel labels.Selector) *selector {
	key := selectorKey{in, sel.String()}
	s := u[key]
	if s == nil {

		s = newSelector(key, sel)
		s.id = uint32(len(u)) // by which the reader tells rules apart
		u[key] = s
	}
	return s
}

func (u unshared) useNamespaces(sel labels.Selector) *selector     { return u.use(scope{}, sel) }
func (u unshared) usePeer(in scope, sel labels.Selector) *selector { return u.use(in, sel) }

// Prepared returns a draft from NextDraft to the store after its Prepare.
func (w *Store) Prepared(d *Draft) {
	w.drafts.out = false
	if d.step == compiling {
		d.step = installing
		return
	}
	d.step = adopting
	switch {
	case d.dropped:
	case d.err != nil: // cannot be: it was encoded here
		d.dropped, w.due = true, true
	case d.large != nil:
		w.put(d.ref, w.policies[d.ref], d.from, func() *policy { return w.refuseTooLarge(d.large, d.cost) }).sum = d.sum
		d.dropped = true
	}
}

// Work does a part of what large policies leave to do, as long as more returns true. It
// reports whether there is more to do, and whether a Commit is due for what it has done.
func (w *Store) Work(more func() bool) (again, commit bool) {
	if !w.drafts.on {
		return false, false
	}
	w.match() // of the rest nothing is left half done
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

// adoptOne has the store share one more selector of a draft.
func (w *Store) adoptOne(d *Draft) {
	if d.adopted == len(d.policy.uses) {
		d.step, d.known = compiling, len(d.fresh) == 0
		return
	}
	s := d.policy.uses[d.adopted]
	if in := s.scope.selector; in != nil {
		in, isNew := w.nsSelectors.adopt(in)
		s.scope.selector = in
		d.note(in, isNew)
	}
	s, isNew := w.peers.adopt(s)
	d.note(s, isNew)
	d.policy.uses[d.adopted] = s
	d.adopted++
}

// note remembers a selector that pods or namespaces do not know yet.
func (d *Draft) note(s *selector, isNew bool) {
	if isNew || s.fresh {
		s.fresh = true
		d.fresh = append(d.fresh, s)
	}
}

// install puts a draft in force.
func (w *Store) install(d *Draft) {
	w.drafts.current = nil
	w.put(d.ref, w.policies[d.ref], d.from, func() *policy {
		d.policy.subject = w.useSubject(d.subject)
		return d.policy
	}).sum = d.sum
	w.recount = w.recount || w.limits.Policies > 0 && w.cost > w.limits.Policies
}
