package conntrack

import (
	"maps"
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
)

// This file decides which live connections are evaluated again after an event.
//
// The caller of [Follower.Published] passes the [Scope] of the event:
//
//	a new snapshot                                          ScopeFlows
//	a new snapshot while a worker was stuck                 ScopeAddresses
//	the start of this agent                                 ScopeAll
//	an agent that took over has failed; this one enforces   ScopeAll
//	the agent before this one has answered its last packet  ScopeAll
//	packets may have passed without a verdict               ScopeGap
//
// A snapshot with different pod ranges widens the scope to ScopeAll, because the ranges
// decide which flows the workers track. The first policy that may deny what pods send to their
// node widens the scope to ScopeAll too: before it, no flow to the node is tracked, not even
// one from a pending address. So does a second call in a row with the same snapshot: the first call
// may have caused a sweep while caches still allowed connections by the previous snapshot.
//
// With ScopeFlows, the connections of a changed address are evaluated again if one of these
// holds:
//
//   - A tracked flow of the ID that the address had now has a different answer: allow, drop or reject.
//   - TrackedFlows does not have all flows of the ID that the address had, because they are too many.
//   - Connections of the address may have begun without a verdict of a worker, because no policy
//     denied packets of the endpoint or the endpoint was not known. The new policies may deny these
//     connections.
//   - The endpoint is gone, and packets of its address are held for the next endpoint.
//   - The last sweep of the address failed.
//
// If the pod of an address is gone, the connections of the address may stay unevaluated until the
// address has an endpoint again (see needLater).

// Scope states which connections an event concerns.
type Scope uint8

const (
	// ScopeFlows concerns those connections of the changed addresses whose verdict may have
	// changed. The list above defines them.
	ScopeFlows Scope = iota
	// ScopeAddresses concerns all connections of the changed addresses. It is for the case
	// that a verdict of an older snapshot took effect late, or may still take effect.
	ScopeAddresses
	// ScopeAll concerns all connections.
	ScopeAll
	// ScopeGap concerns all connections, like ScopeAll. It is for the case that packets may
	// have passed without a verdict. The sweep also counts, in Result.Unjudged, the
	// connections without a mark that should have had one.
	ScopeGap
)

// widened returns the scope, widened to ScopeAll if the pod ranges have changed, if flows from pods
// to their node begin to be judged, or if the last call had the same snapshot.
func widened(scope Scope, before, now *policy.Snapshot) Scope {
	if before != nil && (before == now || !now.SameRanges(before) || now.JudgesOwnNode() && !before.JudgesOwnNode()) {
		return max(scope, ScopeAll)
	}
	return scope
}

// change describes the changes of an address since the last sweep.
type change struct {
	need need
	id   policy.ID // with needLater: the ID of the address before it lost its endpoint
}

// need states what a change requires beyond a check of the tracked flows.
type need uint8

const (
	needNothing need = iota
	// needLater means that the address has no endpoint now, and that TrackedFlows may lack
	// connections of the address. The address needs a check when it has an endpoint again.
	needLater
	// needSweep means that the change may alter the verdict about connections that
	// TrackedFlows lacks, so all connections of the address must be evaluated.
	needSweep
)

// maxLater bounds the number of addresses with needLater. If there are more, the next sweep
// evaluates the connections of all of them.
const maxLater = 1024

// record adds the change of an address to the changes since the last sweep.
func (f *Follower) record(before, now *policy.Snapshot, a netip.Addr, scope Scope) {
	next := change{need: needSweep}
	if scope == ScopeFlows && f.changes[a].need == needNothing {
		next.need = f.need(before, now, a)
	}
	if next.need == needLater {
		_, next.id = before.Identify(a)
	}
	f.changes[a] = next
}

// need returns what the change of an address requires beyond a check of its tracked flows. This
// check is not enough if the address may have live connections that TrackedFlows lacks and that
// the new snapshot may deny.
func (f *Follower) need(before, now *policy.Snapshot, a netip.Addr) need {
	if f.tracked == nil || before == nil {
		return needSweep
	}
	was, wasPending := before.Lookup(a)
	is, isPending := now.Lookup(a)
	switch {
	case was == nil && wasPending == policy.Known, was != nil && f.sweeper.held(isPending), was != nil && policy.MayRestrict(was, is):
		return needSweep
	case was == nil && wasPending == policy.PendingRemote && is.EffectToNode() != policy.Open:
		return needSweep // until now, the rules did not select the packets from the address to the node
	case isPending != policy.Known:
		return needLater
	}
	return needNothing
}

// due returns the changed addresses whose connections must be evaluated now. Addresses with
// needLater are deferred: due puts them back into f.changes. If there are more than maxLater of
// those, due returns them too.
func (f *Follower) due(s *policy.Snapshot, changes map[netip.Addr]change, steps []step, all bool) policy.Changes {
	affected := f.affected(changes, steps)
	due, wait := make(policy.Changes, 0, len(changes)), make(map[netip.Addr]change)
	for a, c := range changes {
		switch {
		case all || c.need == needSweep || affected[a]:
			due = append(due, a)
		case c.need == needLater:
			wait[a] = c
		}
	}
	if len(wait) > maxLater {
		due, wait = slices.AppendSeq(due, maps.Keys(wait)), nil
	}
	f.putBack(wait, false, false)
	if f.tracked != nil {
		f.tracked.clean(s, idsOf(wait))
	}
	return due
}

// affected makes TrackedFlows follow the steps, and returns the changed addresses whose connections need
// a sweep because of that.
func (f *Follower) affected(changes map[netip.Addr]change, steps []step) map[netip.Addr]bool {
	affected := make(map[netip.Addr]bool)
	if f.tracked == nil {
		return affected
	}
	use := idsOf(changes)
	for _, one := range steps {
		f.tracked.follow(one, use, affected, func(s *policy.Snapshot, k *filter.Key) filter.Action {
			v, _ := f.sweeper.evaluate(s, k)
			return v.Answer()
		})
	}
	return affected
}

// idsOf returns the IDs that addresses with needLater had when they had an endpoint.
func idsOf(changes map[netip.Addr]change) map[policy.ID]bool {
	ids := make(map[policy.ID]bool)
	for _, c := range changes {
		if c.need == needLater {
			ids[c.id] = true
		}
	}
	return ids
}
