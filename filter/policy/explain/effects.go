package explain

import (
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// comparison finds the flows that changes of policies allow. A change affects only pods that its policy
// selects, so it compares only flows to or from these pods.
type comparison struct {
	before, after *Cluster
	from, to      []*End // all ends of the inventory with the changes applied
	asked         []Flow // the flows that the changes are meant to allow
	effects       Effects
	found, own    map[pairKey]int // indexes in effects.Opens and effects.own
}

// pairKey identifies two ends and an address family.
type pairKey struct {
	from, to *End
	family   string
}

func (x *comparison) compare(ch *Change) {
	p := x.after.policies[ch.Policy.String()]
	spans := x.after.spans(ch)
	subjects, others := x.from, x.to
	if ch.Direction == filter.Ingress {
		subjects, others = x.to, x.from
	}
	for _, subject := range subjects {
		if subject.Pod == nil || !x.after.selects(p, subject.Pod) {
			continue
		}
		if ch.New != nil && !x.isolatedBefore(subject, ch.Direction) {
			x.effects.Isolates = append(x.effects.Isolates, subject.Pod)
		}
		for _, other := range others {
			if ch.Direction == filter.Egress {
				x.pair(subject, other, spans)
			} else {
				x.pair(other, subject, spans)
			}
		}
	}
}

func (x *comparison) isolatedBefore(e *End, d filter.Direction) bool {
	f := x.before.inventory.Move(Flow{From: e, To: e})
	return f.From.Endpoint.Isolation(d) != nil
}

// pair compares the flows from one end to another, before and after the changes.
func (x *comparison) pair(from, to *End, spans []policy.PortRange) {
	if from.Pod != nil && to.Pod != nil && from.Pod.String() == to.Pod.String() && !from.Assumed {
		return // a pod always reaches itself
	}
	for _, f := range inventory.FlowsBetween(from, to, filter.TCP, 1) {
		ways := x.ways(f)
		for _, span := range spans {
			opened, key := 0, pairKey{from, to, familyOf(f.Key.SrcAddr())}
			if from.Node && x.before.inventory.Decide(ways[0].before).Reason == filter.OwnNode {
				add(&x.effects.own, x.own, key, span, false)
				continue
			}
			for _, w := range ways {
				if w.opens(x, span) {
					opened++
				}
			}
			if opened > 0 && !x.isAsked(from, to, span) {
				add(&x.effects.Opens, x.found, key, span, opened < len(ways))
			}
		}
	}
}

// way is a flow with one of the addresses that its ends may have, after and before the changes.
type way struct{ now, before Flow }

// ways returns a way for each of the addresses that the ends of the flow may have.
func (x *comparison) ways(f Flow) (all []way) {
	all = append(all, way{f, x.before.inventory.Move(f)})
	if f.From.Assumed || f.To.Assumed {
		for _, a := range x.after.inventory.Elsewhere(f) {
			all = append(all, way{a.Flow, x.before.inventory.Move(a.Flow)})
		}
	}
	return all
}

// opens reports whether the changes allow the flow at the first port of span. The other ports of span
// have the same verdict.
func (w way) opens(x *comparison, span policy.PortRange) bool {
	src, proto := w.now.Key.SrcAddr(), span.Protocol
	if proto == filter.ICMP && src.Is6() {
		proto = filter.ICMPv6
	}
	w.now.Key = filter.NewKey(src, w.now.Key.DstAddr(), proto, span.Low)
	w.before.Key = w.now.Key
	return x.after.inventory.Decide(w.now).Action == filter.Allow && x.before.inventory.Decide(w.before).Action != filter.Allow
}

// isAsked reports whether the flows are among those that the changes are meant to allow.
func (x *comparison) isAsked(from, to *End, span policy.PortRange) bool {
	return slices.ContainsFunc(x.asked, func(f Flow) bool {
		sameProtocol := f.Key.Protocol == span.Protocol || f.Key.Protocol == filter.ICMPv6 && span.Protocol == filter.ICMP
		return sameProtocol && f.Key.Port == span.Low && span.High == span.Low && isPart(from, f.From) && isPart(to, f.To)
	})
}

// isPart reports whether e is a part of an end of the question.
func isPart(e, asked *End) bool {
	switch {
	case e.Pod != nil:
		return slices.ContainsFunc(asked.Pods, func(p *policy.Pod) bool { return p.String() == e.Pod.String() })
	case asked.Pod != nil:
		return false
	case e.Range != nil && asked.Range != nil:
		return asked.Range.Contains(e.Addrs[0])
	}
	return slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return slices.Contains(asked.Addrs, a) })
}

// add adds span to the opening with this key, and adds the opening to the list if it is new.
func add(list *[]Opening, found map[pairKey]int, key pairKey, span policy.PortRange, depends bool) {
	i, known := found[key]
	if !known {
		i = len(*list)
		found[key] = i
		*list = append(*list, Opening{From: key.from, To: key.to, Family: key.family})
	}
	o := &(*list)[i]
	if !slices.Contains(o.Ports, span) {
		o.Ports = append(o.Ports, span)
	}
	o.Depends = o.Depends || depends
}

// spans splits the ports at which a change may allow flows into spans within which verdicts are equal:
// at the bounds of ports in rules, and at each port that has a name. ICMP, with the ports 0 to 0,
// stands for all protocols without ports.
func (c *Cluster) spans(ch *Change) (spans []policy.PortRange) {
	ports := ch.Rule.Ports
	if ch.To != nil && len(ports) == 0 {
		ports = c.rules(ch.Direction, ch.To.Policy)[ch.To.Index].Ports
	}
	if len(ports) == 0 {
		ports = []policy.PortRange{{Protocol: filter.TCP}, {Protocol: filter.UDP}, {Protocol: filter.SCTP}}
		spans = append(spans, policy.PortRange{Protocol: filter.ICMP})
	}
	for _, proto := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
		cuts := c.cuts(proto)
		for i, low := range cuts[:len(cuts)-1] {
			span := policy.PortRange{Protocol: proto, Low: uint16(low), High: uint16(cuts[i+1] - 1)}
			if slices.ContainsFunc(ports, func(p policy.PortRange) bool { return mayContain(p, span) }) {
				spans = append(spans, span)
			}
		}
	}
	return spans
}

// mayContain reports whether the port of a rule contains span. A named port may be any port.
func mayContain(p, span policy.PortRange) bool {
	return p.Protocol == span.Protocol && !p.Malformed && (p.Name != "" || p.Low == 0 || p.Low <= span.Low && span.High <= p.High)
}

// cuts returns the sorted first ports of the spans of a protocol, followed by 65536.
func (c *Cluster) cuts(proto filter.Protocol) []int {
	cuts := []int{1, 65536}
	for _, p := range c.inventory.Policies {
		for d := range p.Rules {
			for _, r := range p.Rules[d] {
				for _, port := range r.Ports {
					if port.Protocol == proto && port.Name == "" && !port.Malformed && port.Low > 0 {
						cuts = append(cuts, int(port.Low), int(port.High)+1)
					}
				}
			}
		}
	}
	for _, pod := range c.inventory.AllPods() {
		for _, p := range pod.Ports {
			if p.Name != "" && p.Protocol == proto {
				cuts = append(cuts, int(p.Number), int(p.Number)+1)
			}
		}
	}
	slices.Sort(cuts)
	return slices.Compact(cuts)
}
