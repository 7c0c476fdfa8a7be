package reach_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// someone is an end that the brute force tries: one address of a pod or a node, or one outside the
// cluster. A pod without an address is tried at several addresses that it may have.
type someone struct {
	party *reach.Party
	name  string // of the pod, the node, or the address
	addr  netip.Addr
	end   *inventory.End
}

// probes are the ports that the brute force tries: at all borders of spans, and beside them.
var probes = []uint16{1, 80, 81, 82, 83, 90, 91, 8080, 65535}

// everyone returns all ends that the brute force tries: each pod and each node with each of its
// addresses, and addresses outside the cluster.
func everyone(t *testing.T, m *reach.Map) (all []someone) {
	v := m.Inventory()
	known := make(map[netip.Addr]bool)
	for _, p := range m.Parties {
		for _, pod := range p.Pods {
			e, err := v.EndOf(pod, false)
			if err != nil {
				t.Fatal(err)
			}
			for _, a := range e.Addrs {
				if e.Assumed {
					continue
				}
				all = append(all, someone{p, pod.String(), a, e})
			}
			if e.Assumed {
				for _, a := range assumable(v, e) {
					all = append(all, someone{p, pod.String(), a, e})
				}
			}
		}
	}
	for _, e := range v.NodeEnds() {
		for _, a := range e.Addrs {
			i := slices.IndexFunc(m.Parties, func(p *reach.Party) bool { return slices.Contains(p.Nodes, e.Name) })
			if i < 0 {
				t.Fatalf("node %s is in no party", e.Name)
			}
			known[a] = true
			all = append(all, someone{m.Parties[i], e.Name, a, e})
		}
	}
	for _, text := range []string{"203.0.113.200", "192.0.2.200", "10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6", "10.0.0.7", "10.0.0.200", "172.16.0.9", "fd00::5", "fd00::7", "fd00::4f", "2001:db8::77", "8.8.8.8"} {
		a := netip.MustParseAddr(text)
		if v.Snapshot.Endpoint(a) != nil || known[a] {
			continue
		}
		for _, p := range m.Parties {
			if slices.ContainsFunc(p.Ranges, func(r inventory.Range) bool { return r.Contains(a) }) {
				all = append(all, someone{p, text, a, &inventory.End{Name: text, Addrs: []netip.Addr{a}}})
			}
		}
	}
	return all
}

// assumable returns addresses that a pod without an address may have: for each of its families, up to
// two in each set of addresses that policies do not tell apart.
func assumable(v *inventory.Inventory, e *inventory.End) (all []netip.Addr) {
	host := e.Node
	texts := []string{"203.0.113.77", "203.0.113.78", "192.0.2.77", "192.0.2.78", "8.8.8.8", "8.8.8.9", "2001:db8::7", "2001:db8::8", "10.0.1.1", "10.0.1.2", "10.9.9.9", "10.9.9.8", "172.16.1.1", "172.16.1.2", "192.168.1.1", "192.168.1.2", "fdff::99", "fdff::98"}
	if !host {
		texts = texts[8:] // pods have private addresses
	}
	for i := range 16 {
		texts = append(texts, fmt.Sprintf("10.0.0.%d", i), fmt.Sprintf("fd00::%x", i))
	}
	count := make(map[inventory.Class]int)
	for _, text := range texts {
		a := netip.MustParseAddr(text)
		if !slices.ContainsFunc(e.Addrs, func(o netip.Addr) bool { return o.Is4() == a.Is4() }) || v.Snapshot.Endpoint(a) != nil {
			continue
		}
		if !host && a.Is4() && len(v.PodRanges) > 0 && !v.PodRanges[0].Contains(a) {
			continue
		}
		place := v.ClassOf(&inventory.End{Addrs: []netip.Addr{a}})
		if count[place]++; count[place] <= 2 {
			all = append(all, a)
		}
	}
	return all
}

// keys returns the keys that the brute force tries between two ends.
func keys(src, dst netip.Addr) (all []filter.Key) {
	for _, proto := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
		for _, port := range probes {
			all = append(all, filter.NewKey(src, dst, proto, port))
		}
	}
	if src.Is6() {
		return append(all, filter.NewKey(src, dst, filter.ICMPv6, 0))
	}
	return append(all, filter.NewKey(src, dst, filter.ICMP, 0))
}

// spansOf returns the spans of a pair that apply to two ends.
func spansOf(pair *reach.Pair, from, to someone) []reach.Span {
	own := func(pod, node someone) bool {
		return pod.end.Pod != nil && node.end.Node && slices.Contains(pod.end.Endpoint.Hosts(), node.addr)
	}
	if own(from, to) || own(to, from) {
		return pair.OwnNode
	}
	return pair.Spans
}

// The answers about parties agree with Decide for all pairs of their members, at every port and, for
// pods without addresses, at every address that they may have.
func TestBetweenAgreesWithDecide(t *testing.T) {
	checked, depends, own := 0, 0, 0
	for seed := range uint64(650) {
		v := inventory.New(newDice(seed).objects())
		m := reach.New(v)
		all := everyone(t, m)
		seen := make(map[*reach.Outcome][2]bool) // the actions found for each outcome that depends on addresses
		for _, from := range all {
			for _, to := range all {
				if from.addr == to.addr || from.addr.Is4() != to.addr.Is4() || from.name == to.name {
					continue
				}
				pair := m.Between(from.party, to.party)
				if pair == nil {
					if from.end.Pod != nil || to.end.Pod != nil {
						t.Fatalf("seed %d: no answer for %s to %s", seed, from.name, to.name)
					}
					continue
				}
				spans := spansOf(pair, from, to)
				if len(pair.OwnNode) > 0 && &spans[0] == &pair.OwnNode[0] {
					own++
				}
				for _, k := range keys(from.addr, to.addr) {
					got := v.Decide(inventory.Flow{From: from.end, To: to.end, Key: k})
					if err := agrees(spans, k, got, seen); err != nil {
						t.Fatalf("seed %d: %s (%s) to %s (%s), %s: %v", seed, from.name, from.party.Name, to.name, to.party.Name, k, err)
					}
					checked++
				}
			}
		}
		for o, verdicts := range seen {
			if depends++; !verdicts[0] || !verdicts[1] {
				t.Errorf("seed %d: %+v depends, %+v elsewhere, but only one was found", seed, o.Verdict, *o.Elsewhere)
			}
		}
	}
	if t.Logf("%d flows, %d on a pod's own node, %d outcomes that depend", checked, own, depends); own == 0 || depends == 0 {
		t.Error("the clusters do not try everything")
	}
}

// agrees compares the verdict got with that of the spans.
func agrees(spans []reach.Span, k filter.Key, got filter.Verdict, seen map[*reach.Outcome][2]bool) error {
	proto := k.Protocol
	if proto == filter.ICMPv6 {
		proto = filter.ICMP
	}
	a := reach.At(spans, proto, k.Port)
	if a == nil {
		return fmt.Errorf("no span has it, of %v", spans)
	}
	o := a.IPv4
	if k.SrcAddr().Is6() {
		o = a.IPv6
	}
	switch {
	case o == nil:
		return fmt.Errorf("no answer for the family, in %v", spans)
	case o.Elsewhere != nil:
		s := seen[o]
		s[got.Action] = true
		seen[o] = s
		return nil
	case o.Action != got.Action:
		return fmt.Errorf("%s, but Decide says %s", o.Action, got.Action)
	}
	return nil
}

// Every pod is in exactly one party or in LeftOut.
func TestEveryPodIsInOneParty(t *testing.T) {
	for seed := range uint64(100) {
		v := inventory.New(newDice(seed).objects())
		m := reach.New(v)
		var got []*policy.Pod
		names := make(map[string]bool)
		for _, p := range m.Parties {
			got = append(got, p.Pods...)
			if names[p.Name] {
				t.Errorf("seed %d: two parties have the name %s", seed, p.Name)
			}
			names[p.Name] = true
		}
		for _, l := range m.LeftOut {
			got = append(got, l.Pod)
		}
		want := v.AllPods()
		less := func(a, b *policy.Pod) int { return slices.Index(want, a) - slices.Index(want, b) }
		slices.SortFunc(got, less)
		if !slices.Equal(got, want) {
			t.Errorf("seed %d: %v, want %v", seed, got, want)
		}
	}
}
