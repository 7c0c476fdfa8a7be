package reach_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/reach"
)

// changed returns the objects of a cluster after random changes of policies, labels, addresses and
// pods.
func (d dice) changed(o inventory.Objects) inventory.Objects {
	var policies []*policy.Policy
	for _, p := range o.Policies {
		switch d.IntN(4) {
		case 0:
		case 1:
			other := d.policy(p.Ref.Name)
			if p.Tier != policy.NetworkPolicy {
				other = d.ordered(p.Ref.Name)
			}
			policies = append(policies, other)
		default:
			policies = append(policies, p)
		}
	}
	policies = append(policies, d.policy("later"))
	o.Policies = policies
	o.Pods = d.laterPods(o.Pods)
	if d.one(3) {
		o.Workloads = slices.Clone(o.Workloads)
		o.Workloads = slices.DeleteFunc(o.Workloads, func(*kubepod.Workload) bool { return d.one(3) })
	}
	for _, w := range o.Workloads {
		if d.one(4) { // the workload has a running pod now
			pod := *w.Pod
			pod.Name, pod.Owner = w.Ref.Name+"-0", w.Ref
			pod.Addrs = []netip.Addr{netip.MustParseAddr(fmt.Sprint("10.0.0.1", d.IntN(3)))}
			if !pod.HostNetwork && !slices.ContainsFunc(o.Pods, func(p *policy.Pod) bool { return slices.Equal(p.Addrs, pod.Addrs) }) {
				o.Pods = append(o.Pods, &pod)
			}
		}
	}
	if d.one(4) {
		o.Namespaces = d.objects().Namespaces
	}
	if d.one(4) {
		o.Nodes = d.objects().Nodes
	}
	return o
}

func (d dice) laterPods(pods []*policy.Pod) (all []*policy.Pod) {
	for i, p := range pods {
		p := *p
		switch d.IntN(10) {
		case 0:
			continue
		case 1:
			p.Labels = d.labels()
		case 2:
			p.Name += "-again"
		case 3:
			if len(p.Addrs) > 0 && !p.HostNetwork {
				p.Addrs = []netip.Addr{netip.MustParseAddr(fmt.Sprint("10.0.0.2", i))}
			}
		case 4:
			p = *d.pod(i)
		}
		all = append(all, &p)
	}
	return append(all, d.pod(15))
}

// member is a pod, a node or an address of a party.
type member struct {
	name  string
	end   *inventory.End
	addrs [2][]netip.Addr // by family: several if the address is assumed
}

// membersOf returns the members of all parties.
func membersOf(t *testing.T, m *reach.Map) map[*reach.Party][]*member {
	all := make(map[*reach.Party][]*member)
	for _, s := range everyone(t, m) {
		of := all[s.party]
		if s.party.Kind == reach.Outside {
			s.name = s.party.Name // all addresses of a range are one member, with both families
		}
		i := slices.IndexFunc(of, func(o *member) bool { return o.name == s.name })
		if i < 0 {
			i = len(of)
			of = append(of, &member{name: s.name, end: s.end})
			all[s.party] = of
		}
		f := 1
		if s.addr.Is4() {
			f = 0
		}
		of[i].addrs[f] = append(of[i].addrs[f], s.addr)
	}
	return all
}

// couple is a pair of members in one of the clusters. It is zero if one of the parties is missing
// there.
type couple struct {
	v        *inventory.Inventory
	from, to *member
}

func (c couple) has(f int) bool {
	return c.from != nil && len(c.from.addrs[f]) > 0 && len(c.to.addrs[f]) > 0
}

func (c couple) own() bool {
	own := func(pod, node *member) bool {
		return pod.end.Pod != nil && node.end.Node && slices.ContainsFunc(node.end.Addrs, func(a netip.Addr) bool { return slices.Contains(pod.end.Endpoint.Hosts(), a) })
	}
	return c.from != nil && (own(c.from, c.to) || own(c.to, c.from))
}

func (c couple) allows(src, dst netip.Addr, k filter.Key) bool {
	proto := k.Protocol
	if proto == filter.ICMPv6 {
		proto = filter.ICMP
	}
	if proto == filter.ICMP && src.Is6() {
		proto = filter.ICMPv6
	}
	return c.v.Decide(inventory.Flow{From: c.from.end, To: c.to.end, Key: filter.NewKey(src, dst, proto, k.Port)}).Action == filter.Allow
}

// allowsAny reports whether a flow of any family is allowed. known is false if this depends on assumed
// addresses.
func (c couple) allowsAny(k filter.Key) (allowed, known bool) {
	for f := range 2 {
		if !c.has(f) {
			continue
		}
		if c.from.end.Assumed || c.to.end.Assumed {
			return false, false
		}
		allowed = allowed || c.allows(c.from.addrs[f][0], c.to.addrs[f][0], k)
	}
	return allowed, true
}

// effectsFor returns the effects that the changes have on a key.
func effectsFor(changes []reach.Change, own bool, f int, k filter.Key) (opens, closes *reach.Effect) {
	proto := k.Protocol
	if proto == filter.ICMPv6 {
		proto = filter.ICMP
	}
	for _, c := range changes {
		if c.OwnNode != own || c.Family != "" && c.Family != []string{"IPv4", "IPv6"}[f] {
			continue
		}
		for _, s := range c.Spans {
			switch {
			case !s.Contains(proto, k.Port):
			case c.Opens:
				opens = c.Effect
			default:
				closes = c.Effect
			}
		}
	}
	return opens, closes
}

// checker compares a Diff with the verdicts about all pairs of members.
type checker struct {
	*testing.T
	seed    uint64
	diff    *reach.Diff
	old     map[*reach.Party][]*member
	new     map[*reach.Party][]*member
	changes map[[2]*reach.Match][]reach.Change
	maybe   map[*reach.Effect]bool // effects that depend on addresses; whether the brute force found the change
	flows   int
	changed int
}

var missingMember = []*member{nil}

func (c *checker) members(of map[*reach.Party][]*member, p *reach.Party) []*member {
	if p == nil {
		return missingMember
	}
	return of[p]
}

func hasPods(m *reach.Match) bool {
	return m.Old != nil && m.Old.Kind == reach.Pods || m.New != nil && m.New.Kind == reach.Pods
}

// pair checks all pairs of members of two matches.
func (c *checker) pair(from, to *reach.Match) {
	if !hasPods(from) && !hasPods(to) {
		return // policies do not decide
	}
	for _, of := range c.members(c.old, from.Old) {
		for _, ot := range c.members(c.old, to.Old) {
			for _, nf := range c.members(c.new, from.New) {
				for _, nt := range c.members(c.new, to.New) {
					before, after := couple{c.diff.Old.Inventory(), of, ot}, couple{c.diff.New.Inventory(), nf, nt}
					if of == nil || ot == nil {
						before = couple{}
					}
					if nf == nil || nt == nil {
						after = couple{}
					}
					if of != nil && of == ot || nf != nil && nf == nt {
						continue
					}
					own := before.own()
					if before.own() != after.own() || before.from == nil && after.from == nil {
						continue
					}
					if own && (!before.has(0) && !before.has(1) || !after.has(0) && !after.has(1)) {
						continue // OwnNode is nil, and does not show that no packet can pass
					}
					for f := range 2 {
						c.family(before, after, f, own, c.changes[[2]*reach.Match{from, to}])
					}
				}
			}
		}
	}
}

// family checks the flows of a family between two members in both clusters.
func (c *checker) family(before, after couple, f int, own bool, changes []reach.Change) {
	check := func(k filter.Key, was, now bool) {
		c.flows++
		opens, closes := effectsFor(changes, own, f, k)
		c.verify("opens", opens, now && !was, before, after, k)
		c.verify("closes", closes, was && !now, before, after, k)
	}
	switch {
	case before.has(f) && after.has(f):
		for _, src := range together(before.from, after.from, f) {
			for _, dst := range together(before.to, after.to, f) {
				if src[0] == dst[0] || src[1] == dst[1] {
					continue
				}
				for _, k := range keys(src[1], dst[1]) {
					check(k, before.allows(src[0], dst[0], k), after.allows(src[1], dst[1], k))
				}
			}
		}
	case before.has(f) || after.has(f):
		with, other := after, before
		if before.has(f) {
			with, other = before, after
		}
		for _, src := range with.from.addrs[f] {
			for _, dst := range with.to.addrs[f] {
				for _, k := range keys(src, dst) {
					any, known := other.allowsAny(k)
					if !known || src == dst {
						c.unknown(changes)
						continue
					}
					if allowed := with.allows(src, dst, k) && !any; with == after {
						check(k, false, allowed)
					} else {
						check(k, allowed, false)
					}
				}
			}
		}
	}
}

// unknown marks effects that depend on addresses as found, because the brute force does not try all
// addresses that get other verdicts.
func (c *checker) unknown(changes []reach.Change) {
	for _, one := range changes {
		if one.Maybe {
			c.maybe[one.Effect] = true
		}
	}
}

// together returns the pairs of addresses that a member may have in the old and in the new cluster. If
// both are assumed, the two addresses are equal.
func together(before, after *member, f int) (all [][2]netip.Addr) {
	for _, a := range before.addrs[f] {
		for _, b := range after.addrs[f] {
			if a == b || !before.end.Assumed || !after.end.Assumed {
				all = append(all, [2]netip.Addr{a, b})
			}
		}
	}
	return all
}

func (c *checker) verify(what string, e *reach.Effect, happens bool, before, after couple, k filter.Key) {
	if happens {
		c.changed++
	}
	switch {
	case e != nil && e.Maybe:
		c.maybe[e] = c.maybe[e] || happens
	case happens != (e != nil):
		text := ""
		for _, x := range []couple{before, after} {
			if x.from == nil {
				text += "(missing) "
				continue
			}
			text += fmt.Sprintf("%s %v to %s %v; ", x.from.name, x.from.addrs, x.to.name, x.to.addrs)
		}
		c.Fatalf("seed %d: %s%s: it %s: %t, but the effect is %+v", c.seed, text, k, what, happens, e)
	}
}

// The changes agree with the verdicts of both clusters about all pairs of members of the parties, at
// every port and, for pods without addresses, at every address.
func TestCompareAgreesWithDecide(t *testing.T) {
	flows, changed, unsure := 0, 0, 0
	seeds := []uint64{1094, 2395} // these seeds have found faults
	for seed := range uint64(100) {
		seeds = append(seeds, seed)
	}
	for _, seed := range seeds {
		d := newDice(seed)
		before := d.objects()
		c := checker{T: t, seed: seed, diff: reach.Compare(inventory.New(before), inventory.New(d.changed(before)))}
		c.old, c.new = membersOf(t, c.diff.Old), membersOf(t, c.diff.New)
		c.changes, c.maybe = make(map[[2]*reach.Match][]reach.Change), make(map[*reach.Effect]bool)
		for _, one := range c.diff.Changes {
			key := [2]*reach.Match{one.From, one.To}
			c.changes[key] = append(c.changes[key], one)
		}
		for _, from := range c.diff.Matches {
			for _, to := range c.diff.Matches {
				c.pair(from, to)
			}
		}
		for e, found := range c.maybe {
			if unsure++; !found {
				t.Errorf("seed %d: an effect may happen, but does not: %+v", seed, *e)
			}
		}
		flows, changed = flows+c.flows, changed+c.changed
	}
	if t.Logf("%d flows, %d changed, %d effects that depend on addresses", flows, changed, unsure); changed == 0 || unsure == 0 {
		t.Error("the clusters do not try everything")
	}
}
