package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// Answer is the JSON form of the answer about a flow. Rules are numbered from 0, as in the
// fields of a policy.
type Answer struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Sources and Destinations describe the ends in detail. They are set if there are several ends, or
	// if an end is more than a single pod or address.
	Sources      []EndAnswer `json:"sources,omitempty"`
	Destinations []EndAnswer `json:"destinations,omitempty"`

	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol"`
	Outcome
	// Families is set if the outcomes of IPv4 and IPv6 differ. Outcome is then that of a
	// denied family, if there is one.
	Families []Family `json:"families,omitempty"`
	// Service is set if To is the address of a Service. Backends then has the answer for
	// each of its endpoints, and Outcome is that of a denied endpoint, if there is one.
	Service string `json:"service,omitempty"` // "namespace/name"
	// Routes are set if To is a route, such as an Ingress, or a URL. LeadsNowhere lists the backends of
	// the route that do not exist.
	Routes       []RouteAnswer `json:"routes,omitempty"`
	LeadsNowhere []string      `json:"leadsNowhere,omitempty"`
	Backends     []Answer      `json:"backends,omitempty"`
	// Pairs is set if the question has several ends that policies treat differently: it has one answer
	// for all pairs of ends with the same verdict and reasons. Outcome is then the outcome of a denied
	// pair, if there is one.
	Pairs []Answer `json:"pairs,omitempty"`
}

// Outcome is a verdict, with the policies and rules that caused it.
type Outcome struct {
	Verdict   string     `json:"verdict"` // "allow", "deny" or "depends"
	Reason    string     `json:"reason"`
	Answer    string     `json:"answer,omitempty"` // "reject" if the sender of a denied packet gets an answer
	Egress    SideAnswer `json:"egress"`
	Ingress   SideAnswer `json:"ingress"`
	Addresses []Pair     `json:"addresses"` // the known addresses of the flows with this outcome; never null
	Notes     []string   `json:"notes,omitempty"`
	// Depends is set if the verdict depends on an unknown address. It lists the ranges of addresses for
	// which the verdict differs; Otherwise is the verdict for all other addresses.
	Depends   []DependsAnswer `json:"depends,omitempty"`
	Otherwise string          `json:"otherwise,omitempty"`
	// Effects are the side effects of the changes; null if there are none, or if unknown addresses or
	// names keep the changes from being made.
	Effects *EffectsAnswer `json:"effects,omitempty"`

	toNode bool // the source is a pod; so with the reason own-node, the destination is its node
}

// Pair holds the two addresses of a flow.
type Pair struct {
	From netip.Addr `json:"from"`
	To   netip.Addr `json:"to"`
}

// DependsAnswer is the verdict if the address of an end is in Range.
type DependsAnswer struct {
	End     string `json:"end"`   // the end with the unknown address: "from" or "to"
	Range   string `json:"range"` // as in "10.2.0.0/16 except 10.2.3.0/24"
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	Why     string `json:"why"`
}

// Family is the outcome of one address family.
type Family struct {
	Family string `json:"family"` // "IPv4" or "IPv6"
	Outcome
}

// SideAnswer is the part of an answer about one direction.
type SideAnswer struct {
	Isolated bool        `json:"isolated"`         // by NetworkPolicies, and no earlier tier has decided
	Policies []string    `json:"policies"`         // the policies that isolate the pod; never null
	Rule     *RuleAnswer `json:"rule"`             // the rule that decides; null if none does, or if no rule is needed
	Passed   *RuleAnswer `json:"passed,omitempty"` // the Admin rule that left the flow to the next tiers

	*Details // set by NewAnswer; nil in the answers of Cluster.Answer
}

// RuleAnswer names a rule.
type RuleAnswer struct {
	Policy string `json:"policy"` // "default/db", or "admin/platform" for a ClusterNetworkPolicy
	Index  int    `json:"index"`  // from 0
	Field  string `json:"field"`  // as in "spec.ingress[0]"
	Name   string `json:"name,omitempty"`
	Tier   string `json:"tier"`
	Action string `json:"action"` // "accept", "deny" or "pass"
}

// TierAnswer is what one tier did.
type TierAnswer struct {
	Tier     string      `json:"tier"`
	Policies []string    `json:"policies"` // the policies for the pod, in the order of evaluation; never null
	Result   Result      `json:"result"`
	Rule     *RuleAnswer `json:"rule,omitempty"`    // the rule that caused the result
	Matches  string      `json:"matches,omitempty"` // what Rule matches, in words
}

// Details give the reasons for the verdict of one side.
type Details struct {
	Tiers    []TierAnswer    `json:"tiers,omitempty"`  // in the order of their evaluation
	Allows   string          `json:"allows,omitempty"` // what the rule allows, in words
	Nearest  []NearestAnswer `json:"nearest,omitempty"`
	Late     *RuleAnswer     `json:"late,omitempty"`         // the first rule that matches and does not deny, but comes after the rule that denies the flow
	Empty    []string        `json:"withoutRules,omitempty"` // policies that allow nothing
	Change   *ChangeAnswer   `json:"change,omitempty"`
	Problems []string        `json:"problems,omitempty"`
}

// NearestAnswer is a rule that almost matches, and its mismatches.
type NearestAnswer struct {
	RuleAnswer
	Mismatches []string `json:"lacks"`
}

// ChangeAnswer is a change that would allow the flow.
type ChangeAnswer struct {
	Policy string `json:"policy"` // "namespace/name", or only the name
	Object string `json:"object"` // as in "ClusterNetworkPolicy platform"
	Field  string `json:"field"`
	Before *int   `json:"before,omitempty"` // index in the field that the addition must come before
	Add    any    `json:"add,omitempty"`    // an item to add to the list Field, or several
	Apply  any    `json:"apply,omitempty"`  // a complete policy to apply instead; Field is then empty
	Hint   string `json:"hint,omitempty"`   // what to do if there is nothing to add, such as correcting the field

	Notes []string `json:"notes,omitempty"` // what else it allows, and other ways, in words
}

// Answer decides a question. It names the policies and rules behind the verdict, but gives
// no reasons in words, so it is fast enough for many flows.
func (c *Cluster) Answer(q Question) (Answer, error) {
	flows, err := c.Flows(q)
	if err != nil {
		return Answer{}, err
	}
	all := make([]Explanation, 0, len(flows))
	for _, f := range flows {
		v := c.Decide(f)
		if n := len(all); n > 0 && samePair(all[n-1].Flow, f) && all[n-1].Verdict == v && len(all[n-1].Depends) == 0 {
			all[n-1].Others = append(all[n-1].Others, f)
			continue
		}
		all = append(all, Explanation{Flow: f, Verdict: v, Notes: c.notes(f, v), Depends: c.depends(f, v)})
	}
	return answer(all).named(q), nil
}

// named sets the names of ends that the answer lacks, because it is about several ends, to those in the
// question.
func (a Answer) named(q Question) Answer {
	a.From, a.To = cmp.Or(a.From, q.From), cmp.Or(a.To, q.To)
	return a
}

// NewAnswer returns the JSON form of the explanations of a question, with all reasons. It merges the
// explanations; see [Merge].
func NewAnswer(q Question, all []Explanation) Answer { return answer(Merge(all)).named(q) }

// answer combines explanations into one Answer.
func answer(all []Explanation) Answer {
	pairs := pairAnswers(all)
	first := all[0].Flow
	if len(pairs) == 1 && first.Via == nil {
		return pairs[0]
	}
	a := Answer{From: pairs[0].From, To: pairs[0].To, Port: pairs[0].Port, Protocol: pairs[0].Protocol, Outcome: pairs[0].Outcome}
	for i, p := range pairs {
		if a.From != p.From {
			a.From = ""
		}
		if a.To != p.To {
			a.To = ""
		}
		if severity(p.Verdict) < severity(a.Verdict) {
			a.Outcome = pairs[i].Outcome
		}
	}
	if first.Via == nil {
		a.Pairs = pairs
		return a
	}
	if a.Backends, a.Routes = pairs, routeAnswers(all); len(a.Routes) > 0 {
		a.To, a.LeadsNowhere = "", brokenOf(all)
		return a
	}
	a.To, a.Service, a.Port, a.Backends = first.Via.Service, first.Via.Service, first.Via.Port, pairs
	if first.Via.NodePort != 0 {
		a.To, a.Port = "", first.Via.NodePort // named sets To as in the question
	}
	if first.Via.Addr.IsValid() {
		a.To = first.Via.Addr.String()
	}
	return a
}

// severity returns the rank of a verdict. The lowest rank among the answers is the verdict about the
// whole question.
func severity(verdict string) int {
	return slices.Index([]string{filter.Deny.String(), Depends, filter.Allow.String()}, verdict)
}

// pairAnswers returns an answer for each explanation. It combines the explanations of both address
// families of the same ends.
func pairAnswers(all []Explanation) (pairs []Answer) {
	for i := range all {
		e := &all[i]
		a := Answer{
			From: strings.Join(e.froms(), ", "), To: strings.Join(e.tos(), ", "), Port: e.Flow.Key.Port, Protocol: e.Flow.Key.Protocol.String(),
			Sources: endAnswers(e.flows(), source), Destinations: endAnswers(e.flows(), destination), Outcome: e.outcome(),
		}
		other := slices.IndexFunc(pairs, func(p Answer) bool {
			return p.From == a.From && p.To == a.To && p.Port == a.Port && len(p.Addresses) > 0 && len(a.Addresses) > 0 && p.family() != a.family()
		})
		if other < 0 {
			pairs = append(pairs, a)
			continue
		}
		pairs[other].addFamily(a)
	}
	return pairs
}

func (o *Outcome) family() string { return familyOf(o.Addresses[0].From) }

// addFamily adds the answer about the other address family.
func (a *Answer) addFamily(o Answer) {
	a.Families = []Family{{a.family(), a.Outcome}, {o.family(), o.Outcome}}
	slices.SortFunc(a.Families, func(x, y Family) int { return strings.Compare(x.Family, y.Family) })
	if severity(o.Verdict) < severity(a.Verdict) {
		a.Outcome = o.Outcome
	}
}

func familyOf(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// outcome returns the verdict with its reasons. An explanation without tiers has no details.
func (e *Explanation) outcome() Outcome {
	v := e.Verdict
	o := Outcome{
		Verdict: e.verdict(), Reason: v.Reason.String(), Answer: answerOf(v), Egress: sideAnswer(v.Egress), Ingress: sideAnswer(v.Ingress),
		Addresses: []Pair{}, Notes: e.Notes, Effects: e.Effects.answer(), toNode: e.Flow.From.Pod != nil,
	}
	for _, f := range e.flows() {
		if real(f.From) && real(f.To) {
			o.Addresses = append(o.Addresses, Pair{f.Key.SrcAddr(), f.Key.DstAddr()})
		}
	}
	for _, a := range e.Depends {
		end := "from"
		if a.To {
			end = "to"
		}
		o.Otherwise = v.Action.String()
		o.Depends = append(o.Depends, DependsAnswer{end, a.Range.String(), a.Verdict.Action.String(), a.Verdict.Reason.String(), a.Why()})
	}
	if e.explained {
		o.Egress.Details, o.Ingress.Details = e.Egress.details(), e.Ingress.details()
	}
	return o
}

// real reports whether the addresses of an end are its own, and not assumed or examples from a range.
func real(e *End) bool { return !e.Assumed && e.Range == nil }

func sideAnswer(s filter.Side) SideAnswer {
	a := SideAnswer{Policies: []string{}} // [] in JSON, not null
	if s.Isolation != nil {
		a.Isolated, a.Policies = true, s.Isolation.Policies
	}
	a.Rule, a.Passed = ruleAnswerOf(s.Rule), ruleAnswerOf(s.Passed)
	return a
}

func ruleAnswer(r filter.Rule) RuleAnswer {
	return RuleAnswer{r.PolicyTitle(), r.Index, ruleField(r), r.Name, r.Tier.String(), r.Action.String()}
}

func ruleAnswerOf(r *filter.Rule) *RuleAnswer {
	if r == nil {
		return nil
	}
	a := ruleAnswer(*r)
	return &a
}

func (s *Step) answer() TierAnswer {
	a := TierAnswer{Tier: s.Tier.String(), Policies: []string{}, Result: s.Result}
	for _, p := range s.Policies {
		a.Policies = append(a.Policies, filter.PolicyTitle(s.Tier, p))
	}
	if s.Rule != nil {
		a.Rule, a.Matches = ruleAnswerOf(&s.Rule.Rule), s.Rule.matches()
	}
	return a
}

func (s *Side) details() *Details {
	d := &Details{Empty: s.Empty}
	for i := range s.Tiers {
		d.Tiers = append(d.Tiers, s.Tiers[i].answer())
	}
	if s.Allowed != nil {
		d.Allows = s.Allowed.matches()
	}
	if s.Late != nil {
		d.Late = ruleAnswerOf(&s.Late.Rule)
	}
	for _, r := range s.Nearest {
		n := NearestAnswer{RuleAnswer: ruleAnswer(r.Rule)}
		for i := range r.Mismatches {
			n.Mismatches = append(n.Mismatches, r.lack(&r.Mismatches[i]))
		}
		d.Nearest = append(d.Nearest, n)
	}
	d.Change = s.Change.answer()
	for _, p := range s.Problems {
		d.Problems = append(d.Problems, p.Error())
	}
	return d
}

func (c *Change) answer() *ChangeAnswer {
	if c == nil {
		return nil
	}
	a := &ChangeAnswer{Policy: c.Policy.String(), Field: c.Field, Hint: c.Hint, Notes: c.Notes}
	if c.Policy != (policy.Ref{}) {
		a.Object = c.Policy.Object()
	}
	if c.Before != nil {
		a.Before = &c.Before.Index
	}
	switch {
	case c.Problem != nil:
		a.Field, a.Hint = c.Problem.Field, c.Problem.What()+": "+c.Problem.Hint
	case c.New != nil:
		a.Apply = c.Add()[0]
	case c.Written():
		if items := c.Add(); len(items) == 1 {
			a.Add = items[0]
		} else {
			a.Add = items
		}
	}
	return a
}

// Why returns the reasons for a verdict about a flow in one line, without looking at policies. fromPod
// reports whether the source is a pod. If the reason is own-node, the other end is the pod's own node.
func Why(v filter.Verdict, fromPod bool) string {
	return Outcome{Reason: v.Reason.String(), Egress: sideAnswer(v.Egress), Ingress: sideAnswer(v.Ingress), toNode: fromPod}.Why()
}

// Why returns the reasons in one line. It numbers rules from 1.
func (o Outcome) Why() string {
	switch o.Reason {
	case filter.SameAddress.String():
		return "a pod always reaches itself"
	case filter.OwnNode.String():
		if !o.toNode {
			return "traffic of the pod's own node always passes"
		}
		if o.Egress.Passed == nil {
			return "NetworkPolicies do not apply to what a pod sends to its own node"
		}
		return "egress: " + o.Egress.why(filter.Egress)
	}
	return "egress: " + o.Egress.why(filter.Egress) + "; ingress: " + o.Ingress.why(filter.Ingress)
}

// why describes what decided in a direction: "passed by admin/platform rule 2 "to-teams",
// then allowed by default/db, ingress rule 1".
func (s SideAnswer) why(d filter.Direction) string {
	text := ""
	if s.Passed != nil {
		text = "passed by " + s.Passed.title() + ", then "
	}
	switch {
	case s.Rule != nil && s.Rule.Tier == policy.NetworkPolicy.String():
		return text + fmt.Sprintf("allowed by %s, %s rule %d", s.Rule.Policy, d, s.Rule.Index+1)
	case s.Rule != nil:
		return text + participle[s.Rule.Action] + " by " + s.Rule.title()
	case s.Isolated:
		return text + "no rule of " + strings.Join(s.Policies, ", ") + " allows it"
	}
	return text + "not isolated"
}

// participle maps an action to its past participle.
var participle = map[string]string{
	policy.Accept.String(): "allowed", policy.Deny.String(): "denied", policy.Pass.String(): "passed",
}

// title returns the title of the rule in explanations: `admin/platform rule 2 "to-teams"`.
func (r *RuleAnswer) title() string {
	text := fmt.Sprintf("%s rule %d", r.Policy, r.Index+1)
	if r.Name != "" {
		text += fmt.Sprintf(" %q", r.Name)
	}
	return text
}

// answerOf returns "reject" if the verdict rejects, otherwise "".
func answerOf(v filter.Verdict) string {
	if v.Reject {
		return filter.Reject.String()
	}
	return ""
}
