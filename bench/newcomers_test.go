package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/bench/result"
	"sluice/bench/testbed/lab"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// TestNewEndsAreAllowed checks that policies allow the connections of newcomers and visitors and no
// others, and that after the first round's warm-up no pair of IDs is new.
func TestNewEndsAreAllowed(t *testing.T) {
	s := result.Scenario{Pods: 1000, Policies: 100, Namespaces: 20}
	c, w := makeCluster(s), policy.NewStore()
	c.Fill(w)
	of := newEndsContender()
	for _, p := range labPods(labNamespace(c), of) {
		w.SetPod(kubepod.Read(p))
	}
	for _, p := range labPolicies(labNamespace(c), s, of) {
		w.SetPolicy(netpol.Read(p))
	}
	snapshot, _ := w.Commit()
	if n, problems := snapshot.Counts(), w.Problems(); n.Pods != s.Pods+newcomerPods+2 || len(problems) > 0 {
		t.Fatalf("%d pods; %v", n.Pods, problems)
	}
	decide := func(from, to netip.Addr, port uint16) filter.Action {
		return snapshot.Decide(filter.NewKey(from, to, filter.TCP, port)).Action
	}
	for _, r := range rows {
		if r.kind != isSluice || r.ends == fewPods {
			continue
		}
		of.row = r
		checkEnds(t, snapshot, of)
		from, to, port := of.between().Key(0)
		if decide(from, to, port+1) != filter.Deny {
			t.Errorf("%s: %s may reach another port of %s", r.Name, from, to)
		}
		// An address after a range of sources may reach only the pod that is open to all.
		beyond := nth(of.between().FromRange, 1<<17)
		if got := decide(beyond, to, port); (got == filter.Allow) != (r.ends == visitorsOfOpenPod) {
			t.Errorf("%s: from %s to %s: %s", r.Name, beyond, to, got)
		}
	}
}

// checkEnds checks the connections of a row as TestNewEndsAreAllowed says.
func checkEnds(t *testing.T, s *policy.Snapshot, of *contender) {
	t.Helper()
	known := make(map[[2]policy.ID]bool)
	to := of.between()
	for n := range uint64(1 << 17) {
		from, pod, port := to.Key(n)
		src, srcID := s.Identify(from)
		dst, dstID := s.Identify(pod)
		pair := [2]policy.ID{srcID, dstID}
		switch {
		case s.Decide(filter.NewKey(from, pod, filter.TCP, port)).Action != filter.Allow:
			t.Fatalf("%s: connection %d is denied: from %s to %s", of.Name, n, from, pod)
		case !policy.DecidedByIDs(from, pod, src, dst):
			t.Fatalf("%s: the verdict about connection %d is not that of IDs", of.Name, n)
		case n >= warmUpCount && !known[pair]:
			t.Fatalf("%s: connection %d, from %s to %s, is the first with its IDs", of.Name, n, from, pod)
		}
		known[pair] = true
	}
	if want := map[ends]int{newcomers: 1, visitors: 32, visitorsOfOpenPod: 32}[of.ends]; len(known) != want {
		t.Errorf("%s: %d pairs of IDs, want %d", of.Name, len(known), want)
	}
}

// newEndsContender returns a contender with all ends, whose hosts have addresses but do not exist.
func newEndsContender() *contender {
	t := newTestContender(netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2"), 16)
	t.ends = newcomers
	t.node = &lab.Node{Host: &lab.Host{IPv4: netip.MustParseAddr("192.0.2.1"), IPv6: netip.MustParseAddr("2001:db8::1")}}
	for i, a := range []string{"10.77.0.100", "10.77.0.101"} {
		t.visited[i] = &lab.Host{IPv4: netip.MustParseAddr(a), IPv6: netip.MustParseAddr(fmt.Sprintf("fd00:77::%d", 100+i))}
	}
	return t
}

// TestWrongAgentIsSeen checks what a run shows of an agent that answers newcomers and visitors in user
// space, and of one that enforces nothing.
func TestWrongAgentIsSeen(t *testing.T) {
	needLab(t)
	for _, tt := range []struct {
		change, want string
		status       int
	}{
		{`set -- "$@" --kernel-cache off`, "", 0},
		{`sed -i 's/"matchLabels":{"app":"bench-[bo]/&-/g' $(echo "$@" | sed 's#.*--manifests \([^ ]*\).*#\1#')/bench-*.json`, "nothing is enforced", exitFailed},
	} {
		dir := t.TempDir()
		wrapper, file := filepath.Join(dir, "sluice"), filepath.Join(dir, "r.json")
		text := fmt.Sprintf("#!/bin/sh\n[ \"$2\" = --help ] || [ \"$1\" != run ] || %s\nexec %s \"$@\"\n", tt.change, sluice)
		if err := os.WriteFile(wrapper, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		e, _ := testEnv(t, func(s string) { log.WriteString(s) })
		status := run(t.Context(), e, []string{
			"run", "--sluice", wrapper, "--sizes", "10/1", "--rows", "visitors6,visitors-all", "--loads", "tcp-1", "--rounds", "1", "--for", "40ms", "--out", file,
		})
		if status != tt.status || !strings.Contains(log.String(), tt.want) {
			t.Fatalf("%s: exit status %d, want %d and %q in\n%s", tt.change, status, tt.status, tt.want, log.String())
		}
		if status != 0 {
			continue
		}
		r, err := result.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		missed := make(map[string]bool)
		for _, a := range r.Aims {
			if strings.HasPrefix(a.Label, "packets queued") && a.Got > 0 && a.Missed {
				missed[a.Row] = true
			}
		}
		if len(missed) != 3 { // newcomers, whose node the others share, is measured too
			t.Errorf("the aim was missed only by %v", missed)
		}
	}
}
