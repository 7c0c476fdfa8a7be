//go:build linux

package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// webToDNS is a policy that lets only the frontend reach the database, at UDP port 53.
const webToDNS = "default/asks: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{protocol: UDP, port: 53}]}]}"

// floodOnce opens 30 connections with new keys at once, and counts their outcomes.
func (s *testbed) floodOnce(t *testing.T, from string, to netip.AddrPort, timeout time.Duration) map[lab.Outcome]int {
	t.Helper()
	const connections = 30
	results := make(chan lab.Outcome, connections)
	var wait sync.WaitGroup
	for range connections {
		wait.Go(func() { results <- s.host(from).Connect(t.Context(), "udp", to, timeout).Outcome })
	}
	wait.Wait()
	close(results)
	outcomes := make(map[lab.Outcome]int)
	for o := range results {
		outcomes[o]++
	}
	return outcomes
}

// Connections that a pod opens over its limit are judged correctly in the overflow queue. The
// connections of other pods do not wait behind them.
func TestOverflowOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(webToDNS))
	s.start("--queues", "1", "--queue-first", "20", "--source-share", "1", "--kernel-cache", "off")
	const others, overflow = 20, 21
	for _, addr := range s.host("default/db").Addrs() {
		db := netip.AddrPortFrom(addr, 53)
		for _, flood := range []struct {
			from    string
			timeout time.Duration
			want    lab.Outcome
		}{{"default/web", waitTimeout, lab.Reached}, {"default/other", probeTimeout, lab.TimedOut}} {
			before := s.queues()
			// The limit is one connection per second. 30 at once exceed it, unless the machine
			// takes 30 seconds to open them.
			for end := time.Now().Add(waitTimeout); s.queues()[overflow] == before[overflow]; {
				if got := s.floodOnce(t, flood.from, db, flood.timeout); len(got) != 1 || got[flood.want] == 0 {
					t.Errorf("%s to %s: %v, want all %v", flood.from, db, got, flood.want)
				}
				if time.Now().After(end) {
					t.Fatalf("%s to %s: no packet comes to the overflow queue", flood.from, db)
				}
			}
			if now := s.queues(); now[others] == before[others] {
				t.Errorf("%s to %s: no packet within the limit comes to the first queue", flood.from, db)
			}
		}
		before := s.queues()
		if r := s.host("mine/cart").Connect(t.Context(), "udp", db, probeTimeout); r.Outcome != lab.TimedOut {
			t.Errorf("mine/cart to %s: %v, want %v", db, r.Outcome, lab.TimedOut)
		}
		if now := s.queues(); now[others] != before[others]+1 || now[overflow] != before[overflow] {
			t.Errorf("mine/cart to %s: queues %v after %v, want one more packet in the first", db, now, before)
		}
	}
	text := fmt.Sprintf("sluice_overflow_queue_packets_total %d\n", s.queues()[overflow])
	if status, page := s.scrape(t, "/metrics"); status != http.StatusOK || !strings.Contains(page, text) {
		t.Errorf("%d, want %q in\n%s", status, text, page)
	}
}

// If iptables lacks the match for the per-source limit, for the kernel's flow cache or for the
// source check, the agent logs this and enforces without that part.
func TestOverflowWithoutTheMatchOnPackets(t *testing.T) {
	for name, tt := range map[string]struct {
		lacks []string
		said  []event.Name
	}{
		"hashlimit": {[]string{"hashlimit-above"}, []event.Name{event.SourceLimitOff}},
		"programs":  {[]string{"object-pinned"}, []event.Name{event.KernelCacheOff}},
		"rpfilter":  {[]string{"rpfilter"}, []event.Name{event.SourceCheckOff}},
		"both":      {[]string{"hashlimit-above", "object-pinned"}, []event.Name{event.SourceLimitOff, event.KernelCacheOff}},
		"all":       {[]string{"hashlimit-above", "bpf"}, []event.Name{event.SourceLimitOff, event.KernelCacheOff, event.SourceCheckOff}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies(demo1))
			rejectMatches(t, tt.lacks...)
			s.start("--iptables", "nft", "--guard", "off") // with the guard, the rules do not need rpfilter
			for _, name := range []event.Name{event.SourceLimitOff, event.KernelCacheOff, event.SourceCheckOff} {
				want := slices.Contains(tt.said, name)
				if n := len(s.agent.Since(0, agenttest.Event(name))); n > 0 != want {
					t.Errorf("%d lines of event %s, want one: %v", n, name, want)
				}
			}
			s.check(t, []string{webToDB}, []string{otherToDB})
			rules := s.leftovers(t)
			for _, word := range tt.lacks {
				if strings.Contains(rules, word) {
					t.Errorf("a rule has %s:\n%s", word, rules)
				}
			}
		})
	}
}

// Agents with and without the overflow queue take over from each other, and their queue
// numbers do not collide.
func TestTakeoverWithAnotherLimitOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	for _, share := range []string{"10", "0", "20"} {
		old := s.agent
		s.start("--source-share", share, "--on-exit", "keep")
		if old != nil {
			if err := old.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		s.check(t, []string{webToDB}, []string{otherToDB})
	}
}
