package explain

import (
	"fmt"
	"net/netip"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// Answer is the JSON form of the answer about a flow. Rules are numbered from 0, as in the
// fields of a policy.
type Answer struct {
	From     string `json:"from"`
	To       string `json:"to"`
	Port     uint16 `json:"port,omitempty"`
	Protocol string `json:"protocol"`
	Outcome
	// Families is set if the outcomes of IPv4 and IPv6 differ. Outcome is then that of a
	// denied family, if there is one.
	Families []Family `json:"families,omitempty"`
	// Service is set if To is the address of a Service. Backends then has the answer for
	// each of its endpoints, and Outcome is that of a denied endpoint, if there is one.
	Service  string   `json:"service,omitempty"` // "namespace/name"
	Backends []Answer `json:"backends,omitempty"`
}

// Outcome is a verdict, with the policies and rules that caused it.
type Outcome struct {
	Verdict   string     `json:"verdict"` // "allow" or "deny"
	Reason    string     `json:"reason"`
	Answer    string     `json:"answer,omitempty"` // "reject" if the sender of a denied packet gets an answer
	Egress    SideAnswer `json:"egress"`
	Ingress   SideAnswer `json:"ingress"`
	Addresses []Pair     `json:"addresses"` // the addresses of the flows with this outcome
	Notes     []string   `json:"notes,omitempty"`

	toNode bool // the source is a pod; so with the reason own-node, the destination is its node
}

// Pair holds the two addresses of a flow.
type Pair struct {
	From netip.Addr `json:"from"`
	To   netip.Addr `json:"to"`
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
	Add    any    `json:"add,omitempty"`
	Hint   string `json:"hint,omitempty"` // if an existing field must be corrected instead

	Notes []string `json:"notes,omitempty"` // what else it allows, and other ways, in words
}

// Answer decides a question. It names the policies and rules behind the verdict, but gives
// no reasons in words, so it is fast enough for many flows.
func (c *Cluster) Answer(q Question) (Answer, error) {
	flows, err := c.Flows(q)
	if err != nil {
		return Answer{}, err
	}
	verdicts := make([]filter.Verdict, 0, 2)
	for _, f := range flows {
		verdicts = append(verdicts, c.Decide(f))
	}
	return answer(flows, verdicts, func(i int) Outcome { return c.outcome(flows[i], verdicts[i]) }), nil
}

// NewAnswer returns the JSON form of the explanations of one question, with all reasons.
func NewAnswer(all []Explanation) Answer {
	var flows []Flow
	var verdicts []filter.Verdict
	for _, e := range all {
		flows, verdicts = append(flows, e.Flow), append(verdicts, e.Verdict)
	}
	return answer(flows, verdicts, func(i int) Outcome {
		o := plainOutcome(flows[i], verdicts[i])
		o.Notes = all[i].Notes
		o.Egress.Details, o.Ingress.Details = all[i].Egress.details(), all[i].Ingress.details()
		return o
	})
}

// answer combines the outcomes of both address families.
func answer(flows []Flow, verdicts []filter.Verdict, outcomeOf func(int) Outcome) Answer {
	first := flows[0]
	if first.Via != nil {
		return viaAnswer(flows, verdicts, outcomeOf)
	}
	a := Answer{From: first.From.Name, To: first.To.Name, Port: first.Key.Port, Protocol: first.Key.Protocol.String(), Outcome: outcomeOf(0)}
	if len(flows) == 1 {
		return a
	}
	if verdicts[0] == verdicts[1] {
		a.Addresses = append(a.Addresses, pair(flows[1]))
		return a
	}
	for i, f := range flows {
		o := outcomeOf(i)
		a.Families = append(a.Families, Family{familyOf(f), o})
	}
	if verdicts[1].Action == filter.Deny && verdicts[0].Action == filter.Allow {
		a.Outcome = a.Families[1].Outcome
	}
	return a
}

// viaAnswer combines the outcomes of all endpoints of a Service.
func viaAnswer(flows []Flow, verdicts []filter.Verdict, outcomeOf func(int) Outcome) Answer {
	via := flows[0].Via
	a := Answer{
		From: flows[0].From.Name, To: via.Addr.String(), Port: via.Port, Protocol: flows[0].Key.Protocol.String(),
		Outcome: outcomeOf(0), Service: via.Service,
	}
	for i, f := range flows {
		b := Answer{From: f.From.Name, To: f.To.Name, Port: f.Key.Port, Protocol: f.Key.Protocol.String(), Outcome: outcomeOf(i)}
		if verdicts[i].Action == filter.Deny && a.Verdict != b.Verdict {
			a.Outcome = b.Outcome
		}
		a.Backends = append(a.Backends, b)
	}
	return a
}

func familyOf(f Flow) string {
	if f.Key.SrcAddr().Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func pair(f Flow) Pair { return Pair{f.Key.SrcAddr(), f.Key.DstAddr()} }

func (c *Cluster) outcome(f Flow, v filter.Verdict) Outcome {
	o := plainOutcome(f, v)
	o.Notes = c.notes(f, v)
	return o
}

// plainOutcome returns the outcome without its notes.
func plainOutcome(f Flow, v filter.Verdict) Outcome {
	return Outcome{
		Verdict: v.Action.String(), Reason: v.Reason.String(), Answer: answerOf(v),
		Egress: sideAnswer(v.Egress), Ingress: sideAnswer(v.Ingress),
		Addresses: []Pair{pair(f)}, toNode: f.From.Pod != nil,
	}
}

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
	if c := s.Change; c != nil {
		d.Change = &ChangeAnswer{Policy: c.Policy.String(), Object: c.Policy.Object(), Field: c.Field, Add: c.Add, Notes: c.Notes}
		if c.Before != nil {
			d.Change.Before = &c.Before.Index
		}
		if c.Problem != nil {
			d.Change.Field, d.Change.Hint = c.Problem.Field, c.Problem.What()+": "+c.Problem.Hint
		}
	}
	for _, p := range s.Problems {
		d.Problems = append(d.Problems, p.Error())
	}
	return d
}

// Why returns the reasons for a verdict in one line. It needs no policies.
func Why(v filter.Verdict) string {
	return Outcome{Reason: v.Reason.String(), Egress: sideAnswer(v.Egress), Ingress: sideAnswer(v.Ingress)}.Why()
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
