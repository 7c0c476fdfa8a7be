package report

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/reach"
)

// evidence lists the members and the rules for which a policy is in the report.
type evidence struct {
	policy    string // its title
	tier      filter.Tier
	members   [2][]*reach.Party // by direction: the members that a NetworkPolicy isolates, or about which a policy of another tier may decide
	decisions [2][]int          // by direction: indexes of the rules that the rows of the report name
}

// evidences returns the policies that decide about members, sorted by tier and name.
func (r *Report) evidences() (all []*evidence) {
	of := make(map[string]*evidence)
	add := func(title string, tier filter.Tier) *evidence {
		if of[title] == nil {
			of[title] = &evidence{policy: title, tier: tier}
			all = append(all, of[title])
		}
		return of[title]
	}
	for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
		for _, m := range r.Members {
			s := m.side(d)
			for _, title := range s.Ordered {
				e := add(title, tierOf(title))
				e.members[d] = append(e.members[d], m.Party)
			}
			for _, title := range s.Isolating {
				e := add(title, filter.NetworkPolicyTier)
				e.members[d] = append(e.members[d], m.Party)
			}
		}
	}
	for _, rule := range r.rules() {
		if e := of[rule.PolicyTitle()]; e != nil && !slices.Contains(e.decisions[rule.Direction], rule.Index) {
			e.decisions[rule.Direction] = append(e.decisions[rule.Direction], rule.Index)
		}
	}
	slices.SortStableFunc(all, func(a, b *evidence) int {
		if a.tier != b.tier {
			return int(a.tier) - int(b.tier)
		}
		return strings.Compare(a.policy, b.policy)
	})
	return all
}

// tierOf returns the tier of a policy of the tier Admin or Baseline, from its title.
func tierOf(title string) filter.Tier {
	if strings.HasPrefix(title, strings.ToLower(filter.BaselineTier.String())+"/") {
		return filter.BaselineTier
	}
	return filter.AdminTier
}

// rules returns the rules of members' policies that the rows of the report name.
func (r *Report) rules() (all []filter.Rule) {
	for _, m := range r.Members {
		for _, s := range []*Side{m.In, m.Out} {
			for _, row := range s.Open {
				all = append(all, row.Rules...)
			}
		}
	}
	for _, l := range r.Within {
		all = append(all, l.Rules...)
		for _, o := range l.Others {
			all = append(all, o.Rules...)
		}
	}
	return all
}

// policies lists the policies that decide about members, for an auditor to look up.
func (r *Report) policies(w *words) part {
	p := part{Heading: "Policies that decide"}
	t := table{Head: []string{"policy", "ingress of", "egress of", "rules that let something pass", "where"}}
	for _, e := range r.evidences() {
		where := text()
		if at := r.policyPlace(e); at != "" {
			where = text(at)
		}
		t.Rows = append(t.Rows, []cell{names(e.policy), names(w.of(e.members[filter.Ingress])...), names(w.of(e.members[filter.Egress])...), text(e.rulesText()...), where})
	}
	if len(t.Rows) == 0 {
		p.Text = []sentence{{Text: "No policy decides about " + r.scope() + ".", Warn: true}}
		return p
	}
	p.Tables = []table{t}
	return p
}

// policyPlace returns the file and line of a policy; empty if they are not known.
func (r *Report) policyPlace(e *evidence) string {
	name := e.policy
	if e.tier != filter.NetworkPolicyTier { // the title begins with the tier
		_, name, _ = strings.Cut(name, "/")
	}
	return r.place(filter.Rule{Policy: name, Tier: e.tier, Index: -1})
}

// rulesText lists the numbers of the rules that decide, from 1: "ingress 1, 2".
func (e *evidence) rulesText() (texts []string) {
	for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
		var numbers []string
		slices.Sort(e.decisions[d])
		for _, i := range e.decisions[d] {
			numbers = append(numbers, fmt.Sprint(i+1))
		}
		if len(numbers) > 0 {
			texts = append(texts, d.String()+" "+strings.Join(numbers, ", "))
		}
	}
	return texts
}
