package conntrack

import (
	"net/netip"
	"sync"

	"sluice/filter"
	"sluice/filter/policy"
)

const (
	shardCount = 16
	// maxKeys bounds the keys of one address. With more keys, reading the kernel's table in a
	// sweep costs less than evaluating the keys one by one.
	maxKeys = 2048
	// maxShard bounds the keys of a shard. All shards together then take some 10 MiB.
	maxShard = 8192
)

// TrackedFlows are the keys that live connections may have. Each key is stored under the
// addresses of both of its ends. After a change of policy, the keys of the changed addresses
// are evaluated again. A sweep is needed only if the verdict about a key has changed, and most
// changes of policy change none. Evaluating a hundred keys takes 20 µs; a sweep reads the
// kernel's table, which takes some ten milliseconds, in which the CPU forwards no packet.
//
// TrackedFlows may hold keys that no live connection has, but every live connection must have
// its key here, unless a cache that answers by IDs has let it begin: see Follower.ByIDs. Two parts of
// the agent add keys:
//
//   - An evaluator adds a key when it allows the key for the first time since an end of the
//     key changed. No cache that goes by addresses answers for the key before that moment. See Track.
//   - A sweep adds the keys of all connections that it sees.
//
// Connections that no policy concerns are not tracked. When a policy begins to concern them, a
// sweep follows. If an address has more than perAddr keys, they are dropped, and its set is
// marked as incomplete (see keySet.lost).
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
	// lost is 0 if the map "keys" is complete. Otherwise, it is the number of the latest
	// snapshot that evaluated a missing key: one that was dropped or not added.
	lost uint64
}

// trackedFlow describes the live connections of one key.
type trackedFlow struct {
	snapshot uint64  // number of the last snapshot that evaluated the key
	sweep    uint64  // number of the last sweep that saw a connection of the key
	answers  answers // the answers that the marks of the key's live connections may express
}

// answers is a set of answers (see filter.Verdict.Answer), one bit for each.
type answers uint8

func answersOf(a filter.Action) answers { return 1 << a }

// NewTrackedFlows returns TrackedFlows without keys.
func NewTrackedFlows() *TrackedFlows {
	a := &TrackedFlows{perAddr: maxKeys, perShard: maxShard}
	for i := range a.shards {
		a.shards[i].of = make(map[[16]byte]*keySet)
	}
	return a
}

func (a *TrackedFlows) shard(addr [16]byte) *shard { return &a.shards[(addr[15]^addr[13])%shardCount] }

// Track records a key that the snapshot with the given number allows. It stores the key under the
// source if src is set, and under the destination if dst is set. The caller sets them for an
// address that has an endpoint or is pending, and must call Track before the verdict takes effect.
// Track is safe for concurrent use, and takes some 200 ns.
func (a *TrackedFlows) Track(k filter.Key, src, dst bool, snapshot uint64) {
	now := trackedFlow{snapshot: snapshot, answers: answersOf(filter.Allow)}
	if src {
		a.add(k.Src, &k, now)
	}
	if dst {
		a.add(k.Dst, &k, now)
	}
}

// see records a live connection and the verdict that a sweep gives it.
func (a *TrackedFlows) see(k *filter.Key, by *policy.Snapshot, v *filter.Verdict, sweep uint64) {
	now := trackedFlow{snapshot: by.Number(), sweep: sweep, answers: answersOf(v.Answer())}
	for _, addr := range [...]netip.Addr{k.SrcAddr(), k.DstAddr()} {
		if e, pending := by.Lookup(addr); e != nil || pending != policy.Known {
			a.add(addr.As16(), k, now)
		}
	}
}

// add records a key under an address, for a sweep or for a worker. If the set of the address is
// incomplete, add does not record a worker's key, and only updates keySet.lost. It does record the
// keys of a sweep: a sweep sees all connections, and so can make the set complete (see swept).
func (a *TrackedFlows) add(addr [16]byte, k *filter.Key, now trackedFlow) {
	sweep := now.sweep != 0 // true if a sweep adds the key, false if a worker does
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
		// A sweep marks all connections of the key with its own answer, so that answer
		// replaces the recorded ones. If a newer snapshot than the sweep's has evaluated the
		// key, the sweep's answer is added to the recorded ones instead.
		if !sweep || was.snapshot > now.snapshot {
			now.answers |= was.answers
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

// forget drops the keys of an address and marks its set as incomplete: set.lost becomes the
// given snapshot, unless it is greater already.
func (s *shard) forget(set *keySet, snapshot uint64) {
	s.total -= len(set.keys)
	set.keys, set.lost = nil, max(set.lost, snapshot)
}

// evict makes room in a shard: it drops the keys of an arbitrary set of the shard. It chooses
// the set in the parameter "keep" only if all other sets are empty.
func (s *shard) evict(keep *keySet, snapshot uint64) {
	for _, set := range s.of {
		if set != keep && len(set.keys) > 0 {
			s.forget(set, snapshot)
			return
		}
	}
	s.forget(keep, snapshot)
}

// lose drops the keys of an address and marks its set as incomplete. Call it if a snapshot makes
// old cached verdicts valid again: the caches may then allow connections with keys that are not
// tracked. snapshot is the number of that snapshot.
func (a *TrackedFlows) lose(addr [16]byte, snapshot uint64) {
	s := a.shard(addr)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[addr] == nil {
		s.of[addr] = new(keySet)
	}
	s.forget(s.of[addr], snapshot)
}

// changed reports whether a connection of an address may need another mark: evaluate() returns,
// for one of the address's keys, an answer that differs from a recorded one. changed also
// returns true if the keys of the address are incomplete.
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
		if answersOf(evaluate(&k)) != was.answers {
			return true
		}
	}
	return false
}

// swept updates the set of an address after a sweep that has seen all connections of the address.
// The parameter "changed" is the number of the snapshot that last changed the address.
//
// If this snapshot or a later one evaluated a missing key (see keySet.lost), that key may have
// a connection that the sweep has not seen. So the set stays incomplete, and swept drops all
// keys. Otherwise the set is now complete. swept then drops each key of which the sweep saw no
// connection and which neither this snapshot nor a later one has evaluated: no cache has a
// valid verdict for such a key.
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
