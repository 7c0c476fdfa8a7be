//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// No packet gets a verdict of an old snapshot. Flows begin and continue while the policy
// changes back and forth. When the agent has logged that a policy is in force, every packet
// sent afterwards obeys the policy, even in a flow that was being judged at that moment. Here
// all packets go through the queues; TestNoOldVerdictEscapesTheKernelOnPackets tests the
// kernel's flow cache.
func TestNoOldVerdictEscapesOnPackets(t *testing.T) {
	const rounds, flows = 5, 200
	deny := policies(db("[{ports: [{protocol: UDP, port: 53}]}]"))
	s := newTestbed(t)
	s.start("--kernel-cache", "off")
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			pr := s.newProber(t, i == 1)
			// stage is 0 while a change is written but not in force: packets may be allowed
			// or denied. In stages 1, 3, 5, …, the policies in force allow the flows. In
			// stages 2, 4, 6, …, they deny the flows.
			var stage atomic.Int64
			var stop atomic.Bool
			var wait sync.WaitGroup
			web := pr.host("default/web")
			for sender := range 2 {
				random := rand.New(rand.NewPCG(uint64(sender), 0))
				wait.Go(func() {
					for !stop.Load() {
						udp := &layers.UDP{SrcPort: layers.UDPPort(20000 + random.IntN(flows)), DstPort: 9}
						text := fmt.Sprintf("stage %d.", stage.Load())
						if err := web.Send(pr.packet(layers.IPProtocolUDP, udp, gopacket.Payload(text))); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			ctx, cancel := context.WithCancel(t.Context())
			var received [2*rounds + 1]atomic.Int64 // number of received datagrams, by stage
			wait.Go(func() {
				for {
					p, err := pr.sniffer.Await(ctx, func(p []byte) bool { return bytes.Contains(p, []byte("stage ")) })
					if err != nil {
						if !errors.Is(err, context.Canceled) && !errors.Is(err, os.ErrClosed) {
							t.Error(err)
						}
						return
					}
					if m := stageText.FindSubmatch(p); m != nil {
						n, _ := strconv.Atoi(string(m[1]))
						received[n].Add(1)
					}
				}
			})
			for round := range rounds {
				s.save("policies.yaml", "")
				allowed := int64(2*round + 1)
				stage.Store(allowed)
				for received[allowed].Load() < 100 && !t.Failed() {
					time.Sleep(time.Millisecond)
				}
				stage.Store(0)
				s.save("policies.yaml", deny)
				before := s.dropped(f.iptables)
				stage.Store(allowed + 1)
				s.awaitDrop(t, f.iptables, before+50)
				stage.Store(0)
			}
			stop.Store(true)
			cancel()
			wait.Wait()
			for n := 2; n < len(received); n += 2 {
				if got := received[n].Load(); got > 0 {
					t.Errorf("round %d: %d packets passed that were sent while the policy denied them", n/2, got)
				}
			}
			s.save("policies.yaml", "")
		})
	}
}

var stageText = regexp.MustCompile(`stage (\d+)\.`)
