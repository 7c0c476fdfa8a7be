package report

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/reach"
)

// opening is a set of ports that is open for the same reason on the member's side. Equal openings are
// the same pointer.
type opening struct {
	*reason              // of the member's policies
	Ports   []reach.Span // without answers
	Verdict reach.Verdict
	// Condition limits the opening to an address family, or to some of the addresses that are not
	// known. It is empty if there is no limit.
	Condition string
	// OwnNode reports that the opening is between pods and the node on which they run, including
	// the pods of the host network on that node.
	OwnNode bool
	always  bool // no policy can close it
}

// PortsText returns the ports as text.
func (o *opening) PortsText() string { return reach.PortsText(o.Ports, 0) }

// reason is why the policies of one end allow something.
type reason struct {
	Rules []filter.Rule // the rules that decide; several if they differ by address family or port
	Why   string        // in words; empty for an end that has no policies
}

// how is what the entries of spans depend on, in addition to the spans.
type how struct {
	direction    filter.Direction // Ingress if the member is the destination
	ownNode      bool
	member, peer bool // whether policies apply to it: it is a pod, and not of the host network
}

// entry is an opening between a member and a peer, with the reason on the peer's side.
type entry struct {
	*opening
	other *reason
}

// builder finds openings. It remembers them by the first span of a slice: package reach returns the same
// slice for equal spans.
type builder struct {
	reach    *reach.Map
	place    func(filter.Rule) string
	known    map[entriesKey][]entry
	shuts    map[entriesKey]shutKey
	openings map[string]*opening
}

type entriesKey struct {
	first *reach.Span
	how   how
}

func newBuilder(m *reach.Map, place func(filter.Rule) string) *builder {
	if place == nil {
		place = func(filter.Rule) string { return "" }
	}
	return &builder{m, place, make(map[entriesKey][]entry), make(map[entriesKey]shutKey), make(map[string]*opening)}
}

// entries returns the openings in spans: one for each reason and condition on the member's side.
func (b *builder) entries(spans []reach.Span, h how) (all []entry) {
	if len(spans) == 0 {
		return nil
	}
	key := entriesKey{&spans[0], h}
	if known, has := b.known[key]; has {
		return known
	}
	at := make(map[string]int)
	for _, s := range spans {
		if s.Verdict == reach.Deny {
			continue
		}
		own, other := b.reasons(s.Answer, h)
		condition := conditionOf(s.Answer)
		text := own.Why + "\n" + condition
		i, has := at[text]
		if !has {
			i = len(all)
			at[text] = i
			all = append(all, entry{&opening{reason: own, Verdict: s.Verdict, Condition: condition, OwnNode: h.ownNode, always: always(s.Answer, h)}, other})
		}
		e := &all[i]
		e.Ports = joined(e.Ports, s)
		e.other = e.other.with(other)
	}
	for i := range all {
		all[i].opening = b.intern(all[i].opening)
	}
	b.known[key] = all
	return all
}

// intern returns the same pointer for equal openings.
func (b *builder) intern(o *opening) *opening {
	key := fmt.Sprint(o.Why, "\n", o.Condition, "\n", o.OwnNode, o.always, o.Verdict, "\n", o.PortsText())
	if known := b.openings[key]; known != nil {
		return known
	}
	b.openings[key] = o
	return o
}

// joined appends a span to the list. If it touches the last one, joined joins the two.
func joined(list []reach.Span, s reach.Span) []reach.Span {
	if n := len(list); n > 0 && list[n-1].Protocol == s.Protocol && list[n-1].High+1 == s.Low {
		list[n-1].High = s.High
		return list
	}
	return append(list, reach.Span{Protocol: s.Protocol, Low: s.Low, High: s.High})
}

// with returns r combined with o, the reason for other ports.
func (r *reason) with(o *reason) *reason {
	if r == o || slices.Contains(strings.Split(r.Why, "; "), o.Why) {
		return r
	}
	return &reason{Rules: withRules(r.Rules, o.Rules), Why: strings.TrimPrefix(r.Why+"; "+o.Why, "; ")}
}

func withRules(list, more []filter.Rule) []filter.Rule {
	list = slices.Clone(list)
	for _, r := range more {
		if !slices.Contains(list, r) {
			list = append(list, r)
		}
	}
	return list
}

// reasons returns the reasons of the member and of the peer for which an answer allows something.
func (b *builder) reasons(a *reach.Answer, h how) (own, other *reason) {
	d := h.direction
	return b.reason(a, d, h.member, h.ownNode), b.reason(a, 1-d, h.peer, false)
}

// reason returns the reason of one end for which an answer allows something. It is empty if pod is false:
// then no policies apply to the end.
func (b *builder) reason(a *reach.Answer, d filter.Direction, pod, ownNode bool) *reason {
	if !pod {
		return &reason{}
	}
	r := &reason{}
	var texts, families []string
	for i, o := range []*reach.Outcome{a.IPv4, a.IPv6} {
		v := allowing(o)
		if v == nil {
			continue
		}
		texts, families = append(texts, b.sideText(v, d, ownNode)), append(families, []string{"IPv4", "IPv6"}[i])
		if rule := sideOf(v, d).Rule; rule != nil && v.Reason != filter.OwnNode {
			r.Rules = withRules(r.Rules, []filter.Rule{*rule})
		}
	}
	r.Why = texts[0]
	if len(texts) == 2 && texts[0] != texts[1] {
		r.Why = fmt.Sprintf("%s: %s, %s: %s", families[0], texts[0], families[1], texts[1])
	}
	return r
}

// allowing returns the verdict of an outcome that allows the flow: the one at the assumed addresses or
// the one elsewhere. It returns nil if neither does.
func allowing(o *reach.Outcome) *filter.Verdict {
	switch {
	case o == nil:
		return nil
	case o.Action == filter.Allow:
		return &o.Verdict
	case o.Elsewhere != nil && o.Elsewhere.Action == filter.Allow:
		return &o.Elsewhere.Verdict
	}
	return nil
}

func sideOf(v *filter.Verdict, d filter.Direction) filter.Side {
	if d == filter.Egress {
		return v.Egress
	}
	return v.Ingress
}

// sideText describes why a side allows the flow of a verdict.
func (b *builder) sideText(v *filter.Verdict, d filter.Direction, ownNode bool) string {
	s := sideOf(v, d)
	text := ""
	if s.Passed != nil {
		text = "passed by " + b.title(*s.Passed) + ", then "
	}
	switch {
	case s.Rule != nil:
		return text + b.title(*s.Rule)
	case ownNode && v.Reason == filter.OwnNode && d == filter.Egress:
		return text + "NetworkPolicies do not apply to the own node"
	case ownNode && v.Reason == filter.OwnNode:
		return text + "the own node always passes"
	}
	if v.Reason == filter.NotDenied {
		return text + notIsolated + ", and no rule denies it"
	}
	return text + notIsolated
}

const notIsolated = "not isolated"

// title returns the title of a rule with its place: `pci/vault ingress rule 1 (pci.yaml:12)`.
func (b *builder) title(r filter.Rule) string {
	text := r.PolicyTitle()
	if r.Tier == filter.NetworkPolicyTier {
		text += " " + r.Direction.String()
	}
	text += fmt.Sprintf(" rule %d", r.Index+1)
	if r.Name != "" {
		text += fmt.Sprintf(" %q", r.Name)
	}
	if place := b.place(r); place != "" {
		text += " (" + place + ")"
	}
	return text
}

// always reports whether no policy can close what an answer allows: the node of a pod always reaches it.
func always(a *reach.Answer, h how) bool {
	return h.ownNode && h.member && h.direction == filter.Ingress && a.Verdict == reach.Allow && !slices.ContainsFunc(a.Outcomes(), func(o *reach.Outcome) bool {
		return o.Reason != filter.OwnNode
	})
}

// conditionOf returns the condition under which an answer allows something; see opening.
func conditionOf(a *reach.Answer) string {
	var parts []string
	for i, o := range []*reach.Outcome{a.IPv4, a.IPv6} {
		switch {
		case o == nil:
		case o.Elsewhere != nil:
			parts = append(parts, dependsText(o))
		case o.Action == filter.Deny:
			parts = append(parts, "not by "+[]string{"IPv4", "IPv6"}[i])
		}
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), "; ")
}

// dependsText describes an outcome that depends on addresses that are not known.
func dependsText(o *reach.Outcome) string {
	var at []string
	if from := o.Elsewhere.From; from != nil {
		at = append(at, "the source is in "+from.String())
	}
	if to := o.Elsewhere.To; to != nil {
		at = append(at, "the destination is in "+to.String())
	}
	verb := "denied"
	if o.Elsewhere.Action == filter.Allow {
		verb = "allowed"
	}
	return fmt.Sprintf("depends: %s if %s", verb, strings.Join(at, " and "))
}
