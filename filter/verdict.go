package filter

import (
	"fmt"
	"strings"
)

// Direction is the side of a flow that a policy applies to.
type Direction uint8

// The directions, as seen from the pod that a policy selects.
const (
	Egress Direction = iota
	Ingress
)

// String returns the direction as in log lines and JSON.
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Action is what is done with a packet. The zero value denies.
type Action uint8

// The actions.
const (
	Deny Action = iota
	Allow
	// Hold: the packet is held, because one of its addresses is in the pod ranges and no pod
	// with this address is known yet. The packet is evaluated again later. No Verdict has this
	// action.
	Hold
	// Reject: the packet is denied, and its sender gets a TCP reset or an ICMP error. No Verdict
	// has this action: its Action is Deny, and its field Reject is set.
	Reject
	// Skip: the packet goes on without a verdict, and is judged at a later hook. No verdict
	// has this action.
	Skip
)

// String returns the action as in log lines and JSON.
func (a Action) String() string {
	switch a {
	case Allow:
		return "allow"
	case Hold:
		return "hold"
	case Reject:
		return "reject"
	case Skip:
		return "skip"
	}
	return "deny"
}

// Reason is the reason for a verdict.
type Reason uint8

// The reasons: after NoReason, first those that allow, then those that deny. With an open fail
// mode, PodNotKnown allows.
const (
	// NoReason is the zero value, which no decision returns.
	NoReason Reason = iota
	// NotIsolated: no policy isolates the source in egress, and none isolates the destination
	// in ingress.
	NotIsolated
	// RuleAllows: every end that would be denied otherwise has a rule that allows the flow.
	RuleAllows
	// NotDenied: ordered rules are evaluated for an end, and no rule decides.
	NotDenied
	// SameAddress: a pod reaches its own address.
	SameAddress
	// OwnNode: one end is the node that the pod runs on.
	OwnNode

	// EgressDenied: a rule for the source denies the flow, or the source is isolated and no
	// rule allows it.
	EgressDenied
	// IngressDenied: a rule for the destination denies the flow, or the destination is
	// isolated and no rule allows it.
	IngressDenied
	// Malformed: the IP header of the packet cannot be decoded; or its transport header cannot
	// be read, and ordered rules deny some ports.
	Malformed
	// NotSynced: the packet came before the first snapshot of the cluster.
	NotSynced
	// PodNotKnown: one address is expected to be a pod's, but the pod did not become known in
	// time. The fail mode (--fail) decided.
	PodNotKnown
	// NamespaceNotKnown: the Namespace object of a pod is not known, and policies depend on its
	// labels. With an open fail mode, a packet that cannot be held any longer gets PodNotKnown
	// instead.
	NamespaceNotKnown
	// MidStream: the packet does not begin a connection. The connection may have begun in the
	// opposite direction, in which policies deny it.
	MidStream

	// NumReasons is the number of reasons.
	NumReasons
)

var reasonText = [NumReasons]string{
	NoReason:          "unknown",
	NotIsolated:       "not-isolated",
	RuleAllows:        "rule",
	NotDenied:         "not-denied",
	SameAddress:       "same-address",
	OwnNode:           "own-node",
	EgressDenied:      "egress-denied",
	IngressDenied:     "ingress-denied",
	Malformed:         "malformed",
	NotSynced:         "not-synced",
	PodNotKnown:       "pod-not-known",
	NamespaceNotKnown: "namespace-not-known",
	MidStream:         "mid-stream",
}

// String returns the reason as in log lines, metrics and JSON.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonText[r]
	}
	return "invalid"
}

// Tier is a stage of a decision. Tiers are evaluated in order, until one decides.
type Tier uint8

// The tiers.
const (
	_ Tier = iota // a policy without a tier is malformed
	// AdminTier policies decide by their first rule that matches.
	AdminTier
	// NetworkPolicyTier policies isolate their pods: flows that no rule accepts are denied.
	NetworkPolicyTier
	// BaselineTier policies decide as Admin policies do, for pods that no NetworkPolicy isolates.
	BaselineTier

	// NumTiers is one more than the last tier.
	NumTiers
)

// String returns the name of the tier, as in the API.
func (t Tier) String() string {
	switch t {
	case AdminTier:
		return "Admin"
	case NetworkPolicyTier:
		return "NetworkPolicy"
	case BaselineTier:
		return "Baseline"
	}
	return fmt.Sprintf("tier %d", uint8(t))
}

// RuleAction is what a rule does with a flow that matches it. The zero value denies.
type RuleAction uint8

// The actions of rules.
const (
	RuleDenies RuleAction = iota
	RuleAccepts
	// RulePasses leaves the flow to the next tier.
	RulePasses
)

// String returns the action as log lines and JSON write it.
func (a RuleAction) String() string {
	switch a {
	case RuleAccepts:
		return "accept"
	case RulePasses:
		return "pass"
	}
	return "deny"
}

// Rule identifies one rule of a policy.
type Rule struct {
	Policy    string // "namespace/name", or only the name if the policy is in no namespace
	Name      string // of the rule; empty if it has none
	Tier      Tier
	Direction Direction
	Action    RuleAction
	Denial    Denial // of the policy
	Index     int    // in spec.ingress or spec.egress, from 0
}

// PolicyTitle returns the name of the rule's policy for texts that people read: "namespace/name",
// or for a policy in no namespace its tier and its name, as in "admin/platform".
func (r *Rule) PolicyTitle() string { return PolicyTitle(r.Tier, r.Policy) }

// Field returns the field of the rule in its policy, as in "ingress[0]".
func (r *Rule) Field() string { return fmt.Sprintf("%s[%d]", r.Direction, r.Index) }

// PolicyTitle returns the title of a policy: its name in verdicts, such as "default/db", or for
// a policy in no namespace the tier and the name, such as "admin/platform".
func PolicyTitle(t Tier, policy string) string {
	if t == NetworkPolicyTier || strings.Contains(policy, "/") {
		return policy
	}
	return strings.ToLower(t.String()) + "/" + policy
}

// Isolation is the set of policies that isolate a pod in one direction.
type Isolation struct {
	Direction Direction
	Denial    Denial   // of the policies; drop prevails
	Policies  []string // "namespace/name", sorted; never empty
}

// Side is the part of a verdict about one direction.
type Side struct {
	// Isolation is nil if no policy isolates the pod in this direction, or if a policy of
	// an earlier tier has decided.
	Isolation *Isolation
	// Rule is the rule that decided; nil if no rule did. If several rules of
	// NetworkPolicies allow the flow, Rule is one of them.
	Rule *Rule
	// Passed is the rule of the Admin tier that left the flow to the next tiers; nil if
	// there is none.
	Passed *Rule
}

// Allows reports whether this side lets the flow pass.
func (s Side) Allows() bool {
	if s.Rule != nil {
		return s.Rule.Action != RuleDenies
	}
	return s.Isolation == nil
}

// Verdict is a decision and the reason for it. It points into its snapshot and owns no
// memory, so that making and copying a verdict does not allocate.
type Verdict struct {
	Egress, Ingress Side
	Action          Action
	Reason          Reason
	// Pair is set only if all packets from the source to the destination address get this
	// action, whatever their protocol and port. Their reasons may differ. Pair may be false
	// although all these packets get this action, because not every such case is recognized.
	Pair bool
	// Reject is set if the sender of a denied packet gets an answer, where that is possible:
	// see Denial.
	Reject bool
}

// Answer returns the action, with Reject for a denial whose sender gets an answer.
func (v *Verdict) Answer() Action {
	if v.Action == Deny && v.Reject {
		return Reject
	}
	return v.Action
}
