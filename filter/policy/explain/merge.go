package explain

import (
	"slices"
	"strings"

	"sluice/filter"
)

// Merge joins explanations with the same verdict and reasons: those of both address families of two
// ends, and those of ends that policies treat alike. Explanations of denied flows come first; apart
// from that, the order stays.
func Merge(all []Explanation) []Explanation {
	all = joinAll(all, func(a, b *Explanation) bool {
		return samePair(a.Flow, b.Flow) && a.Verdict == b.Verdict && len(a.Depends) == len(b.Depends)
	})
	body := func(a, b *Explanation) bool { return a.samePort(b) && a.body() == b.body() }
	all = joinAll(all, func(a, b *Explanation) bool { return slices.Equal(a.tos(), b.tos()) && body(a, b) })
	all = joinAll(all, func(a, b *Explanation) bool { return slices.Equal(a.froms(), b.froms()) && body(a, b) })
	slices.SortStableFunc(all, func(a, b Explanation) int { return a.rank() - b.rank() })
	return all
}

// rank returns the place of an explanation in the order: denied flows first, allowed flows last.
func (e *Explanation) rank() int {
	switch {
	case e.Verdict.Action == filter.Allow && len(e.Depends) == 0:
		return 2
	case len(e.Depends) > 0:
		return 1
	}
	return 0
}

// joinAll joins explanations that are alike, if their changes can be joined.
func joinAll(all []Explanation, alike func(a, b *Explanation) bool) (joined []Explanation) {
next:
	for _, e := range all {
		for i := range joined {
			if alike(&joined[i], &e) && joined[i].join(&e) {
				continue next
			}
		}
		joined = append(joined, e)
	}
	return joined
}

// join adds the flows and notes of another explanation. It returns false if the changes of both cannot
// be joined.
func (e *Explanation) join(o *Explanation) bool {
	egress, ok := joinBlocks(e.Egress.Change, o.Egress.Change)
	ingress, ok2 := joinBlocks(e.Ingress.Change, o.Ingress.Change)
	if !ok || !ok2 {
		return false
	}
	e.Egress.Change, e.Ingress.Change = egress, ingress
	e.Others = append(slices.Clone(e.Others), o.flows()...)
	for _, n := range o.Notes {
		if !slices.Contains(e.Notes, n) {
			e.Notes = append(slices.Clip(e.Notes), n)
		}
	}
	return true
}

func (e *Explanation) samePort(o *Explanation) bool {
	return portText(e.Flow.Key) == portText(o.Flow.Key) && viaOf(e.Flow) == viaOf(o.Flow)
}

func viaOf(f Flow) string {
	if f.Via == nil {
		return ""
	}
	return f.Via.Service
}

// body returns the text of the reasons, without the names of the ends.
func (e *Explanation) body() string {
	var b strings.Builder
	e.writeReasons(&b, "", "")
	return b.String()
}

// froms returns the names of the sources.
func (e *Explanation) froms() []string { return namesOf(e.flows(), source) }

// tos returns the names of the destinations.
func (e *Explanation) tos() []string { return namesOf(e.flows(), destination) }

func namesOf(flows []Flow, endOf func(Flow) *End) (names []string) {
	for _, e := range endsOf(flows, endOf) {
		if !slices.Contains(names, e.Name) {
			names = append(names, e.Name)
		}
	}
	return names
}

// endsOf returns the different ends of flows.
func endsOf(flows []Flow, endOf func(Flow) *End) (ends []*End) {
	for _, f := range flows {
		e := endOf(f)
		if !slices.ContainsFunc(ends, func(o *End) bool { return o == e || o.Range == nil && e.Range == nil && o.Name == e.Name }) {
			ends = append(ends, e)
		}
	}
	return ends
}
