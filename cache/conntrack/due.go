package conntrack

import (
	"maps"
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
)

// This file answers when a live connection is judged again.
//
// The caller of [Follower.Published] names the event by a [Scope]:
//
//	a change of policy                               ScopeFlows
//	a change while a worker was stuck                ScopeAddresses
//	the start, which is the first event of all       ScopeAll
//	the agent that had taken over is gone            ScopeAll
//	the predecessor has answered its last packet     ScopeAll
//	packets may have passed unjudged                 ScopeGap
//
// A snapshot with other ranges of pods widens the scope to ScopeAll: the ranges decide which
// flows the workers track.
//
// Of a change of policy with ScopeFlows, the connections of a changed address are judged
// again if one of these holds:
//
//   - A tracked flow of the address has another verdict now.
//   - TrackedFlows does not keep all flows of the address: there are too many, or the
//     endpoint has come back and caches answer for flows that were forgotten meanwhile.
//   - The workers were not asked about connections of the address, and the new policies may
//     deny them: the endpoint was open, or no endpoint was known.
//   - The endpoint is gone, and packets of its address are held for the next one.
//   - The last sweep of the address failed.
//
// An address whose endpoint is gone, and which belongs to pods, waits for its next endpoint.

// Scope is which connections an event concerns.
type Scope uint8

const (
	// ScopeFlows is the connections whose verdict has changed.
	ScopeFlows Scope = iota
	// ScopeAddresses is all connections of the changed addresses: verdicts of older
	// snapshots may have taken effect late, or still may.
	ScopeAddresses
	// ScopeAll is all connections.
	ScopeAll
	// ScopeGap is ScopeAll after packets may have passed unjudged. Connections without a
	// mark are counted as such.
	ScopeGap
)

// widened returns the scope of an event whose snapshot is now.
func widened(scope Scope, before, now *policy.Snapshot) Scope {
	if before != nil && !now.SameRanges(before) {
		return max(scope, ScopeAll)
	}
	return scope
}

// change is what is known of an address that has changed since the last sweep.
type change struct {
	snapshot uint64 // by which it last changed
	need     need
}

// need is what a change needs beyond a look at the tracked flows.
type need uint8

const (
	needNothing need = iota
	// needLater means that TrackedFlows may not know all connections of the address, which
	// matters only when the address has an endpoint again.
	needLater
	// needSweep means that connections may be concerned which TrackedFlows does not know.
	needSweep
)

// maxLater bounds the addresses with needLater. With more of them, they are swept.
const maxLater = 1024

// record adds the change of an address to those since the last sweep.
func (f *Follower) record(before, now *policy.Snapshot, a netip.Addr, scope Scope) {
	f.comesBack(before, now, a)
	n := needSweep
	if scope == ScopeFlows && f.changes[a].need == needNothing {
		n = f.need(before, now, a)
	}
	f.changes[a] = change{now.Number(), n}
}

// comesBack notes that an address has an endpoint again that it had before: verdicts from
// then are valid again, though TrackedFlows may have forgotten them.
func (f *Follower) comesBack(before, now *policy.Snapshot, a netip.Addr) {
	if f.tracked == nil || before == nil {
		return
	}
	if is := now.Endpoint(a); is != nil && is.Epoch() <= before.NewestEpoch() {
		f.tracked.lose(a.As16(), now.Number())
	}
}

// need returns whether an address may have live connections that no worker was asked
// about, or that TrackedFlows does not keep, and that may be denied now.
func (f *Follower) need(before, now *policy.Snapshot, a netip.Addr) need {
	if f.tracked == nil || before == nil {
		return needSweep
	}
	was, wasPending := before.Lookup(a)
	is, isPending := now.Lookup(a)
	switch {
	case was == nil && wasPending == policy.Known, was != nil && f.sweeper.held(isPending), was != nil && policy.MayRestrict(was, is):
		return needSweep
	case isPending != policy.Known:
		return needLater
	}
	return needNothing
}

// due returns the changed addresses whose connections are to be judged now. Those that
// can wait go back to the changes.
func (f *Follower) due(s *policy.Snapshot, changes map[netip.Addr]change, all bool) policy.Changes {
	due, wait := make(policy.Changes, 0, len(changes)), make(map[netip.Addr]change)
	evaluate := func(k *filter.Key) filter.Action {
		v, _ := f.sweeper.evaluate(s, k)
		return v.Action
	}
	for a, c := range changes {
		switch {
		case all || c.need == needSweep || f.tracked.changed(a.As16(), evaluate):
			due = append(due, a)
		case c.need == needLater:
			wait[a] = c
		}
	}
	if len(wait) > maxLater {
		return slices.AppendSeq(due, maps.Keys(wait))
	}
	f.putBack(wait, false, false)
	return due
}
