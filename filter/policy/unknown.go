package policy

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/selection"

	"sluice/filter"
)

// A pod may be known before its Namespace object arrives, or after that object was deleted. Without
// the object, only one label of the namespace is known: its name. If the store applied the policies
// as if there were no other labels, it could allow flows by mistake: a rule that denies would not
// match, and a rule with NotIn or DoesNotExist that accepts would match. So while this is possible
// for some policy in force, the store denies everything to and from such pods, with the reason
// [filter.NamespaceNotKnown].
//
// These pods get policy sets of their own, whose only rule denies everything. So a decision about
// other pods takes no longer, and a pod gets a new epoch when its Namespace arrives.

// unknownLabels states what is denied because the labels of a namespace are not known.
type unknownLabels uint8

const (
	labelsKnown         unknownLabels = iota // nothing is denied: the labels are known, or no policy needs them
	labelsUnknown                            // everything but packets between a pod and its own node is denied
	labelsUnknownToNode                      // packets from a pod to its own node are denied, too: see Snapshot.JudgesOwnNode
)

// unknowns holds what a store needs for pods whose Namespace objects are not known.
type unknowns struct {
	required   bool // see RequireNamespaces
	policies   int  // policies in force that may allow by mistake in a namespace without labels
	undeclared map[*namespace]struct{}
	sets       [labelsUnknownToNode + 1][2]*policySet // by unknownLabels and direction; in no map, and never released
}

func newUnknowns() unknowns {
	u := unknowns{undeclared: make(map[*namespace]struct{})}
	for state := labelsUnknown; state <= labelsUnknownToNode; state++ {
		for d := range u.sets[state] {
			u.sets[state][d] = denyingSet(filter.Direction(d), state)
		}
	}
	return u
}

// denyingSet returns a policy set that denies everything. Its effect is Ask: a cache that denied
// by itself would leave no chance to hold the packets.
func denyingSet(d filter.Direction, state unknownLabels) *policySet {
	deny := &policy{tier: Admin}
	deny.rules[d] = []rule{{is: filter.Rule{Tier: Admin, Direction: d, Action: Deny}, anyone: true, portless: true}}
	set := &policySet{key: policySetKey{direction: d, tier: Admin}, refs: 1}
	set.alone = newSetLink(set, compile(d, []*policy{deny}, defaultShape()), nil)
	set.alone.effect, set.alone.toNode = Ask, Ask
	if state == labelsUnknown {
		set.alone.toNode = Open
	}
	return set
}

// RequireNamespaces is called by a source that delivers the Namespace object of each pod. From
// then on, the labels of a namespace without an object are not known. Without this call, such a
// namespace has no labels.
func (w *Store) RequireNamespaces() { w.unknowns.required = true }

// declare records whether there is a Namespace object.
func (w *Store) declare(ns *namespace, declared bool) {
	ns.declared = declared
	if declared {
		delete(w.unknowns.undeclared, ns)
		w.setUnknown(ns, labelsKnown)
	} else {
		w.unknowns.undeclared[ns] = struct{}{}
	}
}

// commitUnknown finds the namespaces whose labels are not known and matter. It costs nothing
// while all namespaces have an object.
func (w *Store) commitUnknown() {
	u, state := &w.unknowns, labelsKnown
	switch {
	case !u.required || u.policies == 0:
	case w.toNode > 0:
		state = labelsUnknownToNode
	default:
		state = labelsUnknown
	}
	for ns := range u.undeclared {
		w.setUnknown(ns, state)
	}
}

func (w *Store) setUnknown(ns *namespace, state unknownLabels) {
	if ns.unknown == state {
		return
	}
	ns.unknown = state
	for k := range ns.identities.all.all() {
		w.reselect(k)
	}
}

// useUnknown returns the policy sets of the pods of a namespace with the given state, and
// increments their reference counts.
func (w *Store) useUnknown(state unknownLabels) (sets policySets) {
	for d, set := range w.unknowns.sets[state] {
		set.refs++
		sets[d][set.key.tier] = set
	}
	return sets
}

// needsNamespaces reports whether the policy may allow a flow by mistake if the labels of a
// namespace are not known, and count as absent.
func (p *policy) needsNamespaces() bool {
	subject := p.subject.scope.selector.labelUse()
	for d := range p.rules {
		for i := range p.rules[d] {
			r, use := &p.rules[d][i], subject
			for _, list := range [][]*selector{r.some, r.whole} {
				for _, s := range list {
					use = max(use, s.scope.selector.labelUse())
				}
			}
			if use == needsAbsence || use == needsLabels && r.is.Action != Accept {
				return true
			}
		}
	}
	return false
}

// labelUse states what a namespace selector needs to match, apart from the namespace's name.
type labelUse uint8

const (
	needsNothing labelUse = iota
	needsLabels           // only labels that the namespace must have
	needsAbsence          // labels that the namespace must not have
)

// labelUse returns the labelUse of a namespace selector; needsNothing for nil.
func (s *selector) labelUse() (use labelUse) {
	if s == nil {
		return needsNothing
	}
	requirements, _ := s.labels.Requirements()
	for _, r := range requirements {
		if r.Key() == corev1.LabelMetadataName {
			continue
		}
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals, selection.Exists:
			use = max(use, needsLabels)
		default:
			return needsAbsence
		}
	}
	return use
}

// namespaceNotKnown is the verdict about a flow to or from a pod whose policy sets deny it because
// the labels of its namespace are not known.
func namespaceNotKnown() filter.Verdict {
	return filter.Verdict{Action: filter.Deny, Reason: filter.NamespaceNotKnown, Pair: true}
}

// inUnknown reports whether the endpoint is a pod in a namespace whose labels are not known and
// matter.
func (e *Endpoint) inUnknown() bool {
	return e != nil && e.class != nil && e.class.unknown != labelsKnown
}

// UnknownNamespace returns the address of k whose pod is in a namespace that is not known, for a
// verdict with the reason [filter.NamespaceNotKnown].
func (s *Snapshot) UnknownNamespace(k *filter.Key) netip.Addr {
	if src := k.SrcAddr(); s.Endpoint(src).inUnknown() {
		return src
	}
	return k.DstAddr()
}
