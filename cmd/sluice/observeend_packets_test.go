//go:build linux

package main

import (
	"testing"
	"time"

	"sluice/cache/conntrack"
	"sluice/filter/flow"
)

// The duration of a connection ends with its last packet, although the kernel keeps its entry for longer.
func TestEndOfConnectionOnPackets(t *testing.T) {
	const timeout = time.Second
	s := newTestbed(t)
	s.setConntrack("nf_conntrack_acct", "1", "nf_conntrack_timestamp", "1", "nf_conntrack_tcp_timeout_time_wait", "1")
	s.write("policies.yaml", "")
	s.start(kernelArgs()...)
	w := s.watch(t)
	began := time.Now()
	c := s.newTCPPair(t, 0, "default/web")
	_, _ = c.client.Close(), c.server.Close()
	c.awaitEntry("closed", func(e *conntrack.Conn) bool { return e != nil && e.Closed })
	lasted := time.Since(began)
	// The kernel looks for entries to remove once a minute, and whenever they are listed.
	c.awaitNoEntry()

	client, _ := c.ends()
	var end *flow.Record
	s.eventually(t, "the end is seen", func() bool {
		w.count(func(r *flow.Record) bool {
			if r.Event == "ended" && r.SrcPort == client.Port() {
				end = r
			}
			return false
		})
		return end != nil
	})
	// The kernel measures timeouts in ticks of its clock, which may be 10 ms long.
	const tick = 20 * time.Millisecond
	if got := time.Duration(end.Seconds * float64(time.Second)); got <= 0 || got > lasted+tick {
		t.Errorf("it lasted %v, want at most %v", got, lasted)
	}
	if idle := time.Duration(end.Idle * float64(time.Second)); idle < timeout-tick {
		t.Errorf("it was idle for %v, want at least %v", idle, timeout)
	}
}
