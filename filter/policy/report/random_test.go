package report

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// dice makes small random clusters.
type dice struct{ *rand.Rand }

func newDice(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 31))} }

func pick[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

func (d dice) one(in int) bool { return d.IntN(in) == 0 }

func (d dice) selector() labels.Selector {
	if d.one(3) {
		return labels.Everything()
	}
	return selector(pick(d, "a", "b", "c"))
}

func selector(app string) labels.Selector { return labels.SelectorFromSet(labels.Set{"app": app}) }

// pod returns a pod with labels, and often with an owner. Some pods have no address or are of the host
// network.
func (d dice) pod(i int) *policy.Pod {
	p := &policy.Pod{Namespace: pick(d, "shop", "pci", "ops"), Name: fmt.Sprint("p", i), Labels: labels.Set{"app": pick(d, "a", "b", "c")}}
	if owner := pick(d, "", "web", "db"); owner != "" {
		p.Owner = policy.Ref{Kind: "StatefulSet", Namespace: p.Namespace, Name: owner}
	}
	if !d.one(3) {
		p.Hosts = []netip.Addr{netip.MustParseAddr(pick(d, "192.0.2.7", "192.0.2.8"))}
	}
	v4, v6 := netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), netip.MustParseAddr(fmt.Sprintf("fd00::%x", i+1))
	switch d.IntN(8) {
	case 0:
		p.HostNetwork, p.Hosts = true, nil
		p.Addrs = []netip.Addr{netip.MustParseAddr(pick(d, "192.0.2.7", "192.0.2.8"))}
	case 1: // without an address
	case 2:
		p.Addrs = []netip.Addr{v6}
	case 3:
		p.Addrs = []netip.Addr{v4}
	default:
		p.Addrs = []netip.Addr{v4, v6}
	}
	return p
}

func (d dice) rule(ordered bool) policy.Rule {
	r := policy.Rule{Action: policy.Accept}
	if ordered {
		r.Action = pick(d, policy.Accept, policy.Deny, policy.Pass)
	}
	for range d.IntN(3) {
		peer := policy.Peer{Namespaces: labels.Everything(), Pods: d.selector()}
		if d.one(2) {
			peer = policy.Peer{Block: &policy.Block{CIDR: netip.MustParsePrefix(pick(d, "10.0.0.0/29", "0.0.0.0/0", "::/0", "192.0.2.0/24", "10.0.0.0/8", "203.0.113.0/24"))}}
		}
		r.Peers = append(r.Peers, peer)
	}
	for range d.IntN(3) {
		low := uint16(80 + d.IntN(3))
		r.Ports = append(r.Ports, policy.PortRange{Protocol: pick(d, filter.TCP, filter.TCP, filter.UDP), Low: low, High: low + uint16(pick(d, 0, 0, 9))})
	}
	return r
}

func (d dice) policy(i int) *policy.Policy {
	p := &policy.Policy{Tier: policy.NetworkPolicy, Isolates: pick(d, [2]bool{true, true}, [2]bool{false, true}, [2]bool{true, false})}
	ns := pick(d, "shop", "pci", "ops")
	p.Ref, p.Subject = policy.Ref{Kind: "NetworkPolicy", Namespace: ns, Name: fmt.Sprint("n", i)}, policy.Subject{Namespace: ns, Pods: d.selector()}
	if ordered := d.one(4); ordered {
		p.Tier, p.Priority, p.Isolates = pick(d, policy.Admin, policy.Baseline), int32(i), [2]bool{}
		p.Ref, p.Subject = policy.Ref{Kind: "ClusterNetworkPolicy", Name: fmt.Sprint("c", i)}, policy.Subject{Namespaces: labels.Everything(), Pods: d.selector()}
	}
	for dir := range p.Rules {
		for range d.IntN(3) {
			p.Rules[dir] = append(p.Rules[dir], d.rule(p.Tier != policy.NetworkPolicy))
		}
	}
	return p
}

func (d dice) objects() (o inventory.Objects) {
	for i := range 4 + d.IntN(6) {
		o.Pods = append(o.Pods, d.pod(i))
	}
	for i := range d.IntN(5) {
		o.Policies = append(o.Policies, d.policy(i))
	}
	for i := range d.IntN(3) {
		o.Nodes = append(o.Nodes, &policy.Node{Name: fmt.Sprint("node", i), Addrs: []netip.Addr{netip.MustParseAddr(fmt.Sprint("192.0.2.", 7+i))}})
	}
	return o
}

// place is an end that the brute force tries: one address of a pod or a node, or one outside the cluster.
type place struct {
	party *reach.Party
	end   *inventory.End
	addr  netip.Addr
}

func places(t *testing.T, r *Report, v *inventory.Inventory, to bool) (all []place) {
	add := func(p *reach.Party, e *inventory.End) {
		for _, a := range e.Addrs {
			all = append(all, place{p, e, a})
		}
	}
	for _, p := range r.parties {
		for _, pod := range p.Pods {
			e, err := v.EndOf(pod, to)
			if err != nil {
				t.Fatal(err)
			}
			add(p, e)
		}
		for _, e := range v.NodeEnds() {
			if slices.Contains(p.Nodes, e.Name) {
				add(p, e)
			}
		}
		for _, text := range []string{"203.0.113.200", "192.0.2.200", "10.0.0.200", "10.0.0.7", "8.8.8.8", "2001:db8::77"} {
			a := netip.MustParseAddr(text)
			if slices.ContainsFunc(p.Ranges, func(one inventory.Range) bool { return one.Contains(a) }) && v.Snapshot.Endpoint(a) == nil {
				add(p, &inventory.End{Name: text, Addrs: []netip.Addr{a}})
			}
		}
	}
	return all
}

// ownNode reports whether one end is a pod and the other has an address of the pod's node.
func ownNode(a, b place) bool {
	on := func(pod, node place) bool {
		return pod.end.Pod != nil && node.end.Node && slices.Contains(pod.end.Endpoint.Hosts(), node.addr)
	}
	return on(a, b) || on(b, a)
}

// answers returns the rows of the report about a flow.
func answers(r *Report, from, to place, proto filter.Protocol, port uint16) (rows []*Row) {
	has := func(row *Row, peer *reach.Party) bool {
		return row.OwnNode == ownNode(from, to) && slices.Contains(row.Peers, peer) &&
			slices.ContainsFunc(row.Ports, func(s reach.Span) bool { return s.Contains(proto, port) })
	}
	if r.within(from.party) && r.within(to.party) {
		for _, l := range r.Within {
			if has(l.Row, from.party) && slices.Contains(l.To, to.party) {
				rows = append(rows, l.Row)
			}
		}
		return rows
	}
	for _, m := range r.Members {
		for _, row := range m.In.Open {
			if m.Party == to.party && has(row, from.party) {
				rows = append(rows, row)
			}
		}
		for _, row := range m.Out.Open {
			if m.Party == from.party && has(row, to.party) {
				rows = append(rows, row)
			}
		}
	}
	return rows
}

// The report has exactly one row for every open flow into, out of and within the scope, and none for a
// closed one.
func TestReportAgreesWithDecide(t *testing.T) {
	opened, denied, own, depends := 0, 0, 0, 0
	for seed := range uint64(250) {
		d := newDice(seed)
		v := inventory.New(d.objects())
		r := New(reach.New(v), Options{Namespaces: pick(d, nil, []string{"pci"}, []string{"pci", "shop"})})
		for _, from := range places(t, r, v, false) {
			for _, to := range places(t, r, v, true) {
				if !r.within(from.party) && !r.within(to.party) || from.addr.Is4() != to.addr.Is4() || from.addr == to.addr ||
					from.end.Name == to.end.Name || from.party.Kind != reach.Pods && to.party.Kind != reach.Pods {
					continue
				}
				for _, k := range keys(from.addr, to.addr) {
					proto := k.Protocol
					if proto == filter.ICMPv6 {
						proto = filter.ICMP
					}
					verdict := v.Decide(inventory.Flow{From: from.end, To: to.end, Key: k})
					rows := answers(r, from, to, proto, k.Port)
					at := fmt.Sprintf("seed %d: %s to %s, %s: %s, in the report: %v", seed, from.end.Name, to.end.Name, k, verdict.Action, conditions(rows))
					switch {
					case len(rows) > 1:
						t.Fatalf("%s: it is there %d times", at, len(rows))
					case len(rows) == 0 || rows[0].excludes(from.addr):
						if denied++; verdict.Action == filter.Allow {
							t.Fatal(at)
						}
					case rows[0].Verdict == reach.Depends:
						depends++
					case verdict.Action != filter.Allow:
						t.Fatal(at)
					case !rows[0].has(verdict, r.within(to.party)):
						t.Fatalf("%s: the rule that lets it is not in %v", at, rows[0].Rules)
					case rows[0].always && verdict.Reason != filter.OwnNode:
						t.Fatalf("%s: no policy could close it, but the reason is %s", at, verdict.Reason)
					}
					if len(rows) > 0 {
						opened++
						if rows[0].OwnNode {
							own++
						}
					}
				}
			}
		}
	}
	if t.Logf("%d open, %d denied, %d on the own node, %d depend", opened, denied, own, depends); opened == 0 || denied == 0 || own == 0 || depends == 0 {
		t.Error("the clusters do not try everything")
	}
}

// has reports whether a row has the rule that decides on the member's side of a verdict. The member is
// the destination if in is true, and the source otherwise.
func (row *Row) has(v filter.Verdict, in bool) bool {
	d := filter.Egress
	if in {
		d = filter.Ingress
	}
	rule := sideOf(&v, d).Rule
	return rule == nil || slices.Contains(row.Rules, *rule)
}

// excludes reports whether the condition of a row excludes the family of an address.
func (row *Row) excludes(a netip.Addr) bool {
	family := "IPv6"
	if a.Is4() {
		family = "IPv4"
	}
	return strings.Contains(row.Condition, "not by "+family)
}

func conditions(rows []*Row) (all []string) {
	for _, row := range rows {
		all = append(all, fmt.Sprintf("%s %s (%s)", row.Verdict, row.PortsText(), row.Condition))
	}
	return all
}

func keys(src, dst netip.Addr) (all []filter.Key) {
	for _, proto := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
		for _, port := range []uint16{1, 79, 80, 81, 82, 83, 89, 90, 91, 92, 65535} {
			all = append(all, filter.NewKey(src, dst, proto, port))
		}
	}
	if src.Is6() {
		return append(all, filter.NewKey(src, dst, filter.ICMPv6, 0))
	}
	return append(all, filter.NewKey(src, dst, filter.ICMP, 0))
}

// For each member, every peer about which policies decide is either in a row or in a Shut.
func TestEveryPeerIsOpenOrClosed(t *testing.T) {
	for seed := range uint64(100) {
		d := newDice(seed)
		m := reach.New(inventory.New(d.objects()))
		r := New(m, Options{Namespaces: pick(d, nil, []string{"pci"})})
		for _, member := range r.Members {
			for _, peer := range r.parties {
				if peer == member.Party && member.Single() {
					continue
				}
				check := func(s *Side, pair *reach.Pair) {
					times := 0
					for _, row := range r.rowsOf(member, s) {
						if !row.OwnNode && slices.Contains(row.Peers, peer) {
							times = 1
						}
					}
					for _, shut := range slices.Concat(s.Closed, s.ClosedWithin) {
						if slices.Contains(shut.Peers, peer) {
							times += 2
						}
					}
					if want := pair != nil && !onlyOwnNode(pair); want != (times == 1 || times == 2) || times > 2 {
						t.Fatalf("seed %d: %s, %s: %s is in it: %d", seed, member.Name, s.Direction, peer.Name, times)
					}
				}
				check(member.In, m.Between(peer, member.Party))
				if !r.within(peer) {
					check(member.Out, m.Between(member.Party, peer))
				}
			}
		}
	}
}

// rowsOf returns the rows of a side and, for Ingress, the rows of flows from other members.
func (r *Report) rowsOf(m *Member, s *Side) []*Row {
	rows := slices.Clone(s.Open)
	for _, l := range r.Within {
		if s.Direction == filter.Ingress && slices.Contains(l.To, m.Party) {
			rows = append(rows, l.Row)
		}
	}
	return rows
}

// The names that words.of returns for a set stand for exactly the parties of the set.
func TestWordsMeanTheirSet(t *testing.T) {
	words := 0
	for seed := range uint64(200) {
		d := newDice(seed)
		m := reach.New(inventory.New(d.objects()))
		r := New(m, Options{Namespaces: pick(d, nil, []string{"pci"}, []string{"pci", "ops"})})
		within := d.one(2)
		for range 20 {
			var set []*reach.Party
			for _, p := range r.parties {
				if r.within(p) == within && !d.one(6) {
					set = append(set, p)
				}
			}
			w := newWords(r)
			got := w.expand(t, w.of(set))
			if slices.SortFunc(got, func(a, b *reach.Party) int { return r.rank[a] - r.rank[b] }); !slices.Equal(got, set) {
				t.Fatalf("seed %d: %v means %v, want %v", seed, w.of(set), partyNames(got), partyNames(set))
			}
			words += len(w.used)
		}
	}
	if words == 0 {
		t.Error("no words were used")
	}
}

// expand returns the parties for which names stand.
func (w *words) expand(t *testing.T, names []string) (set []*reach.Party) {
	t.Helper()
	byName, byWorkload := make(map[string]*reach.Party), make(map[string][]*reach.Party)
	for _, p := range w.report.parties {
		byName[w.name(p)] = p
		if p.Part {
			byWorkload[w.workloadName(p)] = append(byWorkload[w.workloadName(p)], p)
		}
	}
	for _, name := range names {
		word, but, _ := strings.Cut(strings.TrimSuffix(name, ")"), " (but not ")
		switch p := byName[name]; {
		case p != nil:
			set = append(set, p)
		case byWorkload[name] != nil:
			set = append(set, byWorkload[name]...)
		case w.used[word] == nil:
			t.Fatalf("%q is not explained", word)
		default:
			without := strings.Split(but, " and ")
			set = append(set, slices.DeleteFunc(slices.Clone(w.used[word]), func(p *reach.Party) bool { return slices.Contains(without, w.name(p)) })...)
		}
	}
	return set
}
