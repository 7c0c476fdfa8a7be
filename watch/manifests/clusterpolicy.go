package manifests

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy/clusterpolicy"
)

// checkClusterPolicy makes the checks of the CustomResourceDefinition that the
// clusterpolicy package cannot make, because they depend on the text of the object. That
// package checks everything that depends on the meaning of rules.
//
// A rule with an unreadable part accepts nothing. If it is not a rule that accepts, it
// denies everything. If the whole policy cannot be read, it denies everything for the pods
// that it may be meant for.
func checkClusterPolicy(o *v1beta1.ClusterNetworkPolicy, c *checker) {
	if c.uncertain && !c.closed {
		c.clusterSpecByParts(o)
	}
	var whole struct {
		Spec json.RawMessage `json:"spec"`
	}
	_ = kjson.UnmarshalCaseSensitivePreserveInts(c.text, &whole) // decoding has reported the error
	switch spec := object(whole.Spec); {
	case c.closed:
		closeClusterPolicy(&o.Spec)
	case spec == nil:
		c.closing(func() { c.problem("spec", "it is missing", "write tier, priority, subject and rules") })
		closeClusterPolicy(&o.Spec)
	default:
		c.clusterSpec(&o.Spec, spec)
	}
}

// closeClusterPolicy makes the policy deny everything in both directions: its rules cannot
// be interpreted, or some are missing.
func closeClusterPolicy(spec *v1beta1.ClusterNetworkPolicySpec) {
	if spec.Tier != v1beta1.BaselineTier {
		spec.Tier = v1beta1.AdminTier
	}
	spec.Priority = clusterpolicy.First
	if spec.Subject.Namespaces == nil && spec.Subject.Pods == nil {
		spec.Subject.Namespaces = &metav1.LabelSelector{}
	}
	spec.Ingress = []v1beta1.ClusterNetworkPolicyIngressRule{closedIngress(nil)}
	spec.Egress = []v1beta1.ClusterNetworkPolicyEgressRule{closedEgress(nil)}
}

// closedFrom returns the peers of a closed rule: a single invalid peer. A closed rule accepts
// nothing if its action is Accept, and denies everything otherwise.
func closedFrom() []v1beta1.ClusterNetworkPolicyIngressPeer {
	return make([]v1beta1.ClusterNetworkPolicyIngressPeer, 1)
}

// closedTo is closedFrom for egress.
func closedTo() []v1beta1.ClusterNetworkPolicyEgressPeer {
	return make([]v1beta1.ClusterNetworkPolicyEgressPeer, 1)
}

// closedIngress returns a closed rule (see closedFrom) in place of a rule that cannot be decoded.
// It keeps the name and the action as far as they can be read. The default action is Deny.
func closedIngress(rule json.RawMessage) v1beta1.ClusterNetworkPolicyIngressRule {
	name, action := titleOf(rule)
	return v1beta1.ClusterNetworkPolicyIngressRule{Name: name, Action: action, From: closedFrom()}
}

// closedEgress is closedIngress for egress.
func closedEgress(rule json.RawMessage) v1beta1.ClusterNetworkPolicyEgressRule {
	name, action := titleOf(rule)
	return v1beta1.ClusterNetworkPolicyEgressRule{Name: name, Action: action, To: closedTo()}
}

// titleOf returns the name and the action of a rule, as far as they can be read.
func titleOf(rule json.RawMessage) (name string, action v1beta1.ClusterNetworkPolicyRuleAction) {
	f := object(rule)
	name, _ = text(f["name"])
	value, _ := text(f["action"])
	switch action = v1beta1.ClusterNetworkPolicyRuleAction(value); action {
	case v1beta1.ClusterNetworkPolicyRuleActionAccept, v1beta1.ClusterNetworkPolicyRuleActionPass:
		return name, action
	}
	return name, v1beta1.ClusterNetworkPolicyRuleActionDeny
}

// enterRule makes problems name the effect that they have on the rule, and hints begin with its
// title, if the policy is cluster-wide: few people know the rules of such a policy by their
// index, and the name of a rule is meant for this. leaveRule ends that.
func (c *checker) enterRule(d filter.Direction, index int, rule json.RawMessage) {
	if c.kind.cluster {
		name, action := titleOf(rule)
		c.rule = "in " + clusterpolicy.RuleTitle(d, index, name) + ", "
		c.accepts, c.passes = action == v1beta1.ClusterNetworkPolicyRuleActionAccept, action == v1beta1.ClusterNetworkPolicyRuleActionPass
		c.effect = clusterpolicy.ClosedRule(c.accepts)
	}
}

func (c *checker) leaveRule() { c.rule, c.accepts, c.passes, c.effect = "", false, false, "" }

// closing calls report, whose problems close the whole policy.
func (c *checker) closing(report func()) {
	c.effect = c.kind.closedEffect()
	report()
	c.effect = ""
}

// clusterSpecByParts decodes an invalid spec rule by rule. It closes only the broken rules (see
// closedFrom), unless a part that concerns the whole policy is broken.
func (c *checker) clusterSpecByParts(o *v1beta1.ClusterNetworkPolicy) {
	var whole struct {
		Spec json.RawMessage `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(c.text, &whole); err != nil {
		c.closed = true
		c.closing(func() { c.problem("", err.Error(), "write the object as the API documents it") })
		return
	}
	if len(whole.Spec) == 0 {
		return
	}
	var parts struct {
		Tier     json.RawMessage `json:"tier"`
		Priority json.RawMessage `json:"priority"`
		Subject  json.RawMessage `json:"subject"`
		Ingress  json.RawMessage `json:"ingress"`
		Egress   json.RawMessage `json:"egress"`
	}
	o.Spec = v1beta1.ClusterNetworkPolicySpec{}
	c.closing(func() {
		readable := part(c, whole.Spec, "spec", &parts)
		readable = part(c, parts.Tier, "spec.tier", &o.Spec.Tier) && readable
		readable = part(c, parts.Priority, "spec.priority", &o.Spec.Priority) && readable
		if !part(c, parts.Subject, "spec.subject", &o.Spec.Subject) {
			readable = false
			o.Spec.Subject = v1beta1.ClusterNetworkPolicySubject{}
		}
		c.closed = !readable
	})
	o.Spec.Ingress = rulesByParts(c, parts.Ingress, filter.Ingress, closedIngress)
	o.Spec.Egress = rulesByParts(c, parts.Egress, filter.Egress, closedEgress)
}
