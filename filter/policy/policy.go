// Package policy turns Kubernetes objects into decisions.
//
// A [Store] takes pods, namespaces and NetworkPolicies one by one, in any order,
// and compiles what a change touches, not what exists. Each [Store.Commit] gives
// an immutable [Snapshot], whose Decide answers for a flow: it looks at two
// endpoints, at one short list per direction, and at nothing that grows with the
// number of policies.
//
// How a decision comes to be cheap. A pod carries the sorted ids of the peer
// selectors that match it. The policies that isolate a pod in one direction are
// compiled together into a rule set, cut along the port axis: a port finds the
// selectors and address ranges that are allowed at it, by binary search. What is
// left is whether two sorted lists of numbers share one.
//
// The package knows neither a cluster nor a kernel, and takes no lock: a store
// belongs to one goroutine, a Snapshot to everyone.
package policy

import (
	"fmt"
	"log/slog"
)

// Problem is something in a policy that cannot be understood or is too large, and
// therefore allows nothing. The API server rejects most of these today, but hands out what
// older versions of it have stored.
type Problem struct {
	Policy Ref
	Field  string // as in "spec.ingress[0].from[1].ipBlock.cidr"
	Detail string // what is wrong with it
	Hint   string // what would be right
	// TooLarge reports that the whole policy is refused for its size, and not that it
	// cannot be understood.
	TooLarge bool
}

func (p Problem) Error() string {
	return fmt.Sprintf("%s, %s: %s: %s", p.Policy.Object(), p.Field, p.Detail, p.Hint)
}

// LogValue keeps the parts apart in structured logs.
func (p Problem) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("policy", p.Policy.String()),
		slog.String("field", p.Field),
		slog.String("detail", p.Detail),
		slog.String("hint", p.Hint),
	)
}
