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

// oneSidedCheck finds rules whose flows one end allows and the other end denies: ingress rules whose
// sources may not send, and egress rules whose destinations may not receive.
//
// A rule is one-sided only if none of its flows between pods passes. If the other end allows some of
// them, the rule is probably wide on purpose, and the other end restricts it: a rule such as "all pods
// of this namespace may reach the database", with egress rules only for the pods that need it. If
// nothing passes for one item of a rule (a peer or a port), but something passes for other items, the
// finding is [OneSidedPart], whose severity is only Info.
//
// If the rule also has peers that the check ignores, such as blocks of addresses, the finding names the
// first peer none of whose flows passes, instead of the rule.
//
// The check ignores peers that match no pods, blocks of addresses, and flows that another policy of the
// rule's own end denies: the checks no-match, pod-address and shadowed report these.
type oneSidedCheck struct {
	l       *linter
	m       *reach.Map
	classes map[string][]*class // by namespace
	all     []*class
	found   []oneSidedRule
}

// class is a set of parties to which the same policies and rules apply.
type class struct {
	pod     *pod // of the first party
	parties []*reach.Party
}

// oneSidedRule is a one-sided rule, with an example of a denied flow.
type oneSidedRule struct {
	p       *lintPolicy
	r       *rule
	field   string // field of the rule, or of its first one-sided peer
	example *oneWay
	lacks   *lintPolicy // the policy that denies at the other end
}

// oneWay is a flow that the end with the rule allows and the other end denies.
type oneWay struct {
	from, to *reach.Party
	span     reach.Span  // Answer is not set
	denied   filter.Side // the denying end's side of the verdict
}

// tally collects the answers about the flows of one item of a rule: a peer or a port.
type tally struct {
	passes  bool    // both ends allow one of the flows
	example *oneWay // a flow that the rule's own end allows and the other end denies; nil if there is none
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

// mayBeOneSided reports whether the rule allows pods by labels, and any policy can deny flows in the
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

// prepare computes the parties and their classes on the first call.
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
			continue // not possible: o[0] is a pod of the party, so it is an end
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

// rule checks whether a rule is one-sided.
func (h *oneSidedCheck) rule(p *lintPolicy, r *rule) {
	subjects := h.matching(p.spaces == nil, p.namespace, p.selects)
	peers, ports := make([]tally, len(r.peers)), make([]tally, max(1, len(r.ports)))
	more := false // the rule also allows peers that cannot be checked
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

// matching returns the classes of the namespace whose pods f accepts; if own is false, of all
// namespaces.
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

// unseen reports whether the peer is probably about pods of kube-system that the manifests lack.
func (h *oneSidedCheck) unseen(x *peer) bool {
	return x.namespace.Matches(labels.Set{corev1.LabelMetadataName: metav1.NamespaceSystem}) && x.pods.Empty() && !h.l.hasSystem()
}

// pair checks the flows of a rule between the pods of the classes c and s; the rule's policy selects
// the pods of s.
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

// parts returns the ports of the given item of r.ports, resolved for the destination to.
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

// add counts an answer about a flow that the rule matches. If the answer depends on an unknown address,
// add counts the flow as passing.
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

// judge turns the tallies of a rule's items into a finding.
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
// they may have been meant to allow the flow.
func (l *linter) unclear(f *oneWay) bool {
	return f.denied.Isolation != nil && slices.ContainsFunc(l.policies, func(p *lintPolicy) bool {
		return len(p.Problems) > 0 && slices.Contains(f.denied.Isolation.Policies, p.text)
	})
}

// part reports an item none of whose flows passes, in a rule with other items that let flows pass.
func (h *oneSidedCheck) part(p *lintPolicy, r *rule, field, what string, f *oneWay) {
	x := oneSidedRule{p, r, field, f, h.lacking(f, other(r.direction))}
	h.l.found(OneSidedPart, p, x.field, x.hint(what), "nothing of this %s is let %s: %s", what, inOrOut(other(r.direction)), x.because())
}

// lacking returns the policy that denies the flow at the other end, in direction d. This is the policy
// of the denying rule, or, without such a rule, the policy that selects the fewest pods among those
// that isolate the pod.
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
		// If several policies select as few pods, prefer one with rules in this direction: a rule can
		// be added there.
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
