package conntrack

import (
	"maps"
	"net/netip"
	"sync"

	"sluice/filter"
	"sluice/filter/policy"
)

const (
	// maxKeys bounds the keys of TrackedFlows, which then take some 2 MiB.
	maxKeys = 32768
	// maxMoved bounds the keys that one publication adds. Adding as many takes some 50 ms, more than
	// most sweeps.
	maxMoved = 1 << 17
	// fewEntries is the number of entries up to which clean does nothing.
	fewEntries = 1024
)

// TrackedFlows are the keys that live connections may have, by the IDs of their addresses. If a
// change of policy gives an address another ID, the address's connections have other keys, and these
// are evaluated. A sweep is needed only if a verdict differs, and most changes of policy alter none.
// Evaluating a hundred keys takes 20 µs; a sweep reads the kernel's table, which takes some ten
// milliseconds, in which the CPU forwards no packet.
//
// TrackedFlows may hold keys that no live connection has, but every live connection must have its key
// here, unless no policy concerns it. When a policy begins to concern such connections, a sweep
// follows. Three parts of the agent add keys:
//
//   - An evaluator adds a key when it allows the key and no cache had it. All caches go by IDs, so
//     they answer only for keys that an evaluator has decided. See Track.
//   - A sweep adds the keys of all connections that it sees.
//   - A change of IDs adds the new keys that the connections have from then on. See follow.
//
// A pending address has a number of its own here instead of its ID: it belongs to a pod that is not
// known yet, and this pod will be told apart from others with that ID.
type TrackedFlows struct {
	maxKeys, maxMoved, fewEntries int

	mu     sync.Mutex
	latest *policy.Snapshot // the newest that was published
	keys   map[policy.IDKey]answer
	// lost holds the IDs that may have keys which are not in the map keys, because it was full. If the ID
	// of an address is one of them, each change of the address needs a sweep.
	lost map[policy.ID]struct{}
	// outside has addresses without an endpoint, by their IDs, with which keys can be evaluated: at 0 an
	// IPv4 address, and at 1 an IPv6 address. An address may have another ID by now.
	outside map[policy.ID][2]netip.Addr
	pending map[netip.Addr]policy.ID // the numbers of pending addresses
	last    policy.ID                // the last of these numbers

	newest  uint64               // number of the newest snapshot by which a key was added or that was published
	cleaned uint64               // number of the snapshot of the last call of clean
	missing map[policy.ID]uint64 // IDs that the snapshot of the last clean lacked, and newest when each was first missing
	kept    int                  // number of other entries
}

// answer is what the marks of a key's live connections express: 1 + the answer of the verdict (see
// filter.Verdict.Answer).
type answer uint8

const (
	// unsure is the answer of a key that could not be evaluated. The next change needs a sweep, unless the
	// key is added with an answer before that.
	unsure answer = 0
	// mixed stands for several answers. Two kinds of connections may have it: those that were allowed while
	// their pod was not known, and those to addresses of this node that the snapshot does not list.
	mixed answer = 255
)

func answerOf(a filter.Action) answer { return 1 + answer(a) }

// pendingBit distinguishes the numbers of pending addresses from IDs.
const pendingBit policy.ID = 1 << 63

// NewTrackedFlows returns TrackedFlows without keys.
func NewTrackedFlows() *TrackedFlows {
	return &TrackedFlows{
		maxKeys: maxKeys, maxMoved: maxMoved, fewEntries: fewEntries, keys: make(map[policy.IDKey]answer), lost: make(map[policy.ID]struct{}),
		outside: make(map[policy.ID][2]netip.Addr), pending: make(map[netip.Addr]policy.ID), last: pendingBit,
	}
}

// Track records that a snapshot allows a key. It must be called before the verdict takes effect. Track
// is safe for concurrent use, and takes some 200 ns.
func (t *TrackedFlows) Track(s *policy.Snapshot, k filter.Key) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.record(s, &k, filter.Allow)
}

// publish records that a snapshot was published. If Track gets a key with an older snapshot after that, the
// connection may already have another key.
func (t *TrackedFlows) publish(s *policy.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.latest, t.newest = s, max(t.newest, s.Number())
}

// see records a live connection and the verdict that a sweep gives it.
func (t *TrackedFlows) see(by *policy.Snapshot, k *filter.Key, v *filter.Verdict) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.record(by, k, v.Answer())
}

// record adds a key. If the snapshot is out of date, it also adds the key that the connection has now:
// a change of IDs that was handled before could not add it.
func (t *TrackedFlows) record(s *policy.Snapshot, k *filter.Key, action filter.Action) {
	t.newest = max(t.newest, s.Number())
	if key, ok := t.key(s, k); ok {
		t.add(key, answerOf(action))
	}
	if t.latest != nil && s.Number() < t.latest.Number() {
		if key, ok := t.key(t.latest, k); ok {
			t.add(key, unsure)
		}
	}
}

// key returns the key of a flow. It returns false if neither address is pending, and either both have no
// endpoint, or IDs do not decide (see policy.DecidedByIDs).
func (t *TrackedFlows) key(s *policy.Snapshot, k *filter.Key) (key policy.IDKey, ok bool) {
	srcAddr, dstAddr := k.SrcAddr(), k.DstAddr()
	src, srcID := s.Identify(srcAddr)
	dst, dstID := s.Identify(dstAddr)
	srcPending, dstPending := src == nil && s.Pending(srcAddr) != policy.Known, dst == nil && s.Pending(dstAddr) != policy.Known
	if !srcPending && !dstPending && (src == nil && dst == nil || !policy.DecidedByIDs(srcAddr, dstAddr, src, dst)) {
		return key, false
	}
	if srcPending {
		srcID = t.pendingID(srcAddr)
	}
	if dstPending {
		dstID = t.pendingID(dstAddr)
	}
	if src == nil {
		t.setOutside(srcID, srcAddr)
	}
	if dst == nil {
		t.setOutside(dstID, dstAddr)
	}
	return policy.NewIDKey(k, srcID, dstID), true
}

// setOutside stores an address without an endpoint.
func (t *TrackedFlows) setOutside(id policy.ID, a netip.Addr) {
	known := t.outside[id]
	known[familyOf(a)] = a
	t.outside[id] = known
}

// familyOf returns 0 for IPv4 and 1 for IPv6.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// pendingID returns the number of a pending address.
func (t *TrackedFlows) pendingID(a netip.Addr) policy.ID {
	id, ok := t.pending[a]
	if !ok {
		t.last++
		id = t.last
		t.pending[a] = id
	}
	delete(t.missing, id) // unlike an ID, it may be in use again
	return id
}

// add adds a key with an answer, or its IDs to lost if there is no room.
func (t *TrackedFlows) add(k policy.IDKey, a answer) {
	was, ok := t.keys[k]
	switch {
	case !ok && len(t.keys) >= t.maxKeys:
		t.lost[k.Src], t.lost[k.Dst] = struct{}{}, struct{}{}
	case !ok, was == unsure:
		t.keys[k] = a
	case was != a && a != unsure:
		t.keys[k] = mixed
	}
}

// clean removes what belongs to IDs that no address of the snapshot has, and that are not in use
// either. IDs are never used again. Workers may already use newer snapshots with new IDs, so an ID must be
// missing twice, and the second snapshot must not be older than any by which a key had been added when it was
// missing first. clean takes some 60 ns for each address of the cluster, so it does nothing until the number of entries has doubled or there
// is no room for a key.
func (t *TrackedFlows) clean(s *policy.Snapshot, use map[policy.ID]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if full := len(t.keys) >= t.maxKeys && t.kept < t.maxKeys; t.size() < 2*t.kept+t.fewEntries && !full || s.Number() == t.cleaned {
		return
	}
	live := t.liveIDs(s)
	was := t.missing
	t.missing, t.cleaned, t.kept = make(map[policy.ID]uint64), s.Number(), 0
	gone := func(ids ...policy.ID) bool {
		missing, gone := false, false
		for _, id := range ids {
			if live[id] || use[id] {
				continue
			}
			newest, again := was[id]
			if !again {
				newest = t.newest
			}
			t.missing[id] = newest
			missing, gone = true, gone || again && newest <= s.Number()
		}
		if !missing {
			t.kept++
		}
		return gone
	}
	maps.DeleteFunc(t.keys, func(k policy.IDKey, _ answer) bool { return gone(k.Src, k.Dst) })
	maps.DeleteFunc(t.lost, func(id policy.ID, _ struct{}) bool { return gone(id) })
	maps.DeleteFunc(t.outside, func(id policy.ID, _ [2]netip.Addr) bool { return gone(id) })
	maps.DeleteFunc(t.pending, func(_ netip.Addr, id policy.ID) bool { return gone(id) })
}

func (t *TrackedFlows) size() int { return len(t.keys) + len(t.lost) + len(t.outside) + len(t.pending) }

// liveIDs returns the IDs that addresses of a snapshot have, and the numbers of pending ones.
func (t *TrackedFlows) liveIDs(s *policy.Snapshot) map[policy.ID]bool {
	live := map[policy.ID]bool{0: true}
	for _, id := range s.IDs() {
		live[id] = true
	}
	for _, id := range s.Prefixes() {
		live[id] = true
	}
	for a, id := range t.pending {
		if s.Endpoint(a) == nil && s.Pending(a) != policy.Known {
			live[id] = true
		}
	}
	return live
}
