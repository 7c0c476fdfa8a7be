package lint

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/near"
	"sluice/filter/policy/reach"
)

// maxOneSided bounds the separate findings about rules that the same policy makes one-sided. If there
// are more such rules, they become one finding about that policy.
const maxOneSided = 5

// report adds the findings about whole rules to those of the linter.
func (h *oneSidedCheck) report() {
	type cause struct {
		p         *lintPolicy
		d         filter.Direction
		namespace string // of the policies with the rules
	}
	groups := make(map[cause][]oneSidedRule)
	var order []cause
	for _, x := range h.found {
		k := cause{x.lacks, x.r.direction, x.p.namespace}
		if strings.Contains(x.p.LintIgnore, OneSided) {
			k.p = nil // x.p ignores the check, so this rule must not count in a finding about another policy
		}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], x)
	}
	for _, k := range order {
		if k.p != nil && len(groups[k]) > maxOneSided {
			h.group(k.p, groups[k])
			continue
		}
		for _, x := range groups[k] {
			what := "rule"
			if x.field != x.r.field {
				what = "peer"
			}
			h.l.found(OneSided, x.p, x.field, x.hint(what), "nothing that it lets %s is let %s: %s", inOrOut(x.r.direction), inOrOut(other(x.r.direction)), x.because())
		}
	}
}

// group reports rules of a namespace that the policy lacks makes one-sided, as one finding. The finding
// is about lacks; if lacks is in another namespace, it often belongs to another team, and the finding
// is about the first rule.
func (h *oneSidedCheck) group(lacks *lintPolicy, rules []oneSidedRule) {
	first, d := rules[0], rules[0].r.direction
	fields := make([]string, len(rules))
	for i, x := range rules {
		fields[i] = x.p.text + " " + x.field
	}
	object, field := lacks, "spec."+other(d).String()
	if lacks.namespace != first.p.namespace && !lacks.ordered() {
		object, field = first.p, first.field
	}
	h.l.found(OneSided, object, field, first.hint("rules"), "nothing that %d rules let %s is let %s: for example, %s. The rules are %s",
		len(rules), inOrOut(d), inOrOut(other(d)), first.because(), near.List(fields, maxOneSided, ", "))
	h.l.findings[len(h.l.findings)-1].Count = len(rules)
}

func inOrOut(d filter.Direction) string {
	if d == filter.Egress {
		return "out"
	}
	return "in"
}

// because describes the example and the policy that denies it.
func (x oneSidedRule) because() string {
	f, d := x.example, other(x.r.direction)
	from, to := nameOf(f.from), nameOf(f.to)
	blocking := "another policy"
	if x.lacks != nil {
		blocking = x.lacks.Ref.Object()
	}
	if rule := f.denied.Rule; rule != nil {
		return fmt.Sprintf("%s (spec.%s) denies %s from %s to %s", blocking, rule.Field(), f.ports(), from, to)
	}
	if d == filter.Egress {
		return fmt.Sprintf("%s isolates %s, and no policy lets it out to %s at %s", blocking, from, to, f.ports())
	}
	return fmt.Sprintf("%s isolates %s, and no policy lets %s in at %s", blocking, to, from, f.ports())
}

// hint tells what lets the flows of an item of a rule pass.
func (x oneSidedRule) hint(what string) string {
	f, d := x.example, other(x.r.direction)
	end := f.from
	if d == filter.Ingress {
		end = f.to
	}
	return fmt.Sprintf("allow it in %s of %s too, or remove the %s (see: sluice explain --from %s --to %s --port %s)",
		d, nameOf(end), what, nameOf(f.from), nameOf(f.to), f.flag())
}

// nameOf returns a name of a party that explain accepts.
func nameOf(p *reach.Party) string {
	if p.Part {
		return p.Pods[0].String()
	}
	return p.Name
}

// ports describes the ports of the example.
func (f *oneWay) ports() string {
	if f.span.All() {
		return "all ports of " + f.span.Protocol.String()
	}
	return f.span.String()
}

// flag returns the value of explain's flag --port for the example: a port that the destination
// declares, if it declares any of them.
func (f *oneWay) flag() string {
	port := f.span.Low
	declared := func(o policy.NamedPort) bool { return f.span.Contains(o.Protocol, o.Number) }
	if i := slices.IndexFunc(f.to.Ports, declared); i >= 0 {
		port = f.to.Ports[i].Number
	} else if f.span.Contains(f.span.Protocol, 80) {
		port = 80
	}
	if f.span.Protocol == filter.TCP {
		return fmt.Sprint(port)
	}
	return fmt.Sprintf("%d/%s", port, strings.ToLower(f.span.Protocol.String()))
}
