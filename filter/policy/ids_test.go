package policy_test

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"testing"

	madeup "sluice/bench/testbed/cluster"
	"sluice/filter"
	"sluice/filter/policy"
)

// ids checks what caches rely on: a verdict is the same wherever and whenever both ends of a flow
// have the same IDs. It remembers each verdict, as a cache that never evicts one would.
type ids struct {
	answers  map[idKey]answer
	pairs    map[[2]policy.ID]*pairAnswers
	prefixes map[netip.Prefix]policy.ID // the model of the prefixes, kept by Snapshot.PrefixChanges
	used     map[policy.ID]netip.Prefix // all IDs of prefixes so far
	addrs    []netip.Addr
	// known is the number of decisions with an answer that was remembered from an earlier commit, and
	// moved the number of those whose answer was remembered for other addresses.
	known, moved uint64
}

// idKey is the key of a verdict in a cache.
type idKey struct {
	src, dst  policy.ID
	port      uint16
	protocol  filter.Protocol
	transport filter.Transport
}

// answer is a remembered verdict. The field Pair of the verdict is always false.
type answer struct {
	verdict  filter.Verdict
	src, dst netip.Addr
	snapshot uint64
}

// pairAnswers are the answers for two IDs.
type pairAnswers struct {
	seen map[filter.Action]answer // for packets
	pair *answer                  // of a verdict with Pair, which is for all packets
}

// newIDs returns checks for all addresses that random clusters have or name.
func newIDs() *ids {
	x := &ids{
		answers: map[idKey]answer{}, pairs: map[[2]policy.ID]*pairAnswers{},
		prefixes: map[netip.Prefix]policy.ID{}, used: map[policy.ID]netip.Prefix{},
		addrs: slices.Concat(nodeAddrs, outsideAddrs, addrs("192.0.2.9", "10.9.0.77", "10.0.0.17", "172.16.0.1", "fd00::99", "fd09::77", "2001:db8::9", "fe80::1")),
	}
	for n := range byte(12) {
		x.addrs = append(x.addrs, netip.AddrFrom4([4]byte{10, 0, 0, n + 1}), netip.AddrFrom16([16]byte{0: 0xfd, 15: n + 1}))
	}
	return x
}

// check checks a snapshot, the one before it, and the changes between them.
func (x *ids) check(h *history, now *policy.Snapshot, changes policy.Changes) {
	x.checkChanges(h, now, changes)
	x.checkPrefixes(h, now)
	for _, src := range x.addrs {
		for _, dst := range x.addrs {
			if src.Is4() == dst.Is4() { // as in all packets
				x.checkPair(h, now, src, dst)
			}
		}
	}
}

// checkChanges checks that the changes contain each address whose ID has changed, unless the ID is
// that of a prefix.
func (x *ids) checkChanges(h *history, now *policy.Snapshot, changes policy.Changes) {
	for _, a := range x.addrs {
		was, before := h.before.Identify(a)
		is, id := now.Identify(a)
		if is != now.Endpoint(a) {
			h.fail(flow{Src: a, Dst: a}, fmt.Sprintf("Identify returns the endpoint %q, but it is %q", is, now.Endpoint(a)))
		}
		if (was != nil || is != nil) && before != id && !slices.Contains(changes, a) {
			h.fail(flow{Src: a, Dst: a}, fmt.Sprintf("the ID was %d and is %d, but the address is not among the changes", before, id))
		}
	}
}

// checkPrefixes checks the prefixes, and the IDs of addresses without an endpoint: each has that of
// the longest prefix with the address.
func (x *ids) checkPrefixes(h *history, now *policy.Snapshot) {
	set, removed := now.PrefixChanges(h.before)
	for _, p := range removed {
		delete(x.prefixes, p)
	}
	for _, p := range set {
		x.prefixes[p.Prefix] = p.ID
		if was, ok := x.used[p.ID]; ok && was != p.Prefix {
			h.fail(flow{}, fmt.Sprintf("%s has the ID %d, as %s had", p.Prefix, p.ID, was))
		}
		x.used[p.ID] = p.Prefix
	}
	if all := maps.Collect(now.Prefixes()); !maps.Equal(all, x.prefixes) {
		h.fail(flow{}, fmt.Sprintf("prefixes %v, but %v by their changes", all, x.prefixes))
	}
	for _, a := range x.addrs {
		var longest netip.Prefix
		for p := range x.prefixes {
			if p.Contains(a) && (!longest.IsValid() || p.Bits() > longest.Bits()) {
				longest = p
			}
		}
		if e, id := now.Identify(a); e == nil && id != x.prefixes[longest] {
			h.fail(flow{Src: a, Dst: a}, fmt.Sprintf("the ID is %d, but that of %s is %d", id, longest, x.prefixes[longest]))
		}
	}
}

// checkPair checks verdicts between two addresses.
func (x *ids) checkPair(h *history, now *policy.Snapshot, srcAddr, dstAddr netip.Addr) {
	src, from := now.Identify(srcAddr)
	dst, to := now.Identify(dstAddr)
	if !policy.DecidedByIDs(srcAddr, dstAddr, src, dst) {
		return
	}
	f := flow{Src: srcAddr, Dst: dstAddr, Protocol: oneOf(h.chance, filter.TCP, filter.UDP, filter.SCTP), Transport: filter.Ported}
	flows := []flow{f, f, f, f, f, f, f}
	for i := range flows[:4] {
		flows[i].Port = uint16(oneOf(h.chance, portNumbers...))
	}
	flows[4].Transport = filter.Opaque
	flows[5].Protocol, flows[5].Transport = filter.ICMP, filter.Portless
	flows[6].Protocol, flows[6].Transport = 0, filter.Any
	for _, f := range flows {
		k := filter.Key{Src: srcAddr.As16(), Dst: dstAddr.As16(), Port: f.Port, Protocol: f.Protocol, Transport: f.Transport}
		v := now.DecideBetween(&k, srcAddr, dstAddr, src, dst)
		x.checkVerdict(h, f, idKey{from, to, k.Port, k.Protocol, k.Transport}, answer{v, srcAddr, dstAddr, now.Number()})
	}
}

// checkVerdict compares a verdict with those remembered for the same IDs.
func (x *ids) checkVerdict(h *history, f flow, k idKey, a answer) {
	pair := a.verdict.Pair
	a.verdict.Pair = false // depends on Snapshot.Rejects too
	was, known := x.answers[k]
	switch {
	case !known:
		x.answers[k] = a
	case was.verdict != a.verdict:
		h.fail(f, fmt.Sprintf("%s, but with the same IDs %d and %d %s", a, k.src, k.dst, was))
	case was.snapshot != a.snapshot:
		if x.known++; was.src != a.src || was.dst != a.dst {
			x.moved++
		}
	}
	x.checkPairAnswer(h, f, k, a, pair)
}

// checkPairAnswer checks that all packets between two IDs get the answer of a verdict with Pair. It also
// checks that all are allowed if the key with transport Any is.
func (x *ids) checkPairAnswer(h *history, f flow, k idKey, a answer, pair bool) {
	all := x.pairs[[2]policy.ID{k.src, k.dst}]
	if all == nil {
		all = &pairAnswers{seen: map[filter.Action]answer{}}
		x.pairs[[2]policy.ID{k.src, k.dst}] = all
	}
	if k.transport != filter.Any {
		all.seen[a.verdict.Answer()] = a
	}
	if pair || k.transport == filter.Any && a.verdict.Action == filter.Allow {
		all.pair = &a
	}
	if all.pair == nil {
		return
	}
	for action, seen := range all.seen {
		if action != all.pair.verdict.Answer() {
			h.fail(f, fmt.Sprintf("%s, but all packets between the IDs %d and %d: %s", seen, k.src, k.dst, all.pair))
		}
	}
}

func (a answer) String() string {
	side := func(s filter.Side) string {
		return fmt.Sprintf("%+v %+v %+v", s.Isolation, s.Rule, s.Passed)
	}
	return fmt.Sprintf("%v %v (%s > %s in snapshot %d; %s; %s)", a.verdict.Answer(), a.verdict.Reason, a.src, a.dst, a.snapshot, side(a.verdict.Egress), side(a.verdict.Ingress))
}

// changeDenial changes how the policies of a namespace deny packets.
func (h *history) changeDenial() {
	name := oneOf(h.chance, namespaceNames...)
	d := oneOf(h.chance, filter.DenialUnset, filter.DenialDrop, filter.DenialReject)
	h.logf("deny in namespace %s with %q", name, d)
	h.store.SetNamespaceDenial(name, d, nil)
}

// TestIDs holds verdicts against all earlier ones with the same IDs, after each commit of random
// histories.
//
// Each of these mistakes makes it fail: a class without its named ports, the policy sets of any one
// tier, its selectors of peers, how it denies, whether its namespace is known, or the version of its
// namespace; a version that stays the same when namespace selectors match other labels; an ID without
// the prefix of the address; prefixes without exceptions, or without the addresses of Nodes; an ID that
// passes on although an address keeps it, or although the epoch is another one; addresses in a new
// prefix that keep their ID; changes that list only new epochs.
func TestIDs(t *testing.T) {
	histories := uint64(40)
	switch {
	case os.Getenv("SLUICE_FULL_TEST") != "":
		histories = 1000
	case raceEnabled || testing.Short():
		histories = 12
	}
	var known, moved atomic.Uint64
	inParallel(histories, func(seed uint64) bool {
		h := newHistory(seed + 20_000)
		h.ids = newIDs()
		for range historySteps {
			if h.step(); h.oneIn(8) {
				h.changeDenial()
			}
			h.advanceDrafts(h.IntN(6))
			if h.oneIn(3) {
				h.commitAndCheck()
			}
			if h.failure != "" {
				t.Errorf("seed %d: %s", seed, h.failure)
				return false
			}
		}
		known.Add(h.ids.known)
		moved.Add(h.ids.moved)
		return true
	})
	t.Logf("%d verdicts were remembered, %d of them for other addresses", known.Load(), moved.Load())
	if !t.Failed() && (known.Load() < 30_000*histories || moved.Load() < 3_000*histories) {
		t.Errorf("only %d verdicts were remembered in %d histories, %d of them for other addresses", known.Load(), histories, moved.Load())
	}
}

// TestIDsOfManyPrefixes sets a policy with a number of random prefixes. A large policy is a draft, whose
// prefixes are added in pieces. The tables of few and of many changes are made in different ways.
func TestIDsOfManyPrefixes(t *testing.T) {
	for seed := range uint64(6) {
		h := newHistory(seed + 21_000)
		h.ids = newIDs()
		for range 30 {
			h.step()
		}
		for _, n := range []int{3, 2500, 2400, 40, 3000, 2990, 1500, 0} {
			var list []string
			for range n {
				a := netip.AddrFrom4([4]byte{10, byte(h.IntN(256)), byte(h.IntN(256)), byte(h.IntN(256))})
				if h.oneIn(3) {
					a = netip.AddrFrom4([4]byte{10, 0, 0, byte(h.IntN(16))})
				}
				list = append(list, netip.PrefixFrom(a, 9+h.IntN(24)).Masked().String())
			}
			h.setPolicy(madeup.BlockPolicy("a", "many", list...))
			h.advanceDrafts(h.IntN(40))
			h.commitAndCheck()
			if h.finishDrafts(); h.oneIn(2) {
				h.step()
			}
			h.commitAndCheck()
			if h.failure != "" {
				t.Fatalf("seed %d, %d prefixes: %.3000s", seed, n, h.failure)
			}
		}
	}
}
