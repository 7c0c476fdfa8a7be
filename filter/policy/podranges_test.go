package policy_test

import (
	"net/netip"
	"testing"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, text := range texts {
		list = append(list, netip.MustParsePrefix(text))
	}
	return list
}

// Lookup returns the endpoint of an address, and whether a pod is pending there. A snapshot
// keeps the Nodes' ranges of its Commit, but sees changes of the starting pods at once.
func TestLookup(t *testing.T) {
	w := policy.NewStore()
	w.SetLocalNode("here")
	w.SetNode(addrs("10.1.0.1", "10.9.0.1"))
	w.SetNodeRanges("here", prefixes("10.1.0.7/24"))
	w.SetNodeRanges("there", prefixes("10.2.0.0/24", "fd00:2::/64"))
	w.SetPodRanges(prefixes("10.3.0.0/24"))
	w.SetPod(kubepod.Read(claimant("a", "there", 1))) // has 10.0.0.1
	old, _ := w.Commit()
	w.SetNodeRanges("there", nil)
	w.StartingPods().Set(prefixes("10.4.0.1/32"))
	now, _ := w.Commit()
	for _, tt := range []struct {
		addr     string
		endpoint string
		old, now policy.Pending
	}{
		{"10.0.0.1", "a/a", policy.Known, policy.Known},
		{"10.1.0.1", "node", policy.Known, policy.Known},
		{"10.9.0.1", "node", policy.Known, policy.Known},
		{"10.1.0.2", "", policy.PendingLocal, policy.PendingLocal},
		{"10.3.0.2", "", policy.PendingLocal, policy.PendingLocal},
		{"10.2.0.2", "", policy.PendingRemote, policy.Known},
		{"fd00:2::2", "", policy.PendingRemote, policy.Known},
		{"10.4.0.1", "", policy.PendingLocal, policy.PendingLocal}, // a starting pod is pending in both snapshots
		{"192.0.2.1", "", policy.Known, policy.Known},
	} {
		addr := netip.MustParseAddr(tt.addr)
		for s, want := range map[*policy.Snapshot]policy.Pending{old: tt.old, now: tt.now} {
			if e, p := s.Lookup(addr); e.String() != tt.endpoint || p != want {
				t.Errorf("%s in snapshot %d: %q, %d; want %q, %d", addr, s.Number(), e, p, tt.endpoint, want)
			}
		}
	}
	if n := testing.AllocsPerRun(100, func() { now.Lookup(netip.MustParseAddr("192.0.2.1")) }); n != 0 {
		t.Errorf("Lookup allocates %v times, want 0", n)
	}
}

// SameRanges returns false if ranges were added or removed, or if starting pods were added.
// It returns true if starting pods were only removed.
func TestSameRanges(t *testing.T) {
	w := policy.NewStore()
	last, _ := w.Commit()
	for _, step := range []struct {
		name string
		do   func()
		same bool
	}{
		{"nothing", func() {}, true},
		{"a Node", func() { w.SetNodeRanges("a", prefixes("10.1.0.0/24")) }, false},
		{"the same", func() { w.SetNodeRanges("a", prefixes("10.1.0.0/24")) }, true},
		{"given ranges", func() { w.SetPodRanges(prefixes("10.2.0.0/24")) }, false},
		{"the Node is gone", func() { w.SetNodeRanges("a", nil) }, false},
		{"no Node is gone", func() { w.SetNodeRanges("a", nil) }, true},
		{"a pod starts", func() { w.StartingPods().Set(prefixes("10.3.0.1/32")); w.RenewStartingPods() }, false},
		{"two start", func() { w.StartingPods().Set(prefixes("10.3.0.1/32", "10.3.0.2/32")); w.RenewStartingPods() }, false},
		{"one is gone", func() { w.StartingPods().Set(prefixes("10.3.0.2/32")); w.RenewStartingPods() }, true},
		{"not renewed", func() { w.StartingPods().Set(prefixes("10.3.0.2/32")) }, true},
	} {
		step.do()
		now, _ := w.Commit()
		if now.SameRanges(last) != step.same {
			t.Errorf("%s: SameRanges returns %t, want %t", step.name, !step.same, step.same)
		}
		last = now
	}
}

// The channel that Changed returns is closed by the next change, but not if the same
// addresses are set again.
func TestStartingPodsChange(t *testing.T) {
	var s policy.StartingPods
	changed := s.Changed()
	s.Set(nil)
	select {
	case <-changed:
		t.Error("setting the same addresses closed the channel")
	default:
	}
	s.Set(prefixes("10.0.0.1/32"))
	<-changed
	select {
	case <-s.Changed():
		t.Error("the next channel is closed without another change")
	default:
	}
}
