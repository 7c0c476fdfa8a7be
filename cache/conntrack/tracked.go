package conntrack

import (
	"net/netip"
	"sync"

	"sluice/filter"
	"sluice/filter/policy"
)

const (
	shardCount = 16
	// maxKeys bounds the keys of one address. With more keys, a sweep is cheaper than
	// evaluating them one by one.
	maxKeys = 2048
	// maxShard bounds the keys of a shard. All shards together then take some 10 MiB.
	maxShard = 8192
)

// TrackedFlows are the keys under which connections may live, by the address of either end.
// Most changes of policy change no verdict about these keys, and need no sweep. That is
// worth much: evaluating a hundred keys takes 20 µs, but a walk through the kernel's table
// takes some ten milliseconds, in which the CPU forwards no packet.
//
// TrackedFlows may hold keys without a live connection, but must not lack the key of a live
// one. They are filled by
//
//   - the evaluators, with every key that they allow for the first time since one of its
//     ends changed. Until they have allowed it, no cache answers for the key. See Track.
//   - the sweeps, with all connections that they see.
//
// Connections that no policy concerns are not tracked; when a policy begins to concern
// them, a sweep follows. If an address has too many keys, only that fact is recorded.
type TrackedFlows struct {
	perAddr, perShard int
	shards            [shardCount]shard
}

type shard struct {
	mu    sync.Mutex
	of    map[[16]byte]*keySet
	total int // number of keys of all addresses
}

// keySet holds the keys of one address. A nil set has no keys.
type keySet struct {
	keys map[filter.Key]trackedFlow
	// lost is the number of the latest snapshot that evaluated a key which is not kept
	// here; 0 if keys is complete.
	lost uint64
}

// trackedFlow describes the live connections of one key.
type trackedFlow struct {
	snapshot uint64  // number of the last snapshot that evaluated the key
	sweep    uint64  // number of the last sweep that saw a connection of the key
	actions  actions // all actions that live connections of the key may have
}

// actions is a set of values of filter.Action, one bit for each.
type actions uint8

func actionsOf(a filter.Action) actions { return 1 << a }

// NewTrackedFlows returns TrackedFlows without keys.
func NewTrackedFlows() *TrackedFlows {
	a := &TrackedFlows{perAddr: maxKeys, perShard: maxShard}
	for i := range a.shards {
		a.shards[i].of = make(map[[16]byte]*keySet)
	}
	return a
}

func (a *TrackedFlows) shard(addr [16]byte) *shard { return &a.shards[(addr[15]^addr[13])%shardCount] }

// Track records a key that the snapshot with the given number allows; src and dst report
// which of its ends have an endpoint or are pending. The caller must call it before the
// verdict takes effect, and may do so concurrently. It takes some 200 ns.
func (a *TrackedFlows) Track(k filter.Key, src, dst bool, snapshot uint64) {
	now := trackedFlow{snapshot: snapshot, actions: actionsOf(filter.Allow)}
	if src {
		a.add(k.Src, &k, now)
	}
	if dst {
		a.add(k.Dst, &k, now)
	}
}

// see records a live connection and the verdict that a sweep gives it.
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
	sweep := now.sweep != 0 // whether add is called for a sweep; otherwise for a worker
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
		// A sweep gives its action to all connections of the key, and so replaces the
		// recorded actions, unless a newer snapshot than the sweep's has recorded one.
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

// forget drops the keys of an address, and records the snapshot up to which keys may be
// missing.
func (s *shard) forget(set *keySet, snapshot uint64) {
	s.total -= len(set.keys)
	set.keys, set.lost = nil, max(set.lost, snapshot)
}

// evict makes room by dropping the keys of one address. It drops those of keep only if no
// other address has keys.
func (s *shard) evict(keep *keySet, snapshot uint64) {
	for _, set := range s.of {
		if set != keep && len(set.keys) > 0 {
			s.forget(set, snapshot)
			return
		}
	}
	s.forget(keep, snapshot)
}

// lose drops the keys of an address. It records that, under the given snapshot and later
// ones, caches may answer for keys that are no longer tracked.
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

// swept records that a sweep has seen all connections of an address; changed is the number of
// the snapshot in which the address last changed. swept drops each key that the sweep did not
// see and that was last evaluated before that snapshot: the key has no connection left, and no
// cache answers for it.
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
