package bpf_test

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// everyone returns the addresses of all pods, of this node, and from outside, of one family.
func everyone(v6 int) []netip.Addr {
	all := append([]netip.Addr{nodeAddrs[v6]}, outsides[v6]...)
	for n := range pods {
		all = append(all, podAddrs(2 + n)[v6])
	}
	return all
}

// decides reports whether the programs may answer between two addresses: one has an endpoint, and
// none is pending.
func decides(s *policy.Snapshot, src, dst netip.Addr) bool {
	a, srcPending := s.Lookup(src)
	b, dstPending := s.Lookup(dst)
	return (a != nil || b != nil) && srcPending == policy.Known && dstPending == policy.Known
}

// After user space has decided one packet, the programs answer such packets between all addresses with
// the same IDs, as DecideBetween does. Between all other addresses, no answer contradicts it.
func TestNewcomers(t *testing.T) {
	c := newCache(t, bpf.Options{})
	p, u := load(t, c), newUser(t, c, podRanges)
	// User space repeats verdicts from its own flow cache. Their IDs may have changed meanwhile.
	u.evaluator = engine.New(engine.Config{Published: &u.published, Memory: c.NewWriter()}, cache.NewFlows(256))
	var known []filter.Key
	r := chance{rand.New(rand.NewPCG(15, 0))}
	rounds := 400
	if testing.Short() {
		rounds = 60
	}
	u.store.SetNode(nodeAddrs[:])
	newcomers, queued := 0, 0
	for round := range rounds {
		for range 1 + r.IntN(3) {
			r.change(u)
		}
		switch r.IntN(6) {
		case 0:
			u.store.SetPodRanges(podRanges)
		case 1:
			u.store.SetPodRanges(nil)
		case 2:
			u.store.SetNamespace(oneOf(r, "a", "b"), r.labels())
		}
		u.commit(t)
		s := u.published.Snapshot()
		for i := range 6 {
			v6 := r.IntN(2)
			k := filter.NewKey(r.addr(v6), r.addr(v6), oneOf(r, filter.TCP, filter.TCP, filter.UDP, filter.SCTP), oneOf(r, portNumbers...))
			if i%2 == 0 && len(known) > 20 {
				k = oneOf(r, known[len(known)-20:]...)
			}
			known = append(known, k)
			src, dst, protocol, port := k.SrcAddr(), k.DstAddr(), k.Protocol, k.Port
			if v6 = 0; src.Is6() {
				v6 = 1
			}
			for range 2 { // the flow cache in user space keeps the second verdict
				u.evaluate(packetOf(src, dst, protocol, port, 20))
			}
			remembered := decides(s, src, dst) && !leftToUserSpace(s, k) && policy.DecidedByIDs(src, dst, s.Endpoint(src), s.Endpoint(dst))
			for _, a := range everyone(v6) {
				for _, b := range everyone(v6) {
					k := filter.NewKey(a, b, protocol, port)
					got, v := p.run(packetOf(a, b, protocol, port, 20)), s.Decide(k)
					if got == allowed && v.Action != filter.Allow || got == denied && v.Action != filter.Deny {
						t.Fatalf("round %d: %s > %s, port %d: %s, want %s (%s)", round, a, b, port, got, v.Action, v.Reason)
					}
					if !remembered || idKey(s, k) != idKey(s, filter.NewKey(src, dst, protocol, port)) || !decides(s, a, b) || leftToUserSpace(s, k) {
						continue
					}
					if a != src || b != dst {
						newcomers++
					}
					if got == noMatch {
						queued++
						t.Errorf("round %d: %s > %s, port %d, goes to user space, after one from %s > %s", round, a, b, port, src, dst)
					}
				}
			}
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("of %d newcomers, %d went to user space", newcomers, queued)
	if newcomers < rounds {
		t.Errorf("only %d newcomers in %d rounds", newcomers, rounds)
	}
}

// No packet has an address in the prefix of IPv4 that is written as IPv6. Its entry must not replace
// that of IPv4. Of IPv4 addresses, ::/0 says nothing.
func TestFamiliesAreApart(t *testing.T) {
	_, p, u := newFixture(t, bpf.Options{}, nil)
	u.store.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("::/0"), netip.MustParsePrefix("::ffff:0:0/96"), netip.MustParsePrefix("::ffff:198.51.100.7/128")})
	u.commit(t)
	for i := range 2 {
		if got := p.run(packetOf(remote, web, filter.TCP, 80, 20)); got != allowed {
			t.Errorf("change %d: %s, want %s", i, got, allowed)
		}
		u.store.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("::/0")})
		u.commit(t)
	}
}

// The prefixes and the endpoints change one after the other. Meanwhile, every packet gets the verdict of
// the old state or that of the new one. Both policies deny the address "remote": one of them as an
// exception of a block, whose other addresses it allows.
func TestPrefixesChangeInOrder(t *testing.T) {
	c := newCache(t, bpf.Options{})
	p, u := load(t, c), newUser(t, c, nil)
	u.store.SetPod(kubepod.Read(podOf("db", db)))
	block := func(cidr string, except ...string) *policy.Policy {
		n := letIn("db", "absent")
		n.Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: except}}}
		return netpol.Read(n)
	}
	policies := []*policy.Policy{block("198.51.100.0/24", remote.String()+"/32"), block("203.0.113.0/24")}
	// A second policy always names the block. So when the exception is removed, its address is in the block.
	kept := letIn("other", "absent")
	kept.Spec.Ingress[0].From = []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: "198.51.100.0/24"}}}
	u.store.SetPolicy(netpol.Read(kept))
	neighbor := netip.MustParseAddr("198.51.100.8")
	var stop atomic.Bool
	var asked atomic.Int64
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for ; !stop.Load(); asked.Add(1) {
				if got := p.run(redis(remote)); got == allowed {
					t.Errorf("during a change: %s", got)
					return
				}
			}
		})
	}
	for i := range 60 {
		u.store.SetPolicy(policies[i%2])
		s, changes := u.store.Commit()
		u.published.Publish(s)
		u.evaluate(redis(neighbor)) // the kernel remembers the verdict before it has the prefixes
		u.evaluate(redis(remote))
		if err := c.Publish(s, changes); err != nil {
			t.Fatal(err)
		}
		if got, want := p.run(redis(neighbor)), []verdict{allowed, denied}[i%2]; got != want {
			t.Errorf("change %d: %s, want %s", i, got, want)
		}
	}
	stop.Store(true)
	wait.Wait()
	if asked.Load() < 100 {
		t.Errorf("the programs ran only %d times", asked.Load())
	}
}
