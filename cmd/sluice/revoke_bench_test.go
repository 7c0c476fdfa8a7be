//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
)

// fillConntrack adds connections of one family to the node's conntrack table. None of
// them belongs to a pod.
func (s *testbed) fillConntrack(count int, v6 bool) {
	s.t.Helper()
	c, err := conntrack.Dial(&netlink.Config{NetNS: s.Nodes[0].NetNS()})
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	from, to := netip.MustParseAddr("10.0.0.0").As4(), netip.MustParseAddr("172.16.0.1")
	from6, to6 := netip.MustParseAddr("fd01::").As16(), netip.MustParseAddr("fd02::1")
	for i := range count {
		binary.BigEndian.PutUint16(from[2:], uint16(i))
		binary.BigEndian.PutUint16(from6[14:], uint16(i))
		src, dst := netip.AddrFrom4(from), to
		if v6 {
			src, dst = netip.AddrFrom16(from6), to6
		}
		if err := c.Create(conntrack.NewFlow(17, 0, src, dst, 40000, 53, 3600, 0)); err != nil {
			s.t.Fatalf("create connection %d: %v", i, err)
		}
	}
}

// otherPods returns the manifests of count pods of node-2.
func (s *testbed) otherPods(count int) string {
	var b strings.Builder
	v4, v6 := netip.MustParseAddr("10.99.0.0").As4(), netip.MustParseAddr("fd00:99::").As16()
	for i := range count {
		binary.BigEndian.PutUint16(v4[2:], uint16(i+1))
		binary.BigEndian.PutUint16(v6[14:], uint16(i+1))
		b.WriteString(s.pod(fmt.Sprintf("default/other-%d", i), "role: other", 1, netip.AddrFrom4(v4), netip.AddrFrom16(v6)))
	}
	return b.String()
}

// BenchmarkRevoke measures how long packets of a live connection still pass after a policy
// that forbids the connection. The client sends a datagram about every 0.1 ms. The time
// ends with the last datagram that arrives. It begins when the file of the policy is saved
// ("save") or when the agent logs the publication ("publish"). The cases are 10 or 50,000
// entries in the conntrack table, and a policy for one pod or for 1,000 pods.
func BenchmarkRevoke(b *testing.B) {
	const rules = ", ingress: [{ports: [{protocol: UDP, port: 53}]}]}"
	for _, size := range []struct {
		connections, pods int
		deny              string
	}{
		{10, 1, "default/p: {podSelector: {matchLabels: {role: db}}" + rules},
		{50_000, 1, "default/p: {podSelector: {matchLabels: {role: db}}" + rules},
		{10, 1000, "default/p: {podSelector: {}" + rules},
	} {
		deny := size.deny
		for _, f := range families {
			b.Run(fmt.Sprintf("connections=%d/pods=%d/%s", size.connections, size.pods, f.name), func(b *testing.B) {
				s := newTestbed(b)
				s.write("others.yaml", s.otherPods(size.pods-1))
				s.start()
				s.fillConntrack(size.connections, f.name == "IPv6")
				pr := s.newProber(b, f.name == "IPv6")
				var last atomic.Int64 // when the last packet of the stream arrived
				ctx, stop := context.WithCancel(b.Context())
				defer stop()
				go func() {
					for {
						if _, err := pr.sniffer.Await(ctx, func(p []byte) bool { return bytes.Contains(p, []byte("stream")) }); err != nil {
							return
						}
						last.Store(time.Now().UnixNano())
					}
				}()
				packet := pr.packet(layers.IPProtocolUDP, &layers.UDP{SrcPort: 39998, DstPort: 9}, gopacket.Payload("stream"))
				go func() {
					for ctx.Err() == nil {
						if err := pr.host("default/web").Send(packet); err != nil {
							return // the lab is closed
						}
						time.Sleep(100 * time.Microsecond)
					}
				}()
				flowing := func() {
					for before := last.Load(); last.Load() == before; {
						time.Sleep(time.Millisecond)
					}
				}
				var publish, save []time.Duration
				for b.Loop() {
					flowing()
					saved := time.Now()
					ctx, cancel := context.WithTimeout(b.Context(), waitTimeout)
					line, err := s.agent.Save(ctx, "policies.yaml", policies(deny))
					cancel()
					if err != nil {
						b.Fatal(err)
					}
					time.Sleep(20 * time.Millisecond) // so that the packets that passed have been received
					passed := time.Unix(0, last.Load())
					// This duration may be negative, because the agent publishes the
					// snapshot before it logs the line. In reports, use the duration since
					// the save.
					publish = append(publish, passed.Sub(line.Time()))
					save = append(save, passed.Sub(saved))
					s.save("policies.yaml", "")
				}
				reportDurations(b, "publish", publish)
				reportDurations(b, "save", save)
			})
		}
	}
}

// reportDurations reports the median and the 99th percentile.
func reportDurations(b *testing.B, name string, all []time.Duration) {
	slices.Sort(all)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(all[min(len(all)-1, len(all)*p/100)].Microseconds())/1000, fmt.Sprintf("%s-ms-p%d", name, p))
	}
}
