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
// All addresses that no policy can tell apart have one [ID], so that a cache may remember a verdict
// for them all.
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
	Policy Ref    // or, with the kind "Namespace", a namespace with a wrong annotation
	Field  string // as in "spec.ingress[0].from[1].ipBlock.cidr"
	Detail string // what is wrong with the field
	Effect string // what the policy does because of that; empty if that goes without saying
	Hint   string // what would be right
	// Minor reports that the problem changes no decision: what is allowed and what is denied is
	// the same as without the faulty part.
	Minor bool
	// Unsupported reports that the part is correct, and that Sluice cannot apply it.
	Unsupported bool
	// TooLarge reports that the whole policy is refused because of its size, although it can be
	// understood.
	TooLarge bool
}

func (p Problem) Error() string {
	return fmt.Sprintf("%s, %s: %s: %s", p.Policy.Object(), p.Field, p.What(), p.Hint)
}

// What returns the detail with the effect.
func (p Problem) What() string {
	if p.Effect == "" {
		return p.Detail
	}
	return p.Detail + "; " + p.Effect
}

// LogValue returns the fields as separate attributes for structured logs.
func (p Problem) LogValue() slog.Value {
	object := "policy"
	if p.Policy.Kind == namespaceKind {
		object = "namespace"
	}
	return slog.GroupValue(
		slog.String(object, p.Policy.String()),
		slog.String("field", p.Field),
		slog.String("detail", p.What()),
		slog.String("hint", p.Hint),
	)
}
