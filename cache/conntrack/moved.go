package conntrack

import (
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
)

// step is a publication that follow has not handled yet.
type step struct {
	before, now *policy.Snapshot
	changes     policy.Changes
}

// follower handles one step: it finds the IDs that addresses have moved from and to, evaluates the keys
// with these IDs, and adds the keys that the connections have now.
type follower struct {
	*TrackedFlows
	step
	evaluate func(*policy.Snapshot, *filter.Key) filter.Action
	// use holds the IDs that addresses had before their pods went away. These addresses may still have
	// connections, with the keys of these IDs.
	use      map[policy.ID]bool
	moves    map[policy.ID][]target
	addrs    map[[2]policy.ID][]netip.Addr // those that moved from one ID to the other
	by       map[policy.ID][]netip.Addr    // the changed addresses, by the ID that they have now
	affected map[netip.Addr]bool           // addresses with connections whose answer differs, or may
}

// target is an ID to which addresses move.
type target struct {
	id     policy.ID
	member netip.Addr // invalid if none is known
	// alone is set for an address whose pod is gone and whose next pod is not known. Its connections keep
	// the keys of the ID before: the address needs a sweep when it has a pod.
	alone bool
	// same is set for outside addresses that are in other prefixes now. Verdicts between them and an ID that
	// stays do not change (see policy.ID).
	same bool
}

// stays is true for the zero target, which stands for an end whose ID stays.
func (to target) stays() bool { return to == target{} }

// aloneBit is set in the IDs of targets that are alone. No key has them.
const aloneBit = pendingBit | 1<<62

// follow handles a step, and adds to affected the changed addresses whose connections need a sweep. use
// holds the IDs that addresses with needLater had.
func (t *TrackedFlows) follow(one step, use map[policy.ID]bool, affected map[netip.Addr]bool, evaluate func(*policy.Snapshot, *filter.Key) filter.Action) {
	f := &follower{
		TrackedFlows: t, step: one, evaluate: evaluate, use: use, affected: affected,
		moves: make(map[policy.ID][]target), addrs: make(map[[2]policy.ID][]netip.Addr), by: make(map[policy.ID][]netip.Addr),
	}
	f.affectNodes()
	for k, was := range f.concerned() {
		f.move(k, was)
	}
}

// affectNodes makes addresses need a sweep that had a pod, and now are addresses of the node of other pods.
// IDs do not decide about packets between these (see policy.DecidedByIDs).
func (f *follower) affectNodes() {
	unowned := make(map[netip.Addr]bool)
	for _, a := range f.changes {
		if e, pending := f.now.Lookup(a); e == nil && pending == policy.Known {
			unowned[a] = true
		}
	}
	if len(unowned) == 0 {
		return
	}
	for _, e := range f.now.Endpoints() {
		for _, a := range e.Hosts() {
			if unowned[a] {
				f.affected[a] = true
			}
		}
	}
}

// concerned returns the keys with IDs from which addresses have moved. It returns none if there are too
// many.
func (f *follower) concerned() map[policy.IDKey]answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.changes {
		f.moveAddr(a)
	}
	f.movePrefixes()
	if len(f.moves)+len(f.by) == 0 {
		return nil
	}
	keys, added := make(map[policy.IDKey]answer), 0
	for k, was := range f.keys {
		if (k.Src|k.Dst)&pendingBit != 0 {
			f.evaluatePending(k, was)
		}
		if src, dst := len(f.moves[k.Src]), len(f.moves[k.Dst]); src > 0 || dst > 0 {
			keys[k] = was
			added += (1+src)*(1+dst) - 1
		}
	}
	if added > f.maxMoved {
		f.giveUp(keys)
		return nil
	}
	for id := range f.lost {
		for _, to := range f.moves[id] {
			f.affect(id, to.id)
		}
		for _, a := range f.by[id] { // it may have the key of a pending address
			f.affected[a] = true
		}
	}
	return keys
}

// moveAddr finds out to which ID an address has moved.
func (f *follower) moveAddr(a netip.Addr) {
	from, known := f.idBefore(a)
	is, to := f.now.Identify(a)
	alone := is == nil && f.now.Pending(a) != policy.Known
	if f.members[from] == a {
		delete(f.members, from)
	}
	switch {
	case alone:
		if id, ok := f.pending[a]; ok {
			f.by[id] = append(f.by[id], a)
		}
		to |= aloneBit
	case f.members[to] == netip.Addr{}:
		f.members[to] = a
		fallthrough
	default:
		f.by[to] = append(f.by[to], a)
	}
	if !known || from == to {
		return
	}
	f.between(from, target{id: to, member: a, alone: alone})
	way := [2]policy.ID{from, to}
	f.addrs[way] = append(f.addrs[way], a)
}

// idBefore returns the ID that an address had. It returns false if no key was tracked for the address: it
// had no endpoint and was not pending, so that it needs a sweep (see Follower.need).
func (f *follower) idBefore(a netip.Addr) (policy.ID, bool) {
	if was, id := f.before.Identify(a); was != nil {
		return id, true
	}
	id, ok := f.pending[a]
	return id, ok
}

// between adds a target, unless the ID already has one with the same ID.
func (f *follower) between(from policy.ID, to target) {
	for _, known := range f.moves[from] {
		if known.id == to.id {
			return
		}
	}
	f.moves[from] = append(f.moves[from], to)
}

// movePrefixes finds out to which IDs addresses without an endpoint have moved.
func (f *follower) movePrefixes() {
	set, removed := f.now.PrefixChanges(f.before)
	for _, p := range set {
		was, _ := f.before.LongestPrefix(p.Prefix)
		to := target{id: p.ID, same: true}
		if e, id := f.now.Identify(p.Prefix.Addr()); e == nil && id == p.ID {
			to.member = p.Prefix.Addr()
		}
		f.between(was.ID, to)
	}
	for _, p := range removed {
		was, _ := f.before.LongestPrefix(p)
		is, _ := f.now.LongestPrefix(p)
		f.between(was.ID, target{id: is.ID, member: f.members[is.ID], same: true})
	}
}

// giveUp makes all moved addresses need sweeps, now and later, because their keys are too many.
func (f *follower) giveUp(concerned map[policy.IDKey]answer) {
	for from, targets := range f.moves {
		for _, to := range targets {
			f.lost[to.id] = struct{}{}
			f.affect(from, to.id)
		}
	}
	for k := range concerned {
		f.lost[k.Src], f.lost[k.Dst] = struct{}{}, struct{}{}
	}
}

// move adds the keys that the connections of a key have now, and finds out if their answers differ. It
// holds the lock for one key only, because workers wait for it.
func (f *follower) move(k policy.IDKey, was answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, src := range append([]target{{}}, f.moves[k.Src]...) {
		for _, dst := range append([]target{{}}, f.moves[k.Dst]...) {
			f.moveTo(k, was, src, dst)
		}
	}
}

func (f *follower) moveTo(k policy.IDKey, was answer, src, dst target) {
	next := k
	if !src.stays() {
		next.Src = src.id
	}
	if !dst.stays() {
		next.Dst = dst.id
	}
	if next == k {
		return
	}
	if k.Src == k.Dst && k.Src&pendingBit != 0 { // an address and itself, which the key of an ID does not stand for
		f.affect(k.Src, next.Src)
		f.affect(k.Dst, next.Dst)
		return
	}
	is := f.answerAfter(next, src, dst, was)
	if is != was || is == unsure || is == mixed || f.use[next.Src] || f.use[next.Dst] {
		f.affect(k.Src, next.Src)
		f.affect(k.Dst, next.Dst)
	}
	if !src.alone && !dst.alone {
		f.add(next, is)
	}
}

// answerAfter returns the answer for the key that connections with the answer "was" have now. src and dst
// are the moves of its ends.
func (f *follower) answerAfter(k policy.IDKey, src, dst target, was answer) answer {
	if known, ok := f.keys[k]; ok && known != unsure && known != mixed && (k.Src|k.Dst)&pendingBit == 0 {
		return known
	}
	if src.stays() && dst.same || dst.stays() && src.same {
		return was
	}
	return f.answer(k, src, dst)
}

// answer evaluates a key.
func (f *follower) answer(k policy.IDKey, src, dst target) answer {
	srcAddr, ok1 := f.member(k.Src, src)
	dstAddr, ok2 := f.member(k.Dst, dst)
	if !ok1 || !ok2 {
		return unsure
	}
	return answerOf(f.evaluate(f.now, &filter.Key{Src: srcAddr.As16(), Dst: dstAddr.As16(), Port: k.Port, Protocol: k.Protocol, Transport: k.Transport}))
}

// member returns an address with an ID, or that of a pending address.
func (f *follower) member(id policy.ID, to target) (netip.Addr, bool) {
	a := to.member
	if to.stays() {
		a = f.members[id]
	}
	if !a.IsValid() || id&pendingBit != 0 {
		return a, a.IsValid()
	}
	e, now := f.now.Identify(a)
	return a, now == id && (e != nil || f.now.Pending(a) == policy.Known)
}

// evaluatePending makes the changed addresses need a sweep that now have one of the IDs of a key, if the
// answer of the key differs. One end of the key is pending: the fail mode may have allowed it, although
// policies deny it, and then it is denied at the next change.
func (f *follower) evaluatePending(k policy.IDKey, was answer) {
	addrs := append(slices.Clip(f.by[k.Src]), f.by[k.Dst]...)
	if len(addrs) > 0 && f.answer(k, target{}, target{}) != was {
		for _, a := range addrs {
			f.affected[a] = true
		}
	}
}

// affect makes the addresses that moved between two IDs need a sweep.
func (f *follower) affect(from, to policy.ID) {
	if from == to {
		return
	}
	way := [2]policy.ID{from, to}
	for _, a := range f.addrs[way] {
		f.affected[a] = true
	}
	delete(f.addrs, way) // they are done
}
