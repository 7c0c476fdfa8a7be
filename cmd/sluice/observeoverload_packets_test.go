//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter/flow"
)

// lateWatched is a stream of records that the test does not read before it calls the method read.
type lateWatched struct {
	t      *testing.T
	answer io.ReadCloser
	stop   func()
}

func (s *testbed) watchLate(t *testing.T) *lateWatched {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	answer, err := status.Open(ctx, s.socket, "/flows?follow=true")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = answer.Close() })
	return &lateWatched{t, answer, stop}
}

// read reads records until each of the sent flows is either seen or counted as left out. It then calls
// sendLast, and reads on until a record for which last returns true. It returns the number of records for
// which counts returns true, and the number of records left out. The test fails if two of the counted
// records have the same source port.
func (w *lateWatched) read(sent int, counts, last func(*flow.Record) bool, sendLast func()) (seen, left int) {
	w.t.Helper()
	ports := make(map[uint16]bool)
	defer time.AfterFunc(waitTimeout/4, w.stop).Stop()
	called := false
	for d := json.NewDecoder(w.answer); ; {
		r := new(flow.Record)
		if err := d.Decode(r); err != nil {
			w.t.Fatalf("%d seen and %d left out of %d: %v", seen, left, sent, err)
		}
		switch {
		case r.Event == "left-out":
			left += int(r.Count)
		case last(r):
			return seen, left
		case !counts(r):
		case ports[r.SrcPort]:
			w.t.Fatalf("twice: %s from port %d", r.Text(), r.SrcPort)
		default:
			ports[r.SrcPort] = true
			seen++
		}
		if seen+left >= sent && !called {
			called = true
			sendLast()
		}
	}
}

// If there are more flows than the agent can pass on, it counts the missing ones exactly. This holds for
// each source of records: denials by the agent, denials by the kernel, and connections.
func TestObserveOverloadOnPackets(t *testing.T) {
	const buffer = "50"
	const firstPort = 20_000
	for _, tt := range []struct {
		name   string
		sent   int
		args   []string
		from   string
		event  string
		port   uint16
		paused bool // the agent does not run while packets are sent
		by     string
	}{
		{name: "denied by the agent", sent: 3000, args: []string{"--kernel-cache", "off"}, from: "default/other", event: "denied", port: 6379, by: "agent"},
		{name: "denied by the kernel", sent: 5000, args: kernelArgs(), from: "default/other", event: "denied", port: 6379, by: "kernel"},
		{name: "denied by the kernel while the agent hangs", sent: 5000, args: kernelArgs(), from: "default/other", event: "denied", port: 6379, by: "kernel", paused: true},
		{name: "connections", sent: 12_000, args: kernelArgs(), from: "default/web", event: "allowed", port: 53, paused: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestbed(t)
			s.setConntrack("nf_conntrack_udp_timeout", "600", "nf_conntrack_udp_timeout_stream", "600")
			s.write("policies.yaml", policies(db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")))
			s.start(append(tt.args, "--flow-buffer", buffer)...)
			pr := s.newProberBetween(t, tt.from, "default/db", false)
			from, db := s.host(tt.from), s.host("default/db")
			in, err := from.Inject()
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			link := append(slices.Concat(from.RouterMAC(), from.MAC()), 8, 0) // of IPv4
			send := func(i int) {
				t.Helper()
				udp := &layers.UDP{SrcPort: layers.UDPPort(firstPort + i), DstPort: layers.UDPPort(tt.port)}
				if err := in.Send(slices.Concat(link, pr.packet(layers.IPProtocolUDP, udp))); err != nil {
					t.Fatal(err)
				}
			}
			s.check(t, nil, []string{"default/other default/db udp 6379"})
			s.check(t, []string{"default/web default/db udp 53"}, nil) // from now on, the kernel remembers both verdicts
			before := s.deniedPackets(t, from.IPv4, tt.port)
			w := s.watchLate(t)
			resume := func() {}
			if tt.paused {
				resume = s.pause(t)
			}
			for i := range tt.sent {
				send(i)
			}
			resume()
			happened := func() int { return s.connectionsFrom(t, from.IPv4, firstPort) }
			if tt.event == "denied" {
				happened = func() int { return s.deniedPackets(t, from.IPv4, tt.port) - before }
			}
			s.eventually(t, "all packets have arrived", func() bool { return happened() == tt.sent })
			isOurs := func(r *flow.Record) bool {
				return r.Event == tt.event && r.Src == from.IPv4 && r.DstPort == tt.port && r.SrcPort >= firstPort && r.SrcPort < uint16(firstPort+tt.sent)
			}
			others := 0
			seen, left := w.read(tt.sent, func(r *flow.Record) bool {
				if isOurs(r) && tt.by != "" && r.By != tt.by {
					others++
				}
				return isOurs(r)
			}, func(r *flow.Record) bool { return r.Event == tt.event && r.DstPort == 1 }, func() {
				from.Connect(t.Context(), "udp", netip.AddrPortFrom(db.IPv4, 1), probeTimeout/10)
			})
			t.Logf("%d seen and %d left out of %d", seen, left, tt.sent)
			if seen+left != tt.sent || left == 0 || seen == 0 || others > seen/2 {
				t.Errorf("%d seen, %d of them from elsewhere, and %d left out of %d", seen, others, left, tt.sent)
			}
		})
	}
}

// deniedPackets returns how many packets from an address to a port were denied, as sluice denied shows it:
// by the agent and by the kernel.
func (s *testbed) deniedPackets(t *testing.T, from netip.Addr, port uint16) (n int) {
	t.Helper()
	_, out, _ := sluice(t, "denied", "--socket", s.socket, "--from", from.String(), "--port", fmt.Sprint(port), "-o", "json")
	var all []*flow.DenialRecord
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		n += int(d.Count)
	}
	return n
}

// connectionsFrom returns how many connections in the node's table come from an address, and from a source
// port that is at least port.
func (s *testbed) connectionsFrom(t *testing.T, from netip.Addr, port uint16) (n int) {
	t.Helper()
	err := s.Nodes[0].Do(func() error {
		all, err := netlink.ConntrackTableList(netlink.ConntrackTable, unix.AF_INET)
		for _, c := range all {
			if c.Forward.SrcIP.Equal(from.AsSlice()) && c.Forward.SrcPort >= port {
				n++
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}
