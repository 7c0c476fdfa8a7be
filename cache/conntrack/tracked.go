package conntrack

import (
	"net/netip"
	"sync"

	"sluice/filter"
	"sluice/filter/policy"
)

const (
	shardCount = 16
	// maxKeys is how many keys one address may have: with more, it is not worth
	// judging them one by one, and a change is followed by a sweep.
	maxKeys = 2048
	// maxShard is how many keys a shard may have in all. All shards together then
	// take some 10 MiB.
	maxShard = 8192
)

// TrackedFlows knows the keys under which connections may live, by the address of
// either end. Most changes of policy turn no verdict about them, and then no live
// connection has to be looked for: to go through the kernel's table takes it some
// ten milliseconds, in which the processor forwards no packet. Judging a hundred
// keys takes 20 µs.
//
// It may know keys of which no connection lives any more. What it must not lack
// is a key of one that does. Who tells it:
//
//   - The judges, of every key that they allow for the first time since one of its
//     ends changed; before that no cache can answer for them. See Track.
//   - The sweeps, of all connections that they see.
//
// Nobody tells of connections that policies do not concern; a policy that begins
// to concern them is followed by a sweep (policy.MayRestrict). And of addresses with
// too many keys it notes just that.
type TrackedFlows struct {
	perAddr, perShard int
	shards            [shardCount]shard
}

type shard struct {
	mu    sync.Mutex
	of    map[[16]byte]*keySet
	total int // keys in all
}

// keySet is what is known of one address. No set is one with no keys.
type keySet struct {
	keys map[filter.Key]trackedFlow
	// lost is the snapshot by which a key was last judged that is not among them; 0
	// if none is missing.
	lost uint64
}

// trackedFlow is what is known of one key.
type trackedFlow struct {
	snapshot uint64  // by which it was last judged
	sweep    uint64  // the number of the last one that saw it
	actions  actions // what its live connections were told; some may not know of the latest
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

// add notes a key of an address. To a set that lacks some, only a sweep adds, which
// may make it whole.
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
		// A sweep tells all; only by a newer snapshot something else can have been said.
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

// forget gives up knowing an address's keys.
func (s *shard) forget(set *keySet, snapshot uint64) {
	s.total -= len(set.keys)
	set.keys, set.lost = nil, max(set.lost, snapshot)
}

// evict forgets the keys of any address but one, which makes room.
func (s *shard) evict(but *keySet, snapshot uint64) {
	for _, set := range s.of {
		if set != but && len(set.keys) > 0 {
			s.forget(set, snapshot)
			return
		}
	}
	s.forget(but, snapshot)
}

// lose says that caches may answer for keys of an address that are not known, by the
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

// changed says whether what some live connection of an address was told may differ
// from what judge says now.
func (a *TrackedFlows) changed(addr [16]byte, judge func(*filter.Key) filter.Action) bool {
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
		if actionsOf(judge(&k)) != was.actions {
			return true
		}
	}
	return false
}

// swept notes that a sweep has seen all connections of an address, which changed
// last with the snapshot of the given number. A key that it did not see, and that
// was judged before, is gone: no cache answers for it any more.
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
