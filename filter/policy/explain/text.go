package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy/near"
)

// Text formats the explanations of one question for users: the verdict in one line, then both
// directions, then the changes that would allow the flow, with their side effects. It merges the
// explanations; see [Merge]. It numbers rules from 1.
func Text(all []Explanation) string {
	all = mergeAllowed(Merge(all))
	var parts []string
	for i := range all {
		parts = append(parts, all[i].text())
	}
	head := ""
	switch {
	case len(exposuresOf(all)) > 0:
		head = routeText(all)
	case len(all) > 0 && all[0].Flow.Via != nil:
		head = viaText(all)
	case len(all) > 1:
		head = countText(all)
	}
	return head + strings.Join(parts, "\n")
}

// samePair reports whether two flows are between the same ends.
func samePair(a, b Flow) bool { return a.From.Name == b.From.Name && a.To.Name == b.To.Name }

// maxCounted bounds the ends that the heading of several answers lists for a verdict.
const maxCounted = 12

// countText counts the answers to a question by verdict. If there are more than a few, it also lists
// the ends in which they differ.
func countText(all []Explanation) string {
	var counts []string
	var lists strings.Builder
	for i := 0; i < len(all); {
		n := i
		for n < len(all) && all[n].verdict() == all[i].verdict() {
			n++
		}
		counts = append(counts, fmt.Sprintf("%d %s", n-i, all[i].verdict()))
		if text := differing(all, all[i:n]); len(all) > maxEnds && text != "" {
			fmt.Fprintf(&lists, "  %s: %s\n", all[i].verdict(), text)
		}
		i = n
	}
	return fmt.Sprintf("%d different answers: %s\n%s\n", len(all), strings.Join(counts, ", "), lists.String())
}

// differing names the ends of the explanations some: the sources if all explanations have the same
// destinations, the destinations if all have the same sources. Otherwise it returns "".
func differing(all, some []Explanation) string {
	same := func(ends func(*Explanation) []string) bool {
		return !slices.ContainsFunc(all, func(e Explanation) bool { return !slices.Equal(ends(&e), ends(&all[0])) })
	}
	var flows []Flow
	for i := range some {
		flows = append(flows, some[i].flows()...)
	}
	switch {
	case same((*Explanation).tos):
		return listText(flows, source, maxCounted)
	case same((*Explanation).froms):
		return listText(flows, destination, maxCounted)
	}
	return ""
}

// Depends is the verdict about a flow that is allowed for some addresses of an end, and denied for
// others.
const Depends = "depends"

// verdict returns the verdict in one word.
func (e *Explanation) verdict() string {
	if len(e.Depends) > 0 {
		return Depends
	}
	return e.Verdict.Action.String()
}

// maxBackends bounds the endpoints that the heading about a Service lists.
const maxBackends = 5

// viaText returns the heading of the answers about a Service.
func viaText(all []Explanation) string {
	via := all[0].Flow.Via
	var ends []string
	denied, depends := make(map[string]bool), make(map[string]bool)
	for i := range all {
		for _, f := range all[i].flows() {
			end := fmt.Sprintf("%s port %d", f.To.Name, f.Key.Port)
			if !slices.Contains(ends, end) {
				ends = append(ends, end)
			}
			switch all[i].verdict() {
			case Depends:
				depends[end] = true
			case filter.Deny.String():
				denied[end] = true
			}
		}
	}
	name := fmt.Sprintf("Service %s port %d", via.Service, via.Port)
	if via.Addr.IsValid() {
		name = fmt.Sprintf("%s port %d is Service %s", via.Addr, via.Port, via.Service)
	}
	if via.NodePort != 0 {
		name = fmt.Sprintf("port %d of nodes is Service %s port %d", via.NodePort, via.Service, via.Port)
	}
	slices.Sort(ends)
	counts := fmt.Sprintf("%s, %d denied", count(len(ends), "endpoint", "endpoints"), len(denied))
	if len(depends) > 0 {
		counts += fmt.Sprintf(", %d depends", len(depends))
	}
	return fmt.Sprintf("%s → %s: decisions see the endpoints behind a Service (%s)\n", name, near.List(ends, maxBackends, ", "), counts)
}

// text formats an explanation.
func (e *Explanation) text() string {
	var b strings.Builder
	reason := e.Verdict.Reason.String()
	if len(e.Depends) > 0 {
		reason = "address not known"
	}
	fmt.Fprintf(&b, "%s (%s): %s to %s, %s\n", e.verdict(), reason, e.sourceText(), e.destinationText(), portText(e.Flow.Key))
	flows := e.flows()
	e.writeReasons(&b, shortText(flows, source), shortText(flows, destination))
	for _, n := range e.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	for _, s := range []*Side{&e.Egress, &e.Ingress} {
		s.writeChange(&b)
	}
	e.writeEffects(&b)
	return b.String()
}

// writeReasons writes what decided on both sides. The parameters from and to are the names of the ends.
func (e *Explanation) writeReasons(b *strings.Builder, from, to string) {
	e.writeDepends(b)
	switch {
	case e.Verdict.Reason == filter.SameAddress, e.Verdict.Reason == filter.OwnNode && !e.Egress.ordered():
		fmt.Fprintf(b, "  %s: no policy applies\n", e.outcome().Why())
		return
	}
	if e.Verdict.Reject {
		answer := "an ICMP error"
		if e.Flow.Key.Protocol == filter.TCP {
			answer = "a TCP reset"
		}
		fmt.Fprintf(b, "  rejected: the sender gets %s\n", answer)
	}
	e.Egress.write(b, e.Flow.From, from)
	e.Ingress.write(b, e.Flow.To, to)
}

// maxDepends bounds the ranges that the text lists: policies may have thousands.
const maxDepends = 10

// writeDepends writes for which addresses of an end with an assumed address the verdict differs.
func (e *Explanation) writeDepends(b *strings.Builder) {
	if len(e.Depends) == 0 {
		return
	}
	for i, a := range e.Depends {
		if i == maxDepends && len(e.Depends) > maxDepends+1 {
			fmt.Fprintf(b, "  (%d more ranges have another verdict: JSON lists them)\n", len(e.Depends)-i)
			break
		}
		end := "source"
		if a.To {
			end = "destination"
		}
		fmt.Fprintf(b, "  %s if the address of the %s %s: %s\n", a.Verdict.Action, end, a.Range.Where(), a.Why())
	}
	fmt.Fprintf(b, "  %s otherwise, for the reasons below", e.Verdict.Action)
	if e.settle != "" {
		fmt.Fprintf(b, "; to know, %s", e.settle)
	}
	fmt.Fprintln(b)
}

func (s *Side) write(b *strings.Builder, end *End, name string) {
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
	case s.Pod == "" && end.PodRange:
		fmt.Fprintln(b, "is in the range of the pods, but no pod here has it, so it is not known which policies isolate it")
		return
	case s.Pod == "" && end.Range != nil:
		fmt.Fprintln(b, "is outside the cluster, so no policy isolates it")
		return
	case s.Pod == "":
		fmt.Fprintln(b, "is not a pod, so no policy isolates it")
		return
	case len(s.Policies) == 0 && !s.others:
		be, them := "is", "it"
		if several(name) {
			be, them = "are", "them"
		}
		fmt.Fprintf(b, "%s not isolated: no policy selects %s in this direction\n", be, them)
		return
	}
	be := "is"
	if several(name) {
		be = "are"
	}
	fmt.Fprintf(b, "%s isolated by %s", be, policyList(s.Policies, len(s.Policies), s.others))
	if s.Allowed != nil {
		fmt.Fprintf(b, "\n    %s allows it: %s\n", ruleTitle(&s.Allowed.Rule), s.Allowed.matches())
	} else {
		fmt.Fprintln(b, "; no rule allows it")
		s.writeNearest(b, "    ")
	}
	s.writeProblems(b)
}

// several reports whether a text names several pods.
func several(names string) bool {
	return strings.Contains(names, ", ") || strings.Contains(names, "; ")
}

// policyList names at most n policies. If others is true, it adds that some pods have further policies.
func policyList(names []string, n int, others bool) string {
	switch {
	case !others:
		return near.List(names, n, ", ")
	case len(names) == 0:
		return "policies of their own"
	}
	return strings.Join(names[:min(n, len(names))], ", ") + " and others"
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
	case c.Hint != "":
		fmt.Fprintf(b, "to allow the %s: %s\n", s.Direction, c.Hint)
		return
	case c.Problem != nil && c.Problem.TooLarge:
		fmt.Fprintf(b, "to allow the %s: shrink %s: %s\n", s.Direction, c.Policy.Object(), c.Problem.Hint)
		return
	case c.Problem != nil:
		fmt.Fprintf(b, "to allow the %s: first correct %s of %s: %s\n", s.Direction, cmp.Or(c.Problem.Field, "the manifest"), c.Policy.Object(), c.Problem.Hint)
		return
	}
	switch {
	case c.New != nil:
		fmt.Fprintf(b, "to allow the %s: apply this NetworkPolicy, for example with kubectl apply -f -\n", s.Direction)
	case c.Before != nil:
		fmt.Fprintf(b, "to allow the %s: add before %s of %s\n", s.Direction, ruleField(*c.Before), c.Policy.Object())
	default:
		fmt.Fprintf(b, "to allow the %s: add to %s of %s\n", s.Direction, c.Field, c.Policy.Object())
	}
	for line := range strings.Lines(c.yaml()) {
		fmt.Fprintf(b, "    %s", line)
	}
	for _, n := range c.Notes {
		fmt.Fprintf(b, "  %s\n", n)
	}
}

// yaml returns what to add, as YAML: items of a list, or a complete policy.
func (c *Change) yaml() string {
	var from any = c.Add()
	if c.New != nil {
		from = c.Add()[0]
	}
	text, err := yaml.Marshal(from)
	if err != nil {
		return err.Error() // never happens: these API types can be marshaled
	}
	return string(text)
}

// text returns the complete text of the change.
func (c *Change) text() string {
	var b strings.Builder
	(&Side{Direction: c.Direction, Change: c}).writeChange(&b)
	return b.String()
}
