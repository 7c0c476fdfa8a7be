package conntrack

import (
	"net/netip"
	"sync"

	"sluice/filter"
	"sluice/filter/policy"
)

const (
	shardCount = 16
	// maxKeys bounds the keys of one address: with more, a sweep is cheaper than
	// evaluating them one by one.
	maxKeys = 2048
	// maxShard bounds the keys of a shard. All shards together then take some 10 MiB.
	maxShard = 8192
)

// TrackedFlows are the keys under which connections may live, by the address of either
// end. Most changes of policy change no verdict about them, and then no sweep is needed: a
// walk through the kernel's table takes some ten milliseconds, in which the processor
// forwards no packet. Evaluating a hundred keys takes 20 µs.
//
// They may hold keys without a live connection. They must not lack a key of a live one.
// They are fed by
//
//   - the evaluators, with every key that they allow for the first time since one of its
//     ends changed: before that no cache can answer for it. See Track.
//   - the sweeps, with all connections that they see.
//
// Connections that no policy concerns are not tracked; a policy that begins to concern them
// is followed by a sweep. Of an address with too many keys, only that is recorded.
type TrackedFlows struct {
	perAddr, perShard int
	shards            [shardCount]shard
}

type shard struct {
	mu    sync.Mutex
	of    map[[16]byte]*keySet
	total int // keys in all
}

// keySet is what is known of one address. A nil set has no keys.
type keySet struct {
	keys map[filter.Key]trackedFlow
	// lost is the latest snapshot under which a key was evaluated but not kept here; 0
	// if keys is complete.
	lost uint64
}

// trackedFlow is what is known of one key.
type trackedFlow struct {
	snapshot uint64  // by which it was last evaluated
	sweep    uint64  // the number of the last one that saw it
	actions  actions // of its live connections; some may not have the latest
}

// actions is a set of actions.
type actions uint8

func actionsOf(a filter.Action) actions { return 1 << a }

// NewTrackedFlows returns TrackedFlows that know no keys.
func NewTrackedFlows() *TrackedFlows {
	a := &TrackedFlows{perAddr: maxKeys, perShard: maxShard}
	for i := range a.shards {
		a.shards[i].of = make(map[[16]byte]*keySet)
	}
	return a
}

func (a *TrackedFlows) shard(addr [16]byte) *shard { return &a.shards[(addr[15]^addr[13])%shardCount] }

// Track records a key that was allowed by the snapshot of that number; src and dst report
// which of its ends have an endpoint or are pending. It may be called concurrently, and
// returns before the verdict takes effect. It takes some 200 ns.
func (a *TrackedFlows) Track(k filter.Key, src, dst bool, snapshot uint64) {
	now := trackedFlow{snapshot: snapshot, actions: actionsOf(filter.Allow)}
	if src {
		a.add(k.Src, &k, now)
	}
	if dst {
		a.add(k.Dst, &k, now)
	}
}

// see records a live connection, and the verdict that a sweep gives it.
func (a *TrackedFlows) see(k *filter.Key, by *policy.Snapshot, v *filter.Verdict, sweep uint64) {
	now := trackedFlow{snapshot: by.Number(), sweep: sweep, actions: actionsOf(v.Action)}
	for _, addr := range [...]netip.Addr{k.SrcAddr(), k.DstAddr()} {
		if e, pending := by.Lookup(addr); e != nil || pending != policy.Known {
			a.add(addr.As16(), k, now)
		}
	}
}

// add records a key of an address. Only a sweep adds to an incomplete set, because only a
// sweep can complete it.
func (a *TrackedFlows) add(addr [16]byte, k *filter.Key, now trackedFlow) {
	sweep := now.sweep != 0 // otherwise a worker
	s := a.shard(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.of[addr]
	if set == nil {
		set = new(keySet)
		s.of[addr] = set
	}
	if set.lost != 0 && !sweep {
		set.lost = max(set.lost, now.snapshot)
		return
	}
	if was, ok := set.keys[*k]; ok {
		// A sweep gives all connections of the key its action, so that older actions are
		// obsolete unless a newer snapshot has added one.
		if !sweep || was.snapshot > now.snapshot {
			now.actions |= was.actions
		}
		now.snapshot, now.sweep = max(was.snapshot, now.snapshot), max(was.sweep, now.sweep)
		set.keys[*k] = now
		return
	}
	if len(set.keys) >= a.perAddr {
		s.forget(set, now.snapshot)
		return
	}
	if s.total >= a.perShard {
		s.evict(set, now.snapshot)
	}
	if set.keys == nil {
		set.keys = make(map[filter.Key]trackedFlow)
	}
	set.keys[*k] = now
	s.total++
}

// forget drops the keys of an address.
func (s *shard) forget(set *keySet, snapshot uint64) {
	s.total -= len(set.keys)
	set.keys, set.lost = nil, max(set.lost, snapshot)
}

// evict forgets the keys of any other address, to make room.
func (s *shard) evict(but *keySet, snapshot uint64) {
	for _, set := range s.of {
		if set != but && len(set.keys) > 0 {
			s.forget(set, snapshot)
			return
		}
	}
	s.forget(but, snapshot)
}

// lose records that caches may answer for keys of an address that are not tracked, by the
// snapshot of that number and later ones.
func (a *TrackedFlows) lose(addr [16]byte, snapshot uint64) {
	s := a.shard(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[addr] == nil {
		s.of[addr] = new(keySet)
	}
	s.forget(s.of[addr], snapshot)
}

// changed reports whether the action of some live connection of an address may differ from
// what evaluate returns now.
func (a *TrackedFlows) changed(addr [16]byte, evaluate func(*filter.Key) filter.Action) bool {
	s := a.shard(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.of[addr]
	if set == nil {
		return false
	}
	if set.lost != 0 {
		return true
	}
	for k, was := range set.keys {
		if actionsOf(evaluate(&k)) != was.actions {
			return true
		}
	}
	return false
}

// swept records that a sweep has seen all connections of an address that last changed with
// the given snapshot. A key that it did not see, and that was evaluated before that
// snapshot, has no connection left, and no cache answers for it.
func (a *TrackedFlows) swept(addr [16]byte, changed, sweep uint64) {
	s := a.shard(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.of[addr]
	if set == nil {
		return
	}
	if set.lost >= changed {
		s.forget(set, set.lost)
		return
	}
	set.lost = 0
	for k, was := range set.keys {
		if was.sweep != sweep && was.snapshot < changed {
			delete(set.keys, k)
			s.total--
		}
	}
	if len(set.keys) == 0 {
		delete(s.of, addr)
	}
}
