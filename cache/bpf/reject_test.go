package bpf_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// rejection runs the two programs for FORWARD and INPUT.
type rejection struct{ later, reject programs }

func loadRejection(t *testing.T, c *bpf.Cache) *rejection {
	t.Helper()
	r := &rejection{later: programs{t: t}, reject: programs{t: t}}
	for path, to := range map[string]**ebpf.Program{c.LaterPin(): &r.later.allow, c.RejectPin(): &r.reject.allow} {
		var err error
		if *to, err = ebpf.LoadPinnedProgram(path, nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*to).Close() })
	}
	return r
}

// run reports which of the programs match.
func (r *rejection) run(data []byte) (later, reject bool) {
	return r.later.run(data) == allowed, r.reject.run(data) == allowed
}

// denials changes how random namespaces and policies deny.
func (r chance) denials(u *user) {
	denial := oneOf(r, filter.DenialUnset, filter.DenialDrop, filter.DenialReject)
	switch r.IntN(3) {
	case 0:
		name := oneOf(r, "a", "b")
		u.store.SetNamespace(name, nil)
		u.store.SetNamespaceDenial(name, denial, nil)
	case 1:
		p := netpol.Read(r.policy(r.IntN(3)))
		p.Denial, p.Digest, p.Source = denial, [32]byte{}, policy.Source{}
		u.store.SetPolicy(p)
	case 2:
		p := r.ordered(r.IntN(3))
		p.Denial = denial
		u.store.SetPolicy(p)
	}
}

// The programs for FORWARD and INPUT never contradict user space, whatever the packet is. If a
// verdict about a well-formed packet was remembered, they repeat it.
func TestRejectionAgreesWithUserSpace(t *testing.T) {
	c := newCache(t, bpf.Options{})
	both, p := loadRejection(t, c), load(t, c)
	u := newUser(t, c, podRanges)
	u.evaluator = engine.New(engine.Config{Published: &u.published, Memory: c.NewWriter(), Rejects: func() bool { return true }}, cache.NewFlows(0))
	r := chance{rand.New(rand.NewPCG(7, 0))}
	rounds, packets := 300, 100
	if testing.Short() {
		rounds = 30
	}
	count := make(map[string]int)
	u.store.SetNode(nodeAddrs[:])
	for round := range rounds {
		r.change(u)
		for range 1 + r.IntN(3) {
			r.denials(u)
		}
		u.commit(t)
		s := u.published.Snapshot()
		for range packets {
			data, plain := r.packet()
			k, err := u.decoder.Decode(data)
			at := filter.AtForward
			if err == nil && s.Endpoint(k.Key.DstAddr()).IsNode() {
				at = filter.AtInput
			}
			laterBefore, rejectBefore := both.run(data)
			u.evaluator.Enter()
			action, _ := u.evaluator.Evaluate(data, at)
			u.evaluator.Exit()
			later, reject := both.run(data)
			for _, got := range [][2]bool{{laterBefore, rejectBefore}, {later, reject}} {
				if got[1] && action != filter.Reject || got[0] && at == filter.AtForward && action != filter.Allow && action != filter.Deny {
					t.Fatalf("round %d: later %t, reject %t, user space %s for %x (%v)", round, got[0], got[1], action, data, k.Key)
				}
			}
			if got := p.run(data); reject && got != denied || later && at == filter.AtForward && got == noMatch {
				t.Fatalf("round %d: later %t, reject %t, and in POSTROUTING %s, for %x", round, later, reject, got, data)
			}
			count[action.String()]++
			unknown, pending := 0, false
			for _, a := range []netip.Addr{k.Key.SrcAddr(), k.Key.DstAddr()} {
				if e, is := s.Lookup(a); err == nil && e == nil {
					unknown++
					pending = pending || is != policy.Known
				}
			}
			if plain && unknown < 2 && !pending && !leftToUserSpace(s, k.Key) && !reject && (action == filter.Reject || !later && at == filter.AtForward) {
				t.Fatalf("round %d: the kernel does not repeat %s for %x", round, action, data)
			}
			if reject {
				count["rejected by the kernel"]++
			}
		}
	}
	t.Log(count)
	for _, what := range []string{"allow", "deny", "reject", "rejected by the kernel"} {
		if count[what] < rounds {
			t.Errorf("%s only %d times in %d rounds", what, count[what], rounds)
		}
	}
}

// A packet in FORWARD has no output interface yet. So the programs "later" and "reject" do not
// compare it with the interface of the destination. If "later" lets the packet pass, POSTROUTING
// makes this comparison.
func TestRejectionIgnoresTheOutput(t *testing.T) {
	c := newCache(t, bpf.Options{})
	both, p := loadRejection(t, c), load(t, c)
	u := newUser(t, c, nil)
	src, dst := podAddrs(2)[0], podAddrs(3)[0]
	u.store.SetPod(&policy.Pod{Namespace: "a", Name: "src", Addrs: []netip.Addr{src}})
	u.store.SetPod(&policy.Pod{Namespace: "a", Name: "dst", Addrs: []netip.Addr{dst}})
	if err := c.SetDevices(map[netip.Addr]uint32{dst: 7}); err != nil {
		t.Fatal(err)
	}
	u.commit(t)
	data := packetOf(src, dst, filter.TCP, 80, 20)
	if later, reject := both.run(data); !later || reject || p.run(data) != noMatch {
		t.Errorf("an open pod: later %t, reject %t, and in POSTROUTING %s; want only later", later, reject, p.run(data))
	}
	u.store.SetNamespace("a", nil)
	u.store.SetNamespaceDenial("a", filter.DenialReject, nil)
	closed := netpol.Read(chance{rand.New(rand.NewPCG(1, 1))}.policy(0))
	closed.Ref.Namespace, closed.Subject.Namespace, closed.Isolates = "a", "a", [2]bool{true, true}
	closed.Subject.Pods, closed.Rules, closed.Digest, closed.Source = labels.Everything(), [2][]policy.Rule{}, [32]byte{}, policy.Source{}
	u.store.SetPolicy(closed)
	u.commit(t)
	if later, reject := both.run(data); later || !reject || p.run(data) != noMatch {
		t.Errorf("a closed pod: later %t, reject %t, and in POSTROUTING %s; want only reject", later, reject, p.run(data))
	}
	stats, err := c.Stats()
	if err != nil || stats.Rejected == 0 || stats.Denied != 0 {
		t.Errorf("%+v (%v), want rejected packets and no dropped ones", stats, err)
	}
}
