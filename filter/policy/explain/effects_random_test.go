package explain_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/inventory"
)

// The advised changes allow the flow, and their stated effects are exactly the other flows that a
// comparison of all flows finds newly allowed. No change widens a rule for every peer or every port, or
// a policy for every pod.
func TestChangesOpenWhatTheyState(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(600) {
		d := dice{rand.New(rand.NewPCG(seed, 2))}
		o := d.cluster()
		c, _ := clusterOf(o)
		for range 6 {
			q := explain.Question{From: d.end(o), To: d.end(o), Port: pick(d, "80", "81", "8080", "90"), Protocol: pick(d, "tcp", "udp", "icmp")}
			if q.Protocol == "icmp" {
				q.Port = ""
			}
			all, err := c.ExplainAll(q)
			if err != nil {
				continue // the ends have no address family in common
			}
			for _, e := range all {
				if e.Effects == nil {
					continue
				}
				changed := o
				for _, s := range []explain.Side{e.Egress, e.Ingress} {
					if s.Change != nil {
						safe(t, o, s, e.Flow.Key.Transport == filter.Ported)
						changed = apply(changed, s)
						seen[kindOf(s.Change)]++
					}
				}
				name := fmt.Sprintf("seed %d, %+v\n%s", seed, q, explain.Text([]explain.Explanation{e}))
				seen[compare(t, name, inventoryOf(o), inventoryOf(changed), e)]++
			}
		}
	}
	for _, what := range []string{"policy", "rule", "item", "ordered", "opens", "nothing else"} {
		if seen[what] < 10 {
			t.Errorf("%q occurred only %d times: the random clusters cover too little", what, seen[what])
		}
	}
}

func kindOf(c *explain.Change) string {
	switch {
	case c.New != nil:
		return "policy"
	case c.Before != nil:
		return "ordered"
	case c.To != nil:
		return "item"
	}
	return "rule"
}

// safe checks that a change of a NetworkPolicy adds to nothing that is for every peer, port or pod.
func safe(t *testing.T, o objects, s explain.Side, ported bool) {
	t.Helper()
	for _, p := range inventoryOf(o).Policies {
		if p.Ref != s.Change.Policy || p.Tier != policy.NetworkPolicy {
			continue
		}
		if p.Subject.Pods.Empty() {
			t.Errorf("%s selects every pod, and is to be changed", p.Ref)
		}
		if to := s.Change.To; to != nil {
			r := p.Rules[s.Direction][to.Index]
			if len(r.Peers) == 0 || len(r.Ports) == 0 && ported {
				t.Errorf("rule %v of %s is widened", *to, p.Ref)
			}
		}
	}
}

// compare compares all flows before and after the changes with the stated effects, and describes a
// difference.
func compare(t *testing.T, name string, before, after *inventory.Inventory, e explain.Explanation) string {
	t.Helper()
	result := "nothing else"
	if len(e.Effects.Opens) > 0 {
		result = "opens"
	}
	for _, f := range append([]explain.Flow{e.Flow}, e.Others...) {
		if v := after.Decide(after.Move(f)); v.Action != filter.Allow {
			t.Errorf("%s\nthe changes do not allow %s", name, f.Key)
		}
	}
	for _, from := range samples {
		for _, to := range samples {
			if from.Is4() != to.Is4() {
				continue
			}
			for _, k := range keys(from, to) {
				opened := before.Snapshot.Decide(k).Action != filter.Allow && after.Snapshot.Decide(k).Action == filter.Allow
				closed := before.Snapshot.Decide(k).Action == filter.Allow && after.Snapshot.Decide(k).Action != filter.Allow
				asked := slices.ContainsFunc(append([]explain.Flow{e.Flow}, e.Others...), func(f explain.Flow) bool { return sameFlow(before, f, k) })
				if stated := states(after, e.Effects, k); stated != (opened && !asked) {
					t.Fatalf("%s\n%s: opened %t, asked %t, stated %t", name, k, opened, asked, stated)
				}
				if closed && len(e.Effects.Isolates) == 0 {
					t.Fatalf("%s\n%s is closed, and no pod is said to be isolated", name, k)
				}
			}
		}
	}
	return result
}

// samples are the addresses of all pods, nodes and ranges of the random clusters, and a few others.
var samples = func() (all []netip.Addr) {
	for i := range 7 {
		all = append(all, netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+1)), netip.MustParseAddr(fmt.Sprintf("fd00::%d", i+1)))
	}
	for _, text := range []string{"10.0.0.9", "10.1.0.0", "192.0.2.7", "192.0.2.8", "192.0.2.9", "203.0.113.9", "fd00::9", "2001:db8::1"} {
		all = append(all, netip.MustParseAddr(text))
	}
	return all
}()

// keys returns flows between two addresses, to all ports that rules name, and to a port between these.
func keys(from, to netip.Addr) (all []filter.Key) {
	for _, proto := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
		for _, port := range []uint16{1, 79, 80, 81, 82, 83, 90, 91, 8080, 65535} {
			all = append(all, filter.NewKey(from, to, proto, port))
		}
	}
	if from.Is4() {
		return append(all, filter.NewKey(from, to, filter.ICMP, 0))
	}
	return append(all, filter.NewKey(from, to, filter.ICMPv6, 0))
}

// sameFlow reports whether key k belongs to flow f, with any address of the flow's ends.
func sameFlow(v *inventory.Inventory, f explain.Flow, k filter.Key) bool {
	return sameProtocol(f.Key.Protocol, k.Protocol) && f.Key.Port == k.Port && has(v, f.From, k.SrcAddr()) && has(v, f.To, k.DstAddr())
}

func sameProtocol(a, b filter.Protocol) bool {
	return a == b || a == filter.ICMP && b == filter.ICMPv6 || a == filter.ICMPv6 && b == filter.ICMP
}

// has reports whether a is an address of the end.
func has(v *inventory.Inventory, e *explain.End, a netip.Addr) bool {
	if owner := v.Snapshot.Endpoint(a); owner != nil && !owner.IsNode() {
		return e.Pod != nil && e.Pod.String() == owner.String()
	}
	return slices.Contains(e.Addrs, a) || e.Range != nil && e.Range.Contains(a) && v.Snapshot.NodeAt(a) == nil
}

// states reports whether the effects include the flow of key k.
func states(v *inventory.Inventory, effects *explain.Effects, k filter.Key) bool {
	return slices.ContainsFunc(effects.Opens, func(o explain.Opening) bool {
		return (o.Family == "IPv4") == k.SrcAddr().Is4() && has(v, o.From, k.SrcAddr()) && has(v, o.To, k.DstAddr()) && slices.ContainsFunc(o.Ports, func(p policy.PortRange) bool {
			return sameProtocol(p.Protocol, k.Protocol) && p.Low <= k.Port && k.Port <= p.High
		})
	})
}
