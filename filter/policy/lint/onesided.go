package lint

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// oneSidedCheck finds rules that one end of their flows allows and the other does not: let in but not
// out, or out but not in.
//
// A rule is one-sided only if nothing at all passes between the pods that it is for. If the other
// end allows some of it, the rule is probably wide on purpose, and the other end is the
// narrow side: "all pods of this namespace may reach the database", and only those that need it
// have the egress rule. An item of the rule, a peer or a port, of which nothing passes while others
// do is a finding of its own check, [OneSidedPart], which is only worth knowing.
//
// If blocks of addresses are the only other peers, the peer of the pods is the one-sided part, as if
// it had a rule of its own.
//
// Peers without pods, blocks of addresses, and flows that the rule's own end denies by another
// policy are not considered: no-match, pod-address and shadowed are about them.
type oneSidedCheck struct {
	l       *linter
	m       *reach.Map
	classes map[string][]*class // by namespace
	all     []*class
	found   []oneSidedRule
}

// class is the parties that policies cannot tell apart.
type class struct {
	pod     *pod // the first
	parties []*reach.Party
}

// oneSidedRule is a rule that is one-sided, with an example.
type oneSidedRule struct {
	p       *lintPolicy
	r       *rule
	field   string // of the rule, or of the one peer that has pods
	example *oneWay
	lacks   *lintPolicy // the policy that denies at the other end
}

// oneWay is a flow that one end allows and the other does not.
type oneWay struct {
	from, to *reach.Party
	span     reach.Span  // without an answer
	denied   filter.Side // of the other end
}

// tally is what is known about an item of a rule.
type tally struct {
	passes  bool    // both ends allow something of it
	example *oneWay // that the rule's own end allows, and the other does not; nil if there is none
}

func (t *tally) dead() bool { return !t.passes && t.example != nil }

// oneSided reports one-sided rules.
func (l *linter) oneSided(v *inventory.Inventory) {
	h := oneSidedCheck{l: l}
	for _, p := range l.policies {
		for d := range p.rules {
			for i := range p.rules[d] {
				if r := &p.rules[d][i]; l.mayBeOneSided(p, r) {
					h.prepare(v)
					h.rule(p, r)
				}
			}
		}
	}
	h.report()
}

// mayBeOneSided reports whether a rule allows pods by labels, and a policy denies something in the
// other direction.
func (l *linter) mayBeOneSided(p *lintPolicy, r *rule) bool {
	if p.subject == nil || r.action != policy.Accept || r.anyone || !slices.ContainsFunc(r.peers, func(x peer) bool { return x.arePods() }) {
		return false
	}
	return slices.ContainsFunc(l.policies, func(o *lintPolicy) bool {
		return o.Isolates[other(r.direction)] || slices.ContainsFunc(o.rules[other(r.direction)], func(x rule) bool { return x.action == policy.Deny })
	})
}

func other(d filter.Direction) filter.Direction {
	if d == filter.Egress {
		return filter.Ingress
	}
	return filter.Egress
}

// prepare finds the parties, once.
func (h *oneSidedCheck) prepare(v *inventory.Inventory) {
	if h.m != nil {
		return
	}
	pods := make(map[string]*pod, len(h.l.pods))
	for _, o := range h.l.pods {
		pods[o.ns.name+"/"+o.name] = o
	}
	h.m, h.classes = reach.New(v), make(map[string][]*class)
	known := make(map[inventory.Class]*class)
	for _, party := range h.m.Parties {
		o := party.Pods
		if party.Kind != reach.Pods || pods[o[0].String()] == nil {
			continue
		}
		end, err := v.EndOf(o[0], false)
		if err != nil {
			continue // not possible: it is an end of the party
		}
		key := v.ClassOf(end)
		if known[key] == nil {
			known[key] = &class{pod: pods[o[0].String()]}
			h.classes[party.Namespace] = append(h.classes[party.Namespace], known[key])
			h.all = append(h.all, known[key])
		}
		known[key].parties = append(known[key].parties, party)
	}
}

// rule checks a rule.
func (h *oneSidedCheck) rule(p *lintPolicy, r *rule) {
	subjects := h.matching(p.spaces == nil, p.namespace, p.selects)
	peers, ports := make([]tally, len(r.peers)), make([]tally, max(1, len(r.ports)))
	more := false // the rule also allows what cannot be checked
	for i := range r.peers {
		x := &r.peers[i]
		if !x.arePods() {
			more = true
			continue
		}
		for _, c := range h.matching(x.own, p.namespace, x.includes) {
			for _, s := range subjects {
				if !peers[i].passes || slices.ContainsFunc(ports, func(t tally) bool { return !t.passes }) {
					h.pair(r, c, s, &peers[i], ports)
				}
			}
		}
		if h.unseen(x) {
			more, peers[i].example = true, nil
		}
	}
	h.judge(p, r, peers, ports, more)
}

// matching returns the classes of one namespace, or of all, with pods for which f returns true.
func (h *oneSidedCheck) matching(own bool, namespace string, f func(*pod) bool) (found []*class) {
	among := h.all
	if own {
		among = h.classes[namespace]
	}
	for _, c := range among {
		if f(c.pod) {
			found = append(found, c)
		}
	}
	return found
}

// unseen reports whether the peer is probably for pods of kube-system, which manifests seldom
// include.
func (h *oneSidedCheck) unseen(x *peer) bool {
	return x.namespace.Matches(labels.Set{corev1.LabelMetadataName: metav1.NamespaceSystem}) && x.pods.Empty() && !h.l.hasSystem()
}

// pair checks a rule about the pods of two classes, of which s is selected by its policy.
func (h *oneSidedCheck) pair(r *rule, c, s *class, item *tally, ports []tally) {
	a, b := s.parties[0], c.parties[0]
	if c == s && len(c.parties) > 1 {
		b = c.parties[1]
	}
	if r.direction == filter.Ingress {
		a, b = b, a
	}
	pair := h.m.Between(a, b)
	if pair == nil || pair.Self {
		return
	}
	for i := range ports {
		for _, part := range r.parts(i, b) {
			for _, s := range pair.Spans {
				if at, shared := overlap(s, part); shared {
					f := oneWay{from: a, to: b, span: at}
					item.add(r.direction, s.Answer, f)
					ports[i].add(r.direction, s.Answer, f)
				}
			}
		}
	}
}

// parts returns the ports of an item of a rule, for a destination.
func (r *rule) parts(item int, to *reach.Party) (parts []reach.Span) {
	if len(r.ports) == 0 {
		for _, proto := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
			parts = append(parts, reach.Span{Protocol: proto, Low: 1, High: 65535})
		}
		return append(parts, reach.Span{Protocol: filter.ICMP})
	}
	x := r.ports[item]
	if x.Name == "" {
		return []reach.Span{{Protocol: x.Protocol, Low: max(1, x.Low), High: x.High}}
	}
	for _, o := range to.Pods[0].Ports {
		if o.Name == x.Name && o.Protocol == x.Protocol {
			parts = append(parts, reach.Span{Protocol: o.Protocol, Low: o.Number, High: o.Number})
		}
	}
	return parts
}

// overlap returns the ports that two spans have in common, and whether there are any.
func overlap(a, b reach.Span) (reach.Span, bool) {
	s := reach.Span{Protocol: a.Protocol, Low: max(a.Low, b.Low), High: min(a.High, b.High)}
	return s, a.Protocol == b.Protocol && s.Low <= s.High
}

// add adds an answer about a flow that the rule matches. An answer that depends on an address
// that is not known counts as one that lets the flow pass.
func (t *tally) add(d filter.Direction, a *reach.Answer, f oneWay) {
	for _, o := range a.Outcomes() {
		mine, theirs := o.Ingress, o.Egress
		if d == filter.Egress {
			mine, theirs = theirs, mine
		}
		switch {
		case o.Elsewhere != nil, mine.Allows() && theirs.Allows():
			t.passes = true
		case mine.Allows() && (t.example == nil || t.example.from == t.example.to && f.from != f.to):
			f.denied = theirs
			t.example = &f
		}
	}
}

// judge notes what was found about a rule.
func (h *oneSidedCheck) judge(p *lintPolicy, r *rule, peers, ports []tally, more bool) {
	dead := func(t tally) bool { return t.dead() && !h.l.unclear(t.example) }
	passes := func(t tally) bool { return t.passes }
	first := slices.IndexFunc(peers, dead)
	switch {
	case first >= 0 && !slices.ContainsFunc(peers, passes):
		x := oneSidedRule{p, r, r.field, peers[first].example, h.lacking(peers[first].example, other(r.direction))}
		if more {
			x.field = r.peers[first].field
		}
		h.found = append(h.found, x)
	case first >= 0:
		h.part(p, r, r.peers[first].field, "peer", peers[first].example)
	case !more && slices.ContainsFunc(ports, dead):
		i := slices.IndexFunc(ports, dead)
		h.part(p, r, r.ports[i].field, "port", ports[i].example)
	}
}

// unclear reports whether a policy that isolates the other end has parts that cannot be understood:
// they may be meant to allow the flow.
func (l *linter) unclear(f *oneWay) bool {
	return f.denied.Isolation != nil && slices.ContainsFunc(l.policies, func(p *lintPolicy) bool {
		return len(p.Problems) > 0 && slices.Contains(f.denied.Isolation.Policies, p.text)
	})
}

// part reports an item of which nothing passes, in a rule of which something does.
func (h *oneSidedCheck) part(p *lintPolicy, r *rule, field, what string, f *oneWay) {
	x := oneSidedRule{p, r, field, f, h.lacking(f, other(r.direction))}
	h.l.found(OneSidedPart, p, x.field, x.hint(what), "nothing of this %s is let %s: %s", what, inOrOut(other(r.direction)), x.because())
}

// lacking returns the policy that denies a flow at the other end, in direction d: that of the
// rule that denies it, or, of the policies that isolate the pod, the one for the fewest pods.
func (h *oneSidedCheck) lacking(f *oneWay, d filter.Direction) *lintPolicy {
	var best *lintPolicy
	fewest := 0
	for _, p := range h.l.policies {
		if rule := f.denied.Rule; rule != nil {
			if p.text == rule.Policy && p.Tier == rule.Tier {
				return p
			}
			continue
		}
		if p.ordered() || f.denied.Isolation == nil || !slices.Contains(f.denied.Isolation.Policies, p.text) {
			continue
		}
		n := 0
		for _, c := range h.matching(true, p.namespace, p.selects) {
			n += len(c.parties)
		}
		// Of several for the same pods, one with rules of the direction is the place for another.
		rank := 2 * n
		if len(p.rules[d]) == 0 {
			rank++
		}
		if best == nil || rank < fewest {
			best, fewest = p, rank
		}
	}
	return best
}
