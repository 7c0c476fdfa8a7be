package reach

import (
	"fmt"
	"slices"

	"sluice/filter"
)

// effects returns what opens and closes between flows of the old and the new cluster. Ports that
// change in the same way and by the same causes are in one effect.
func (c *comparison) effects(before, after *flows) (all []*Effect) {
	known := make(map[string]*Effect)
	for _, s := range overlaid(before.spans, after.spans) {
		for _, e := range c.effectsAt(s, before, after) {
			key := e.text()
			if known[key] == nil {
				known[key] = e
				all = append(all, e)
			}
			known[key].Spans = extended(known[key].Spans, s.Span)
		}
	}
	return all
}

// text returns all fields of the effect except its spans, as text.
func (e *Effect) text() string { return fmt.Sprint(e.Opens, e.Maybe, e.Family, e.Causes) }

// extended appends a span, without its answer, to the spans. If it touches the last one, extended
// joins the two.
func extended(spans []Span, s Span) []Span {
	if n := len(spans); n > 0 && spans[n-1].Protocol == s.Protocol && int(spans[n-1].High)+1 == int(s.Low) {
		spans[n-1].High = s.High
		return spans
	}
	return append(spans, Span{Protocol: s.Protocol, Low: s.Low, High: s.High})
}

// twoAnswers is a span with its answers in both clusters. An answer is nil if no packet can pass.
type twoAnswers struct {
	Span
	before, after *Answer
}

// overlaid divides the ports at the borders of the old and of the new spans.
func overlaid(before, after []Span) (all []twoAnswers) {
	if before == nil {
		before = anySpans()
	}
	if after == nil {
		after = anySpans()
	}
	for i, j := 0, 0; i < len(before) && j < len(after); {
		b, a := before[i], after[j]
		all = append(all, twoAnswers{Span{Protocol: b.Protocol, Low: max(b.Low, a.Low), High: min(b.High, a.High)}, b.Answer, a.Answer})
		if b.High <= a.High {
			i++
		}
		if a.High <= b.High {
			j++
		}
	}
	return all
}

// effectsAt returns the effects on a span. They do not have the span yet.
func (c *comparison) effectsAt(s twoAnswers, before, after *flows) []*Effect {
	var found [2][]*Effect // by family
	families := 0
	for i := range found {
		was, now := s.before.of(i), s.after.of(i)
		if was == nil && now == nil {
			continue
		}
		families++
		opens, closes := chances(s, i, before, after)
		if opens != never {
			found[i] = append(found[i], &Effect{Opens: true, Maybe: opens == maybe, Causes: c.opening(s.before.denied(was), now.verdict(filter.Allow))})
		}
		if closes != never {
			found[i] = append(found[i], &Effect{Maybe: closes == maybe, Causes: c.closing(was.verdict(filter.Allow), s.after.denied(now))})
		}
	}
	same := slices.EqualFunc(found[0], found[1], func(a, b *Effect) bool { return a.text() == b.text() })
	switch {
	case families == 2 && same:
		return found[0]
	case families == 2:
		for i, name := range []string{"IPv4", "IPv6"} {
			for _, e := range found[i] {
				e.Family = name
			}
		}
	}
	return slices.Concat(found[0], found[1])
}

// of returns the outcome of a family: 0 for IPv4, 1 for IPv6. It returns nil if there is none.
func (a *Answer) of(family int) *Outcome {
	switch {
	case a == nil:
		return nil
	case family == 0:
		return a.IPv4
	}
	return a.IPv6
}

// verdict returns the verdict of the outcome that has the given action: the one at the assumed
// addresses or the one elsewhere. It returns nil if neither has the action.
func (o *Outcome) verdict(action filter.Action) *filter.Verdict {
	switch {
	case o == nil:
	case o.Action == action:
		return &o.Verdict
	case o.Elsewhere != nil:
		return &o.Elsewhere.Verdict
	}
	return nil
}

// denied returns a verdict that denies: that of o or, if o has none, that of any family of the answer.
func (a *Answer) denied(o *Outcome) *filter.Verdict {
	if v := o.verdict(filter.Deny); v != nil || a == nil {
		return v
	}
	for _, o := range a.Outcomes() {
		if v := o.verdict(filter.Deny); v != nil {
			return v
		}
	}
	return nil
}

// likelihood states whether a change happens.
type likelihood uint8

const (
	never likelihood = iota
	maybe            // the change depends on addresses that are not known
	sure
)

func likelihoodOf(can, must bool) likelihood {
	switch {
	case must:
		return sure
	case can:
		return maybe
	}
	return never
}

// chances returns the likelihood that flows of a family open, and that they close, at a span. If only
// one of the clusters has flows of the family, chances compares them with the flows of all families in
// the other cluster: a pair that gets a second family opens only if nothing was allowed by the first.
func chances(s twoAnswers, family int, before, after *flows) (opens, closes likelihood) {
	was, now := s.before.of(family), s.after.of(family)
	switch {
	case was == nil:
		can, must := s.before.allows()
		nowCan, nowMust := now.allows()
		return likelihoodOf(nowCan && !must, nowMust && !can), never
	case now == nil:
		can, must := s.after.allows()
		wasCan, wasMust := was.allows()
		return never, likelihoodOf(wasCan && !must, wasMust && !can)
	case was.Elsewhere != nil || now.Elsewhere != nil:
		b, a := before.places(family, s.Span), after.places(family, s.Span)
		return b.opens(a), a.opens(b)
	}
	return likelihoodOf(false, was.Action != filter.Allow && now.Action == filter.Allow),
		likelihoodOf(false, was.Action == filter.Allow && now.Action != filter.Allow)
}

// allows reports whether the flow is allowed at one of the possible addresses (can), and whether it is
// allowed at all of them (must).
func (o *Outcome) allows() (can, must bool) {
	return o.Action == filter.Allow || o.Elsewhere != nil, o.Action == filter.Allow && o.Elsewhere == nil
}

// allows is like Outcome.allows, for flows of any family.
func (a *Answer) allows() (can, must bool) {
	if a == nil {
		return false, false
	}
	for _, o := range a.Outcomes() {
		c, m := o.allows()
		can, must = can || c, must || m
	}
	return can, must
}
