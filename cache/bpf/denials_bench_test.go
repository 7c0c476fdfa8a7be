package bpf_test

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	networkingv1 "k8s.io/api/networking/v1"

	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/policy/netpol"
)

// BenchmarkDenied measures what a denied packet costs in the kernel. It does so while nothing watches,
// while Watch gets all events, and while Watch gets one event a second, so that almost all are beyond the
// rate. For each of these, there are three kinds of packets. "remembered": the programs remember the
// verdict of the flow. "closed": the programs know that all packets to the pod are denied, and the flow
// was denied before. "new flows": the same for flows that were not denied before, as in a scan of ports.
func BenchmarkDenied(b *testing.B) {
	for _, watched := range []struct {
		name      string
		perSecond uint32
	}{{"unwatched", 0}, {"watched", math.MaxUint32}, {"beyond the rate", 1}} {
		b.Run(watched.name, func(b *testing.B) {
			c, p, u := newFixture(b, bpf.Options{}, nil)
			closed := letIn("web", "absent")
			closed.Spec.Ingress, closed.Spec.PolicyTypes = nil, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			u.store.SetPolicy(netpol.Read(closed))
			u.commit(b)
			u.evaluate(redis(other))
			if watched.perSecond > 0 {
				begun, done := make(chan struct{}), make(chan error, 1)
				ctx, cancel := context.WithCancel(b.Context())
				go func() {
					done <- c.Watch(ctx, watched.perSecond, func() { close(begun) }, func(*bpf.Event) {})
				}()
				defer func() {
					cancel()
					if err := <-done; err != nil {
						b.Error(err)
					}
				}()
				<-begun
			}
			b.Run("remembered", func(b *testing.B) { runPackets(b, p.deny, 1, redis(other)) })
			b.Run("closed", func(b *testing.B) { runPackets(b, p.deny, 1, packetOf(db, web, filter.TCP, 80, 20)) })
			b.Run("new flows", func(b *testing.B) { runPackets(b, p.deny, 60_000, packetOf(db, web, filter.TCP, 80, 20)) })
		})
	}
}

// runPackets runs a program on b.N packets, which go to the given number of ports in turn, and reports the
// time for a packet. With more than one port, each packet takes a run of its own, and its time includes
// the start of the run, some 60 ns.
func runPackets(b *testing.B, p *ebpf.Program, ports int, data []byte) {
	b.Helper()
	frame := append([]byte{12: 8, 13: 0}, data...)
	var all time.Duration
	runs, each := b.N, 1
	if ports == 1 {
		runs, each = 1, b.N
	}
	for i := range runs {
		if ports > 1 {
			frame[36], frame[37] = byte(i%ports>>8), byte(i%ports)
		}
		result, took, err := p.Benchmark(frame, each, nil)
		if err != nil || result == 0 {
			b.Fatalf("result %d, %v: the packet is not denied", result, err)
		}
		all += took * time.Duration(each)
	}
	b.ReportMetric(float64(all.Nanoseconds())/float64(b.N), "ns/packet")
}
