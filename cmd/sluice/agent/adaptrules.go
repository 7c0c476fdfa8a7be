package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"sluice/watch"
)

// rulesWait bounds how long a change of policy waits for iptables to write the rules. Writing
// them usually takes some 50 ms, but iptables may wait much longer for another program.
const rulesWait = 2 * time.Second

// ruleNeeds are what a snapshot needs of the rules.
type ruleNeeds struct {
	reject  bool           // some denial may reject
	sources []netip.Prefix // see iptables.Options.NodeSources
}

// ruleChanges passes the needs of snapshots to writeRules. Only the stage "rules" uses last and busy.
type ruleChanges struct {
	wait  time.Duration // rulesWait, except in tests
	last  ruleNeeds     // the last needs that were passed
	busy  bool          // writeRules has not finished with them
	needs chan ruleNeeds
	done  chan struct{}
}

func newRuleChanges() ruleChanges {
	return ruleChanges{wait: rulesWait, needs: make(chan ruleNeeds), done: make(chan struct{}, 1)}
}

// adaptRules makes the rules look at packets to this node and at forwarded packets, if the
// snapshot requires it. It must run before live connections are evaluated: afterwards, no
// connection may begin without a verdict. If iptables is stuck, adaptRules returns ErrUnsettled, so
// that later changes do not wait for it, and all connections are evaluated again when the rules are
// in place.
func (a *agent) adaptRules(ctx context.Context, c watch.Change) error {
	needs, r := a.needs(c), &a.ruleChanges
	if r.busy {
		select {
		case <-r.done:
			r.busy = false
			a.recordGap()
		default:
			return watch.ErrUnsettled
		}
	}
	if needs.reject == r.last.reject && slices.Equal(needs.sources, r.last.sources) {
		return nil // without waiting for iptables, which may be at work
	}
	r.last = needs // also if they cannot be written: the manager tries again
	select {
	case <-ctx.Done():
		return nil
	case r.needs <- needs:
	}
	r.busy = true
	select {
	case <-ctx.Done():
	case <-r.done:
		r.busy = false
	case <-time.After(r.wait):
		a.log.Warn("iptables takes long to write the rules for a change of policy; continuing without them", "timeout_ms", r.wait.Milliseconds())
		return watch.ErrUnsettled
	}
	return nil
}

// needs returns what a change needs of the rules.
func (a *agent) needs(c watch.Change) ruleNeeds {
	return ruleNeeds{c.Snapshot.Rejects(), a.nodeSources.update(c.Snapshot, c.Addresses, a.starting.List())}
}

// writeRules writes the rules for the needs that adaptRules passes, until ctx ends.
func (a *agent) writeRules(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case needs := <-a.ruleChanges.needs:
			a.setNeeds(ctx, needs)
			a.ruleChanges.done <- struct{}{}
		}
	}
}

// setNeeds passes needs to the manager. It returns when the rules are written, or when the manager
// has failed and will try again.
func (a *agent) setNeeds(ctx context.Context, needs ruleNeeds) {
	if err := a.manager.SetReject(ctx, needs.reject); err != nil && ctx.Err() == nil {
		a.log.Error("denied packets may be dropped instead of rejected; trying again", "err", err)
	}
	if err := a.manager.SetNodeSources(ctx, needs.sources); err != nil && ctx.Err() == nil {
		a.log.Error("what pods send to this node may pass without a verdict; trying again", "err", err)
	}
}
