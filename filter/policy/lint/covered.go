package lint

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"sluice/filter/policy/near"
)

// exceptions reports exceptions that exclude nothing from their cidr, or all of it.
func (l *linter) exceptions(p *lintPolicy, r *rule) {
	for _, x := range r.peers {
		if x.block == nil || x.block.written == nil {
			continue
		}
		for i, e := range x.block.excepts {
			field := fmt.Sprintf("%s.ipBlock.except[%d]", x.field, i)
			switch c := x.block.cidr; {
			case !c.Overlaps(e):
				l.found(Except, p, field, "write a part of "+c.String()+", or remove it", "%s is outside the cidr %s and excludes nothing", e, c)
			case e.Bits() < c.Bits():
				l.found(Except, p, field, "write a part of the cidr, or remove the peer", "%s contains the whole cidr %s and excludes all of it", e, c)
			case e.Bits() == c.Bits():
				l.found(Except, p, field, "write a part of the cidr, or remove the peer", "%s is the whole cidr and excludes all of it", e)
			}
		}
	}
}

// hostBits reports CIDRs with host bits. NetworkPolicy ignores these bits.
func (l *linter) hostBits(p *lintPolicy, r *rule) {
	for _, x := range r.peers {
		if x.block == nil || x.block.written == nil {
			continue
		}
		l.masked(p, x.field+".ipBlock.cidr", x.block.written.CIDR, x.block.cidr)
		for i, e := range x.block.excepts {
			l.masked(p, fmt.Sprintf("%s.ipBlock.except[%d]", x.field, i), x.block.written.Except[i], e)
		}
	}
}

func (l *linter) masked(p *lintPolicy, field string, written, read netip.Prefix) {
	if written == read {
		return
	}
	l.found(HostBits, p, field, fmt.Sprintf("write %s, or %s for the one address", read, netip.PrefixFrom(written.Addr(), written.Addr().BitLen())),
		"%s has bits set after its prefix, and is read as %s", written, read)
}

// redundant is a rule together with the rule that makes it redundant.
type redundant struct {
	rule, by *rule
	of       *lintPolicy // the policy with the rule by
}

// covered reports redundant rules: another rule for the same pods already allows all of
// their flows. It compares the text of the policies, not their effect on the current pods:
// two selectors that happen to match the same pods are not equal. There is one finding for all
// rules that a policy covers.
func (l *linter) covered() {
	var order []*lintPolicy
	all := make(map[*lintPolicy][]coveredRules)
	for _, p := range l.policies {
		for _, c := range l.coveredRules(p) {
			if all[c.of] == nil {
				order = append(order, c.of)
			}
			all[c.of] = append(all[c.of], c)
		}
	}
	for _, of := range order {
		var several []coveredRules
		for _, c := range all[of] {
			if c.p == of || strings.Contains(c.p.LintIgnore, Covered) {
				l.foundCovered(c.p, of, c.rules) // must not count in a finding about another policy
				continue
			}
			several = append(several, c)
		}
		if len(several) == 1 {
			l.foundCovered(several[0].p, of, several[0].rules)
		} else if len(several) > 1 {
			l.coversSeveral(of, several)
		}
	}
}

// coveredRules are the rules of the policy p that the policy "of" covers.
type coveredRules struct {
	p, of *lintPolicy
	rules []redundant
}

// coveredRules returns the redundant rules of p, by the policy that covers them.
func (l *linter) coveredRules(p *lintPolicy) (all []coveredRules) {
	for d := range p.rules {
		for i := range p.rules[d] {
			c, is := l.coveredBy(p, &p.rules[d][i])
			if !is {
				continue
			}
			at := slices.IndexFunc(all, func(o coveredRules) bool { return o.of == c.of })
			if at < 0 {
				at = len(all)
				all = append(all, coveredRules{p: p, of: c.of})
			}
			all[at].rules = append(all[at].rules, c)
		}
	}
	return all
}

// coversSeveral reports a policy that covers rules of several others, as one finding about it: often it
// is the wider one by mistake, and a finding for each of the others would hide this.
func (l *linter) coversSeveral(of *lintPolicy, several []coveredRules) {
	var fields []string
	for _, c := range several {
		for _, r := range c.rules {
			fields = append(fields, c.p.text+" "+r.rule.field)
		}
	}
	l.found(Covered, of, several[0].rules[0].by.field, "narrow it, or remove the others", "it allows everything that %d rules of %d other policies allow: %s",
		len(fields), len(several), near.List(fields, 5, ", "))
	l.findings[len(l.findings)-1].Count = len(fields)
}

func (l *linter) foundCovered(p, of *lintPolicy, rules []redundant) {
	whose := "this policy"
	if of != p {
		whose = of.Ref.Object()
	}
	first := rules[0]
	if len(rules) == 1 {
		l.found(Covered, p, first.rule.field, "remove it, or narrow the other one", "%s of %s allows everything that it allows", first.by.field, whose)
		return
	}
	fields := make([]string, len(rules))
	for i, c := range rules {
		fields[i] = c.rule.field
	}
	l.found(Covered, p, first.rule.field, "remove them, or narrow the others", "%d rules allow only what %s allows already, such as by %s: %s",
		len(rules), whose, first.by.field, near.List(fields, 5, ", "))
	l.findings[len(l.findings)-1].Count = len(rules)
}

// coveredBy returns a rule that makes r redundant, and reports whether there is one.
func (l *linter) coveredBy(p *lintPolicy, r *rule) (redundant, bool) {
	if p.subject == nil || p.ordered() || !r.whole {
		return redundant{}, false
	}
	for _, o := range l.policies {
		if o.ordered() || o.namespace != p.namespace || o.subject == nil || !within(p.subject, o.subject) {
			continue
		}
		for i := range o.rules[r.direction] {
			by := &o.rules[r.direction][i]
			if by == r || !by.covers(r) {
				continue
			}
			if r.covers(by) && within(o.subject, p.subject) && (p.text < o.text || p == o && r.index < by.index) {
				continue // the rules cover each other: report only the later one, which is not r
			}
			return redundant{r, by, o}, true
		}
	}
	return redundant{}, false
}

// covers reports whether r matches every flow that o matches.
func (r *rule) covers(o *rule) bool {
	peers := r.anyone || !o.anyone && len(o.peers) > 0 && !slices.ContainsFunc(o.peers, func(x peer) bool {
		return !slices.ContainsFunc(r.peers, func(y peer) bool { return y.covers(&x) })
	})
	return peers && (r.anyPort || !o.anyPort && len(o.ports) > 0 && !slices.ContainsFunc(o.ports, func(x port) bool {
		return !slices.ContainsFunc(r.ports, func(y port) bool { return y.covers(x) })
	}))
}

func (x port) covers(o port) bool {
	switch {
	case x.Protocol != o.Protocol:
		return false
	case x.Name != "" || o.Name != "":
		return x.Name == o.Name || x.Name == "" && x.Low <= 1 && x.High == 65535
	}
	return x.Low <= o.Low && o.High <= x.High
}

func (x *peer) covers(o *peer) bool {
	if x.nodes != nil || o.nodes != nil {
		return x.nodes != nil && o.nodes != nil && within(o.nodes, x.nodes)
	}
	if x.block == nil || o.block == nil {
		return x.block == nil && o.block == nil && within(o.namespace, x.namespace) && within(o.pods, x.pods)
	}
	if !inside(o.block.cidr, x.block.cidr) {
		return false
	}
	return !slices.ContainsFunc(x.block.excepts, func(e netip.Prefix) bool {
		return e.Overlaps(o.block.cidr) && !slices.ContainsFunc(o.block.excepts, func(f netip.Prefix) bool { return inside(e, f) })
	})
}

// inside reports whether o contains every address of p.
func inside(p, o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) }

// within reports whether the selector "wider" matches everything that sel matches. It returns
// true only if each requirement of "wider" follows from a single requirement of sel. So it
// returns false if only several requirements of sel together imply a requirement of "wider".
func within(sel, wider labels.Selector) bool {
	have, _ := sel.Requirements()
	want, selectable := wider.Requirements()
	if !selectable {
		return false
	}
	return !slices.ContainsFunc(want, func(w labels.Requirement) bool {
		return !slices.ContainsFunc(have, func(h labels.Requirement) bool { return follows(h, w) })
	})
}

// follows reports whether every object that satisfies h satisfies w.
func follows(h, w labels.Requirement) bool {
	if h.Key() != w.Key() {
		return false
	}
	switch w.Operator() {
	case selection.Exists:
		return has(h) || h.Operator() == selection.Exists
	case selection.DoesNotExist:
		return h.Operator() == selection.DoesNotExist
	case selection.In, selection.Equals, selection.DoubleEquals:
		return has(h) && values(w).IsSuperset(values(h))
	case selection.NotIn:
		switch {
		case has(h):
			return values(h).Intersection(values(w)).Len() == 0
		case h.Operator() == selection.NotIn:
			return values(h).IsSuperset(values(w))
		}
		return h.Operator() == selection.DoesNotExist
	}
	return false
}

// has reports whether the requirement lists values of which an object must have one.
func has(r labels.Requirement) bool {
	return r.Operator() == selection.In || r.Operator() == selection.Equals || r.Operator() == selection.DoubleEquals
}
