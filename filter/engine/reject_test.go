package engine_test

import (
	"fmt"
	"testing"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/packet"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// answers is an Observer that records the action and the answer of verdicts.
type answers []string

func (a *answers) Observe(_ packet.Packet, v filter.Verdict) {
	*a = append(*a, fmt.Sprint(v.Action, v.Answer()))
}

// memory is a Memory that records actions.
type memory []filter.Action

func (m *memory) Remember(_ policy.IDKey, action filter.Action) { *m = append(*m, action) }

// A packet is rejected only if the hook and the rules make that possible. The observer gets what
// happens to the packet, and Memory gets what the policies decide.
func TestReject(t *testing.T) {
	yes, no := func() bool { return true }, func() bool { return false }
	for _, tt := range []struct {
		at      filter.Hook
		rejects func() bool
		want    filter.Action
	}{
		{filter.AtPostrouting, yes, filter.Deny},
		{filter.AtForward, yes, filter.Reject},
		{filter.AtForward, no, filter.Deny},
		{filter.AtForward, nil, filter.Deny},
	} {
		var published policy.Published
		var said answers
		var kept memory
		e := engine.New(engine.Config{Published: &published, Observer: &said, Memory: &kept, Rejects: tt.rejects}, cache.NewFlows(16))
		w := policy.NewStore()
		w.SetDenial(filter.DenialReject)
		w.SetPod(kubepod.Read(pod("web", "10.0.0.1", nil)))
		w.SetPod(kubepod.Read(pod("db", "10.0.0.2", nil)))
		w.SetPolicy(netpol.Read(denyAll("default")))
		s, _ := w.Commit()
		published.Publish(s)
		e.Enter()
		for range 3 { // the last one is from the cache
			if got, _ := e.Evaluate(datagram(key("10.0.0.1", "10.0.0.2", 80)), tt.at); got != tt.want {
				t.Errorf("%v: %s, want %s", tt, got, tt.want)
			}
		}
		if got := e.Expire(datagram(key("10.0.0.1", "10.0.0.2", 80)), tt.at, false); got != tt.want {
			t.Errorf("%v, expired: %s, want %s", tt, got, tt.want)
		}
		if got, _ := e.Evaluate([]byte{0}, tt.at); got != filter.Deny {
			t.Errorf("%v: a malformed packet: %s", tt, got)
		}
		e.Exit()
		if want := fmt.Sprint(filter.Deny, tt.want); said[0] != want || said[3] != want {
			t.Errorf("%v: observed %q, want %q", tt, said, want)
		}
		if kept[0] != filter.Reject {
			t.Errorf("%v: remembered %v, want reject", tt, kept)
		}
		wantCount := uint64(0)
		if tt.want == filter.Reject {
			wantCount = 4
		}
		if got := e.Tally().Rejected; got != wantCount {
			t.Errorf("%v: counted %d, want %d", tt, got, wantCount)
		}
		e.Close()
	}
}
