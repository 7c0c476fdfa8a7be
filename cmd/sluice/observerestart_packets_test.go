//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"github.com/vishvananda/netlink"

	"sluice/bench/testbed/lab"
	"sluice/filter/flow"
)

// numberedFlows sends flows, each with a source port of its own: connections from default/web to
// default/db, which are allowed, and as many packets from default/other to default/db, which are denied.
type numberedFlows struct {
	*testbed
	t    *testing.T
	pr   *prober
	port uint16 // of the last denied packet

	mu   sync.Mutex
	sent map[string][]sentFlow // by flowKey; several flows if a later connection has the same port
}

// sentFlow has the time at which a flow was sent, and the time at which its sender knew whether it had
// arrived.
type sentFlow struct{ from, until time.Time }

func (s *testbed) numberedFlows(t *testing.T) *numberedFlows {
	t.Helper()
	return &numberedFlows{testbed: s, t: t, pr: s.newProberBetween(t, "default/other", "default/db", false), port: 20_000, sent: make(map[string][]sentFlow)}
}

// flowKey returns a text that identifies a flow: its event, and the address and the port of its source.
func flowKey(event string, src netip.AddrPort) string { return event + " " + src.String() }

// send sends one flow of each kind. It does not check whether they pass, because there may be no agent at
// the time.
func (n *numberedFlows) send() {
	n.t.Helper()
	began := time.Now()
	n.port++
	syn := &layers.TCP{SYN: true, SrcPort: layers.TCPPort(n.port), DstPort: 6379, Seq: 1, Window: 100}
	if err := n.host("default/other").Send(n.pr.packet(layers.IPProtocolTCP, syn)); err != nil {
		n.t.Error(err)
	}
	r := n.host("default/web").Connect(n.t.Context(), "tcp", netip.AddrPortFrom(n.host("default/db").IPv4, 6379), probeTimeout)
	now := sentFlow{began, time.Now()}
	n.mu.Lock()
	defer n.mu.Unlock()
	add := func(event string, from netip.AddrPort) {
		key := flowKey(event, from)
		n.sent[key] = append(n.sent[key], now)
	}
	add("denied", netip.AddrPortFrom(n.host("default/other").IPv4, n.port))
	if r.Outcome == lab.Reached {
		add("allowed", r.From)
	}
}

// count returns the number of flows that were sent. Flows with the same key count once.
func (n *numberedFlows) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.sent)
}

// records returns what observe -o json has printed.
func (o *observed) records() (all []*flow.Record) {
	o.t.Helper()
	for line := range strings.Lines(o.out.String()) {
		r := new(flow.Record)
		if err := json.Unmarshal([]byte(line), r); err != nil {
			return all // the last line is not complete yet
		}
		all = append(all, r)
	}
	return all
}

// missing returns the flows that were sent and that observe has not printed. It leaves out keys that
// several flows have. The test fails if observe has printed more flows with a key than were sent.
func (n *numberedFlows) missing(o *observed) (left map[string]sentFlow) {
	n.t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := make(map[string]int)
	for _, r := range o.records() {
		if r.DstPort == 6379 && r.Event != "ended" {
			seen[flowKey(r.Event, netip.AddrPortFrom(r.Src, r.SrcPort))]++
		}
	}
	left = make(map[string]sentFlow)
	for key, sent := range n.sent {
		switch more := len(sent) - seen[key]; {
		case more < 0:
			n.t.Fatalf("sent %d times and seen %d times: %s", len(sent), seen[key], key)
		case more == 1 && len(sent) == 1:
			left[key] = sent[0]
		}
	}
	return left
}

// An observer goes on when the agent ends and another agent starts. It sees all flows before and after,
// and none of them twice. The flows that it does not see are within the time about which it prints that
// nothing was recorded. If a connection lasts longer than the agent, the observer sees the record of its
// end, with the packets and bytes since its begin.
func TestObserveBeyondTheAgentOnPackets(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		// next ends the agent and starts the next one, while flows are sent.
		next func(s *testbed, n *numberedFlows, args []string)
	}{
		{"killed", nil, func(s *testbed, n *numberedFlows, args []string) {
			s.agent.Kill()
			before := n.count()
			s.eventually(n.t, "a flow is sent while no agent runs", func() bool { return n.count() > before+1 })
			s.start(args...)
		}},
		{"ended and kept", []string{"--on-exit", "keep"}, func(s *testbed, _ *numberedFlows, args []string) {
			s.stop()
			s.start(args...)
		}},
		{"ended and removed", []string{"--on-exit", "remove"}, func(s *testbed, _ *numberedFlows, args []string) {
			s.stop()
			s.start(args...)
		}},
		{"taken over from", nil, func(s *testbed, _ *numberedFlows, args []string) {
			old := s.agent
			s.start(args...)
			if err := old.Stop(); err != nil {
				s.t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newTestbed(t)
			s.setConntrack("nf_conntrack_acct", "1", "nf_conntrack_timestamp", "1")
			s.write("policies.yaml", policies(strings.Replace(demo1, "port: 6379", "port: 6379}, {protocol: UDP, port: 53", 1)))
			args := kernelArgs(tt.args...)
			s.start(args...)
			o := startObserve(t, "--socket", s.socket, "-o", "json", "--last", "1000")
			n := s.numberedFlows(t)
			s.eventually(t, "observe watches", func() bool { n.send(); return len(o.records()) > 0 })
			n.sent = make(map[string][]sentFlow)
			for range 100 {
				n.send()
			}
			long, datagrams := s.longConnection(t)
			for range 3 {
				datagrams()
			}
			s.eventually(t, "all are seen before", func() bool { return len(n.missing(o)) == 0 })

			ctx, stop := context.WithCancel(t.Context())
			sending := make(chan struct{})
			go func() {
				defer close(sending)
				for ctx.Err() == nil {
					n.send()
				}
			}()
			tt.next(s, n, args)
			s.eventually(t, "the next agent answers", func() bool { return strings.Contains(o.errs.String(), "answers again: nothing was seen for ") })
			stop()
			<-sending
			told := o.gap()
			datagrams()
			for range 100 {
				n.send()
			}
			n.checkMissing(o, told)
			s.endConnections(t)
			s.checkEnd(t, o, long)
			t.Logf("%d flows, %d of them not seen within %v", len(n.sent), len(n.missing(o)), told.until.Sub(told.from))
		})
	}
}

// gap returns the time about which observe has printed that nothing was recorded. The test fails unless
// there is exactly one such time.
func (o *observed) gap() (told sentFlow) {
	o.t.Helper()
	for _, r := range o.records() {
		if r.Event != "unrecorded" {
			continue
		}
		if !told.until.IsZero() || r.Missing != "all" {
			o.t.Fatalf("%+v, after %v", r, told)
		}
		told = sentFlow{r.Time.Add(-time.Duration(r.Seconds * float64(time.Second))), r.Time}
	}
	if told.until.IsZero() {
		o.t.Fatalf("no record tells about the time without an agent: %s", o.errs.String())
	}
	return told
}

// checkMissing waits until all flows are seen, except those that were sent within the time told or up to a
// second before it. In that second, the agent may have received a flow and have been killed before it
// recorded the flow.
func (n *numberedFlows) checkMissing(o *observed, told sentFlow) {
	n.t.Helper()
	const before = time.Second
	var wrong string
	defer func() {
		if n.t.Failed() {
			n.t.Logf("missing: %s; said %s", wrong, o.errs.String())
		}
	}()
	n.eventually(n.t, "all others are seen", func() bool {
		wrong = ""
		for key, at := range n.missing(o) {
			if at.until.Before(told.from.Add(-before)) || at.from.After(told.until) {
				wrong = fmt.Sprintf("%s, sent %v after the time without records", key, at.from.Sub(told.until))
			}
		}
		return wrong == ""
	})
}

// longConnection opens a UDP connection from default/web to default/db. It returns the address of its
// source, and a function that sends a datagram and waits for the answer.
func (s *testbed) longConnection(t *testing.T) (from netip.AddrPort, send func()) {
	t.Helper()
	c, err := s.host("default/web").DialUDP(netip.AddrPortFrom(s.host("default/db").IPv4, 53))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return netip.MustParseAddrPort(c.LocalAddr().String()), func() {
		t.Helper()
		if _, err := c.Write([]byte("question")); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(waitTimeout))
		if _, err := c.Read(make([]byte, 1500)); err != nil {
			t.Fatal(err)
		}
	}
}

// endConnections deletes all connections from the node's table, as the kernel does when they expire.
func (s *testbed) endConnections(t *testing.T) {
	t.Helper()
	if err := s.Nodes[0].Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) }); err != nil {
		t.Fatal(err)
	}
}

// checkEnd waits for the record of the end of the long connection, in which four datagrams were sent in
// each direction.
func (s *testbed) checkEnd(t *testing.T, o *observed, from netip.AddrPort) {
	t.Helper()
	var end *flow.Record
	s.eventually(t, "the end is seen", func() bool {
		for _, r := range o.records() {
			if r.Event == "ended" && r.SrcPort == from.Port() && r.Protocol == "UDP" {
				end = r
			}
		}
		return end != nil
	})
	if end.From.Pod != "web" || end.Into.Pod != "db" || end.Seconds <= 0 || end.Sent == nil || *end.Sent != (flow.Traffic{Packets: 4, Bytes: 4 * (28 + 8)}) || end.Received.Packets != 4 {
		t.Errorf("the end: %+v, sent %+v, received %+v", end, end.Sent, end.Received)
	}
}
