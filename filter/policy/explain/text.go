package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"sluice/filter"
)

// Text formats the explanations of one question for people: the verdict in one line, then
// both directions, then the change that would allow the flow. It combines both address
// families if their verdicts are the same. It numbers rules from 1.
func Text(all []Explanation) string {
	if len(all) > 0 && all[0].Flow.Via != nil {
		return viaText(all)
	}
	if len(all) == 2 && all[0].Verdict == all[1].Verdict {
		return all[0].text(all[1].Flow)
	}
	var parts []string
	for _, e := range all {
		parts = append(parts, e.text())
	}
	return strings.Join(parts, "\n")
}

// maxBackends bounds the endpoints of a Service that are explained one by one.
const maxBackends = 5

// viaText explains a flow to the address of a Service. It begins with the endpoints that
// are denied.
func viaText(all []Explanation) string {
	via := all[0].Flow.Via
	denied := 0
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b Explanation) int { return int(a.Verdict.Action) - int(b.Verdict.Action) })
	for _, e := range all {
		if e.Verdict.Action == filter.Deny {
			denied++
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s port %d is Service %s: decisions see the endpoints behind it, not its address (%s, %d denied)\n",
		via.Addr, via.Port, via.Service, count(len(all), "endpoint", "endpoints"), denied)
	for i, e := range sorted {
		if i == maxBackends {
			fmt.Fprintf(&b, "and %s\n", count(len(all)-i, "more endpoint", "more endpoints"))
			break
		}
		b.WriteString(e.text())
	}
	return b.String()
}

// text formats the explanation of e.Flow. The flows in "others" have the same explanation.
func (e *Explanation) text(others ...Flow) string {
	flows := append([]Flow{e.Flow}, others...)
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s): %s to %s, %s\n", e.Verdict.Action, e.Verdict.Reason,
		endText(e.Flow.From, flows, filter.Key.SrcAddr), endText(e.Flow.To, flows, filter.Key.DstAddr), portText(e.Flow.Key))
	switch {
	case e.Verdict.Reason == filter.SameAddress, e.Verdict.Reason == filter.OwnNode && !e.Egress.ordered():
		fmt.Fprintf(&b, "  %s: no policy applies\n", plainOutcome(e.Flow, e.Verdict).Why())
		return b.String()
	}
	if e.Verdict.Reject {
		answer := "an ICMP error"
		if e.Flow.Key.Protocol == filter.TCP {
			answer = "a TCP reset"
		}
		fmt.Fprintf(&b, "  rejected: the sender gets %s\n", answer)
	}
	e.Egress.write(&b, e.Flow.From)
	e.Ingress.write(&b, e.Flow.To)
	for _, n := range e.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	for _, s := range []*Side{&e.Egress, &e.Ingress} {
		s.writeChange(&b)
	}
	return b.String()
}

// endText names an end and the addresses of its flows.
func endText(e *End, flows []Flow, addrOf func(filter.Key) netip.Addr) string {
	if e.byAddress() {
		switch {
		case e.Pod != nil:
			return fmt.Sprintf("%s (pod %s/%s)", e.Name, e.Pod.Namespace, e.Pod.Name)
		case e.NodeName != "":
			return e.Name + " (node " + e.NodeName + ")"
		case e.Node:
			return e.Name + " (this node)"
		}
		return e.Name + " (no pod)"
	}
	var addrs []string
	for _, f := range flows {
		addrs = append(addrs, addrOf(f.Key).String())
	}
	return e.Name + " (" + strings.Join(addrs, ", ") + ")"
}

func (s *Side) write(b *strings.Builder, end *End) {
	name := s.Pod
	if name == "" {
		name = end.Name
	}
	if s.ordered() {
		fmt.Fprintf(b, "  %s: %s: ", s.Direction, name)
		s.writeTiers(b)
		return
	}
	fmt.Fprintf(b, "  %s: %s ", s.Direction, name)
	switch {
	case s.Pod == "" && end.Node:
		fmt.Fprintln(b, "has a node's address, which no policy isolates")
		return
	case s.Pod == "":
		fmt.Fprintln(b, "is not a pod, so no policy isolates it")
		return
	case len(s.Policies) == 0:
		fmt.Fprintln(b, "is not isolated: no policy selects it in this direction")
		return
	}
	fmt.Fprintf(b, "is isolated by %s", strings.Join(s.Policies, ", "))
	if s.Allowed != nil {
		fmt.Fprintf(b, "\n    %s allows it: %s\n", ruleTitle(&s.Allowed.Rule), s.Allowed.matches())
	} else {
		fmt.Fprintln(b, "; no rule allows it")
		s.writeNearest(b, "    ")
	}
	s.writeProblems(b)
}

// writeProblems writes what cannot be understood in the policies that were evaluated.
func (s *Side) writeProblems(b *strings.Builder) {
	for _, p := range s.Problems {
		name, effect := p.Policy.String(), "allows nothing"
		if p.Policy.Namespace == "" {
			name, effect = p.Policy.Object(), "denies everything"
		}
		if p.TooLarge {
			fmt.Fprintf(b, "    %s is too large and %s: %s\n", name, effect, p.What())
			continue
		}
		fmt.Fprintf(b, "    not understood: %s, %s: %s\n", name, p.Field, p.What())
	}
}

// ruleTitle returns the title of a rule in explanations: `admin/platform rule 2 "to-teams"`.
func ruleTitle(r *filter.Rule) string {
	text := fmt.Sprintf("%s rule %d", r.PolicyTitle(), r.Index+1)
	if r.Name != "" {
		text += fmt.Sprintf(" %q", r.Name)
	}
	return text
}

// matches describes what the rule matches: "pods with role=frontend in namespace default,
// TCP 6379".
func (r *RuleMatch) matches() string { return r.Peers + ", " + r.Ports }

// writeNearest writes the rules with the fewest mismatches, each on a line that begins with
// indent.
func (s *Side) writeNearest(b *strings.Builder, indent string) {
	for _, r := range s.Nearest {
		fmt.Fprintf(b, "%s%s ", indent, ruleTitle(&r.Rule))
		for i := range r.Mismatches {
			if i > 0 {
				fmt.Fprint(b, "; and it ")
			}
			fmt.Fprint(b, r.lack(&r.Mismatches[i]))
		}
		fmt.Fprintln(b)
	}
	if s.More > 0 {
		fmt.Fprintf(b, "%s(%s)\n", indent, count(s.More, "other rule is as near", "other rules are as near"))
	}
	for i, p := range s.Empty {
		if i == maxNearest && len(s.Empty) > maxNearest+1 {
			fmt.Fprintf(b, "%s(%d other policies have no %s rule)\n", indent, len(s.Empty)-i, s.Direction)
			break
		}
		fmt.Fprintf(b, "%s%s has no %s rule: it allows nothing\n", indent, p, s.Direction)
	}
}

// writeChange writes the change that would allow the flow on this side.
func (s *Side) writeChange(b *strings.Builder) {
	c := s.Change
	switch {
	case c == nil:
		return
	case c.Problem != nil && c.Problem.TooLarge:
		fmt.Fprintf(b, "to allow the %s: shrink %s: %s\n", s.Direction, c.Policy.Object(), c.Problem.Hint)
		return
	case c.Problem != nil:
		fmt.Fprintf(b, "to allow the %s: first correct %s of %s: %s\n", s.Direction, cmp.Or(c.Problem.Field, "the manifest"), c.Policy.Object(), c.Problem.Hint)
		return
	}
	if c.Before != nil {
		fmt.Fprintf(b, "to allow the %s: add before %s of %s\n", s.Direction, ruleField(*c.Before), c.Policy.Object())
	} else {
		fmt.Fprintf(b, "to allow the %s: add to %s of %s\n", s.Direction, c.Field, c.Policy.Object())
	}
	text, err := yaml.Marshal([]any{c.Add})
	if err != nil {
		text = []byte(err.Error()) // these API types always marshal
	}
	for line := range strings.Lines(string(text)) {
		fmt.Fprintf(b, "    %s", line)
	}
	for _, n := range c.Notes {
		fmt.Fprintf(b, "  %s\n", n)
	}
}
