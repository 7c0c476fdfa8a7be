package conntrack

import (
	"net/netip"

	"sluice/filter"
	"sluice/filter/policy"
)

// step is a publication that follow has not handled yet.
type step struct {
	before, now *policy.Snapshot
	changes     policy.Changes
}

// transition handles one step: it finds the IDs that addresses have moved from and to, evaluates the keys
// with these IDs, and adds the keys that the connections have now.
type transition struct {
	*TrackedFlows
	step
	evaluate func(*policy.Snapshot, *filter.Key) filter.Action
	// gone holds the IDs that addresses had before their pods went away. These addresses may still have
	// connections, with the keys of these IDs.
	gone     map[policy.ID]bool
	moves    map[policy.ID][]target
	addrs    map[[2]policy.ID][]netip.Addr // those that moved from one ID to the other
	by       map[policy.ID][]netip.Addr    // the changed addresses, by the ID that they have now
	pods     map[policy.ID]*[2]netip.Addr  // up to two addresses with an ID
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

// follow handles a step, and adds to affected the changed addresses whose connections need a sweep. gone
// holds the IDs that addresses with needLater had.
func (t *TrackedFlows) follow(one step, gone map[policy.ID]bool, affected map[netip.Addr]bool, evaluate func(*policy.Snapshot, *filter.Key) filter.Action) {
	f := &transition{
		TrackedFlows: t, step: one, evaluate: evaluate, gone: gone, affected: affected,
		moves: make(map[policy.ID][]target), addrs: make(map[[2]policy.ID][]netip.Addr), by: make(map[policy.ID][]netip.Addr),
		pods: make(map[policy.ID]*[2]netip.Addr),
	}
	f.affectNodes()
	keys := f.concerned()
	f.findPods(keys)
	for k, was := range keys {
		f.move(k, was)
	}
}

// affectNodes marks for a sweep the addresses that had a pod and now belong to the node of other pods.
// IDs do not decide about packets between these (see policy.DecidedByIDs).
func (f *transition) affectNodes() {
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
// many. With 32,768 keys it takes up to 2 ms, for which a worker with a new key waits.
func (f *transition) concerned() map[policy.IDKey]answer {
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
func (f *transition) moveAddr(a netip.Addr) {
	from, known := f.idBefore(a)
	is, to := f.now.Identify(a)
	alone := is == nil && f.now.Pending(a) != policy.Known
	switch {
	case alone:
		if id, ok := f.pending[a]; ok {
			f.by[id] = append(f.by[id], a)
		}
		to |= aloneBit
	default:
		if is == nil {
			f.needOutside(to, a)
		}
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
func (f *transition) idBefore(a netip.Addr) (policy.ID, bool) {
	if was, id := f.before.Identify(a); was != nil {
		return id, true
	}
	id, ok := f.pending[a]
	return id, ok
}

// between adds a target, unless the ID already has one with the same ID.
func (f *transition) between(from policy.ID, to target) {
	for _, known := range f.moves[from] {
		if known.id == to.id {
			return
		}
	}
	f.moves[from] = append(f.moves[from], to)
}

// movePrefixes finds out to which IDs addresses without an endpoint have moved.
func (f *transition) movePrefixes() {
	set, removed := f.now.PrefixChanges(f.before)
	for _, p := range set {
		was, _ := f.before.LongestPrefix(p.Prefix)
		f.needOutside(p.ID, p.Prefix.Addr()) // members finds out if the address has the ID
		f.between(was.ID, target{id: p.ID, same: true})
	}
	for _, p := range removed {
		was, _ := f.before.LongestPrefix(p)
		is, _ := f.now.LongestPrefix(p)
		f.needOutside(is.ID, p.Addr())
		f.between(was.ID, target{id: is.ID, same: true})
	}
}

// needOutside stores an address without an endpoint, unless one is known for the ID.
func (f *transition) needOutside(id policy.ID, a netip.Addr) {
	if !f.outside[id][familyOf(a)].IsValid() {
		f.setOutside(id, a)
	}
}

// findPods finds addresses with the IDs of keys and with those that their ends have now.
func (f *transition) findPods(keys map[policy.IDKey]answer) {
	if len(keys) == 0 {
		return
	}
	for k := range keys {
		for _, id := range []policy.ID{k.Src, k.Dst} {
			f.pods[id] = new([2]netip.Addr)
			for _, to := range f.moves[id] {
				f.pods[to.id] = new([2]netip.Addr)
			}
		}
	}
	for a, id := range f.now.IDs() {
		switch known := f.pods[id]; {
		case known == nil:
		case !known[0].IsValid():
			known[0] = a
		case !known[1].IsValid():
			known[1] = a
		}
	}
}

// giveUp marks all moved addresses for a sweep, and their IDs as lost, because their keys are too many.
func (f *transition) giveUp(concerned map[policy.IDKey]answer) {
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
func (f *transition) move(k policy.IDKey, was answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, src := range append([]target{{}}, f.moves[k.Src]...) {
		for _, dst := range append([]target{{}}, f.moves[k.Dst]...) {
			f.moveTo(k, was, src, dst)
		}
	}
}

func (f *transition) moveTo(k policy.IDKey, was answer, src, dst target) {
	next := k
	if !src.stays() {
		next.Src = src.id
	}
	if !dst.stays() {
		next.Dst = dst.id
	}
	switch {
	case next == k:
		return
	case k.Src == k.Dst && k.Src&pendingBit != 0: // an address and itself
		f.affect(k.Src, next.Src)
		f.affect(k.Dst, next.Dst)
		return
	case f.gone[next.Src] || f.gone[next.Dst]: // the connection may be one of an address whose pod has gone
		f.affect(k.Src, next.Src)
		f.affect(k.Dst, next.Dst)
	}
	if src.stays() && !f.lives(k.Src) || dst.stays() && !f.lives(k.Dst) {
		return
	}
	is := f.answerAfter(next, src, dst, was)
	if is != was || is == unsure || is == mixed {
		f.affect(k.Src, next.Src)
		f.affect(k.Dst, next.Dst)
	}
	if !src.alone && !dst.alone {
		f.add(next, is)
	}
}

// lives reports whether an address may have the ID.
func (f *transition) lives(id policy.ID) bool {
	_, outside := f.outside[id]
	return outside || f.pods[id][0].IsValid()
}

// answerAfter returns the answer for the key that connections with the answer "was" have now. src and dst
// are the moves of its ends.
func (f *transition) answerAfter(k policy.IDKey, src, dst target, was answer) answer {
	if known, ok := f.keys[k]; ok && known != unsure && known != mixed && (k.Src|k.Dst)&pendingBit == 0 {
		return known
	}
	if src.stays() && dst.same || dst.stays() && src.same {
		return was
	}
	for _, srcAddr := range f.members(k.Src, src) {
		for _, dstAddr := range f.members(k.Dst, dst) {
			if srcAddr.Is4() == dstAddr.Is4() && policy.DecidedByIDs(srcAddr, dstAddr, f.now.Endpoint(srcAddr), f.now.Endpoint(dstAddr)) {
				return f.answer(k, srcAddr, dstAddr)
			}
		}
	}
	return unsure
}

// members returns addresses that have an ID. A stored address is skipped if it has another ID now. It is also
// skipped if it is pending, because a pending address may be denied although others with the ID are allowed.
func (f *transition) members(id policy.ID, to target) (list []netip.Addr) {
	if to.member.IsValid() {
		list = append(list, to.member)
	}
	for _, a := range f.outside[id] {
		_, now := f.now.Identify(a) // an address that still has this ID has no pod, because pods never have IDs of prefixes
		if a.IsValid() && (id&pendingBit != 0 || now == id && f.now.Pending(a) == policy.Known) {
			list = append(list, a)
		}
	}
	if pods := f.pods[id]; pods != nil && pods[0].IsValid() {
		list = append(list, pods[0])
		if pods[1].IsValid() {
			list = append(list, pods[1])
		}
	}
	return list
}

// answer evaluates a key between two addresses.
func (f *transition) answer(k policy.IDKey, src, dst netip.Addr) answer {
	return answerOf(f.evaluate(f.now, &filter.Key{Src: src.As16(), Dst: dst.As16(), Port: k.Port, Protocol: k.Protocol, Transport: k.Transport}))
}

// evaluatePending evaluates a key with a pending address. It marks for a sweep the changed addresses that
// are the other end, if the answer differs. The fail mode may have allowed such a connection although
// policies deny it, and the next change of an end denies it.
func (f *transition) evaluatePending(k policy.IDKey, was answer) {
	ends := [2]policy.ID{k.Src, k.Dst}
	for i, id := range ends {
		if ends[1-i]&pendingBit == 0 {
			continue
		}
		for _, a := range f.by[id] {
			other := f.outside[ends[1-i]][familyOf(a)]
			if !other.IsValid() {
				continue
			}
			src, dst := a, other
			if i == 1 {
				src, dst = other, a
			}
			if f.answer(k, src, dst) != was {
				f.affected[a] = true
			}
		}
	}
}

// affect marks for a sweep the addresses that moved from one ID to another.
func (f *transition) affect(from, to policy.ID) {
	if from == to {
		return
	}
	way := [2]policy.ID{from, to}
	for _, a := range f.addrs[way] {
		f.affected[a] = true
	}
	delete(f.addrs, way) // they are done
}
