package clusterpolicy

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/near"
)

// mostProblems bounds the problems of a policy that are reported one by one. A policy of
// only malformed parts can have some 30,000 of them.
const mostProblems = 20

// newer ends the hints about parts that a newer API may have.
const newer = "; if it was written for a newer version of the API, update Sluice"

// reader converts one policy.
type reader struct {
	p    *policy.Policy
	more int // problems beyond mostProblems
}

func readSpec(ref policy.Ref, spec *v1beta1.ClusterNetworkPolicySpec) *policy.Policy {
	r := reader{p: &policy.Policy{Ref: ref, Priority: spec.Priority}}
	known := r.tier(spec.Tier)
	r.subject(&spec.Subject)
	for i := range spec.Ingress {
		r.ingress(i, &spec.Ingress[i])
	}
	for i := range spec.Egress {
		r.egress(i, &spec.Egress[i])
	}
	if !known || r.p.Subject.Malformed {
		r.closeAll()
	}
	r.countRest()
	return r.p
}

// First is the priority of policies whose place in the order is not known. They come before all
// others. This allows no flow, because their rules are closed: they accept nothing or deny
// everything.
const First = -1

// tier reads the tier. A policy of an unknown tier becomes the first of the Admin tier, and all
// its rules are closed (see closeAll). Later in the order, it could not deny a flow that an
// earlier rule passes to the next tier.
func (r *reader) tier(t v1beta1.Tier) (known bool) {
	switch t {
	case v1beta1.AdminTier:
		r.p.Tier = policy.Admin
	case v1beta1.BaselineTier:
		r.p.Tier = policy.Baseline
	default:
		r.p.Tier, r.p.Priority = policy.Admin, First
		r.problem("spec.tier", fmt.Sprintf("%q is not a tier", t), "the policy is the first of all, and its rules accept nothing or deny everything",
			like(string(t), "Admin", "Baseline"))
		return false
	}
	return true
}

// subject reads which pods the policy is for. A selector that cannot be understood selects
// everything, and all rules of such a policy are closed (see closeAll).
func (r *reader) subject(s *v1beta1.ClusterNetworkPolicySubject) {
	const effect = "the policy is for all pods, and its rules accept nothing or deny everything"
	p := &r.p.Subject
	p.Namespaces, p.Pods = labels.Everything(), labels.Everything()
	switch {
	case s.Namespaces != nil && s.Pods != nil:
		p.Malformed = true
		r.problem("spec.subject", "it has namespaces and pods, and only one of them is allowed", effect, "write only one of them; pods has a namespaceSelector")
	case s.Namespaces != nil:
		r.selects(&p.Namespaces, s.Namespaces, "spec.subject.namespaces")
	case s.Pods != nil:
		r.selects(&p.Namespaces, &s.Pods.NamespaceSelector, "spec.subject.pods.namespaceSelector")
		r.selects(&p.Pods, &s.Pods.PodSelector, "spec.subject.pods.podSelector")
	default:
		p.Malformed = true
		r.problem("spec.subject", "it has no field that Sluice knows", effect, "write namespaces or pods"+newer)
	}
}

// selects reads a selector of the subject into out, which stays as it is if the selector
// cannot be understood.
func (r *reader) selects(out *labels.Selector, sel *metav1.LabelSelector, field string) {
	parsed, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		r.p.Subject.Malformed = true
		r.problem(field, err.Error(), "it selects everything, and the rules accept nothing or deny everything", selectorHint)
		return
	}
	*out = parsed
}

const selectorHint = "write matchLabels, or matchExpressions with key, operator (In, NotIn, Exists, DoesNotExist) and values"

// closeAll closes all rules of the policy: a rule that accepts then accepts nothing, and any
// other rule denies everything. If the subject is malformed, the store replaces the rules of a
// direction with one rule that denies everything. If all rules of a direction accept, closeAll
// removes them, so that no such rule takes their place.
func (r *reader) closeAll() {
	for d, rules := range r.p.Rules {
		accepts := true
		for i := range rules {
			rule := &rules[i]
			accepts = accepts && rule.Action == policy.Accept
			rule.Ports = nil
			if rule.Peers = nil; rule.Action == policy.Accept {
				rule.Peers = []policy.Peer{{Malformed: "."}}
			} else {
				rule.Action = policy.Deny
			}
		}
		if accepts && r.p.Subject.Malformed {
			r.p.Rules[d] = nil
		}
	}
}

func (r *reader) problem(field, detail, effect, hint string) {
	r.add(policy.Problem{Policy: r.p.Ref, Field: field, Detail: detail, Effect: effect, Hint: hint})
}

func (r *reader) add(p policy.Problem) {
	if len(r.p.Problems) == mostProblems {
		r.more++
		return
	}
	r.p.Problems = append(r.p.Problems, p)
}

// countRest adds a problem that states how many problems there are beyond mostProblems.
func (r *reader) countRest() {
	if r.more > 0 {
		r.p.Problems = append(r.p.Problems, policy.Problem{
			Policy: r.p.Ref, Field: "spec", Detail: fmt.Sprintf("it has %d more problems", r.more), Hint: "correct the first ones, and the next ones are reported",
		})
	}
}

// like returns a hint that names the value that was probably meant. If no value is similar, the
// hint lists all of them: the given value may be one of a newer API.
func like(value string, values ...string) string {
	if best, ok := near.Name(value, values); ok {
		return "write " + best
	}
	text := "write " + values[0]
	for _, v := range values[1 : len(values)-1] {
		text += ", " + v
	}
	return text + " or " + values[len(values)-1] + newer
}

// RuleTitle returns a rule as hints name it, as in `ingress rule 2 "to-teams"`. Rules are
// counted from 1.
func RuleTitle(d filter.Direction, index int, name string) string {
	title := fmt.Sprintf("%s rule %d", d, index+1)
	if name != "" {
		title += fmt.Sprintf(" %q", name)
	}
	return title
}
