// Package policy turns Kubernetes objects into decisions.
//
// A [Store] takes pods, namespaces and policies one by one, in any order. [Store.Commit]
// compiles only what changes have affected, and returns an immutable [Snapshot], whose
// Decide returns the verdict about a flow. A decision reads two endpoints and a rule set
// for each direction. Its cost does not grow with the number of policies.
//
// Decisions are cheap because most of the work is done in advance. A pod has the sorted ids
// of the peer selectors that match it. The policies that isolate a pod in one direction are
// compiled together into a rule set, which is cut into intervals along the port axis. A
// binary search finds the selectors and address ranges that are allowed at a port. The last
// step checks whether two sorted lists of numbers have an element in common.
//
// The package uses neither the API server nor the kernel. A Store belongs to one goroutine.
// A Snapshot may be used by any number of goroutines, and takes no lock.
package policy

import (
	"fmt"
	"log/slog"
)

// Problem describes a part of a policy that cannot be understood, or a policy that is too
// large. Such a part or policy allows nothing. The API server rejects most malformed
// policies, but still serves those that its older versions have stored.
type Problem struct {
	Policy Ref
	Field  string // as in "spec.ingress[0].from[1].ipBlock.cidr"
	Detail string // what is wrong with the field
	Hint   string // what would be right
	// Unsupported reports that the part is correct, but not supported yet, such as a domain name
	// in a rule that accepts.
	Unsupported bool
	// TooLarge reports that the whole policy is refused because of its size, although it can be
	// understood.
	TooLarge bool
}

func (p Problem) Error() string {
	return fmt.Sprintf("%s, %s: %s: %s", p.Policy.Object(), p.Field, p.Detail, p.Hint)
}

// LogValue returns the fields as separate attributes for structured logs.
func (p Problem) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("policy", p.Policy.String()),
		slog.String("field", p.Field),
		slog.String("detail", p.Detail),
		slog.String("hint", p.Hint),
	)
}
