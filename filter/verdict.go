package filter

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
)

// String returns the action as in log lines and JSON.
func (a Action) String() string {
	switch a {
	case Allow:
		return "allow"
	case Hold:
		return "hold"
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
	// RuleAllows: every isolated end has a rule that allows the flow.
	RuleAllows
	// SameAddress: a pod reaches its own address.
	SameAddress
	// OwnNode: one end is the node that the pod runs on.
	OwnNode

	// EgressDenied: the source is isolated and none of its rules allows the flow.
	EgressDenied
	// IngressDenied: the destination is isolated and none of its rules allows the flow.
	IngressDenied
	// Malformed: the IP header of the packet cannot be decoded.
	Malformed
	// NotSynced: the packet came before the first snapshot of the cluster.
	NotSynced
	// PodNotKnown: one address should belong to a pod, but the pod did not become known in
	// time. The fail mode (--fail) decided.
	PodNotKnown
	// MidStream: the packet does not begin a connection. The connection may have begun in the
	// opposite direction, in which policies deny it.
	MidStream

	// NumReasons is the number of reasons.
	NumReasons
)

var reasonText = [NumReasons]string{
	NoReason:      "unknown",
	NotIsolated:   "not-isolated",
	RuleAllows:    "rule",
	SameAddress:   "same-address",
	OwnNode:       "own-node",
	EgressDenied:  "egress-denied",
	IngressDenied: "ingress-denied",
	Malformed:     "malformed",
	NotSynced:     "not-synced",
	PodNotKnown:   "pod-not-known",
	MidStream:     "mid-stream",
}

// String returns the reason as in log lines, metrics and JSON.
func (r Reason) String() string {
	if r < NumReasons {
		return reasonText[r]
	}
	return "invalid"
}

// Rule names one rule of a policy.
type Rule struct {
	Policy    string // "namespace/name"
	Direction Direction
	Denies    bool // never set for a rule of a NetworkPolicy: such rules only allow
	Index     int  // index of the rule in spec.ingress or spec.egress, from 0
}

// Isolation is the set of policies that isolate a pod in one direction.
type Isolation struct {
	Direction Direction
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
}

// Allows reports whether this side lets the flow pass.
func (s Side) Allows() bool {
	if s.Rule != nil {
		return !s.Rule.Denies
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
}
