//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
)

// Each pod gets addresses that no pod had before. A reused address would belong to the old
// pod until the agent learns of that pod's end.
var startRange4, startRange6 = netip.MustParsePrefix("10.88.0.0/16"), netip.MustParsePrefix("fd00:88::/112")

func startAddrs(number int) []netip.Addr {
	v4, v6 := startRange4.Addr().As4(), startRange6.Addr().As16()
	binary.BigEndian.PutUint16(v4[2:], uint16(number+1))
	binary.BigEndian.PutUint16(v6[14:], uint16(number+1))
	return []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

// podStarter starts pods that policies isolate. They connect at once, but the agent gets
// their manifests with a delay.
type podStarter struct {
	*testbed
	keepKnown bool // keep the manifests of pods that have ended
	// delay holds a value for each allowed connection: the time that it took to connect, minus
	// the part of the lag (see startOne) that was left when the connection began.
	delay []time.Duration
	mu    sync.Mutex
}

func newPodStarter(t testing.TB, args ...string) *podStarter {
	return newPodStarterWith(t, newTestbed(t), args...)
}

func newPodStarterWith(t testing.TB, s *testbed, args ...string) *podStarter {
	t.Helper()
	s.write("policies.yaml", policies(demo1,
		"default/mute: {podSelector: {matchLabels: {role: mute}}, policyTypes: [Egress]}",
		"default/closed: {podSelector: {matchLabels: {role: mute}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {role: backend}}}]}]}"))
	s.start(append(args, "--pod-cidrs", startRange4.String()+","+startRange6.String())...)
	return &podStarter{testbed: s}
}

// startOne starts a pod that may connect to db, and to which all pods may connect. If mute is
// set, the pod may connect to no pod, and only default/other may connect to it. The
// connections begin at once; the agent gets the pod's manifest after the lag.
func (s *podStarter) startOne(number int, mute bool, lag time.Duration) error {
	name, role := fmt.Sprintf("start-%d", number), "frontend"
	if mute {
		role = "mute"
	}
	began := time.Now()
	pod, err := s.Nodes[0].AddPod(name, startAddrs(number)...)
	if err != nil {
		return err
	}
	defer pod.Close()
	if err := pod.Serve("tcp", 6379); err != nil {
		return err
	}
	var wait sync.WaitGroup
	failed := make(chan error, 8)
	try := func(from, to *lab.Host, allowed bool) {
		for _, f := range families {
			wait.Go(func() {
				timeout := lag + probeTimeout
				if allowed {
					timeout = waitTimeout
				}
				r := from.Connect(s.t.Context(), "tcp", netip.AddrPortFrom(f.addr(to), 6379), timeout)
				switch {
				case allowed && r.Outcome != lab.Reached:
					failed <- fmt.Errorf("%s, lag %v: %s to %s over %s: %s", name, lag, from.Name, to.Name, f.name, r.Outcome)
				case !allowed && r.Outcome == lab.Reached:
					failed <- fmt.Errorf("%s, lag %v: %s reached %s over %s", name, lag, from.Name, to.Name, f.name)
				case allowed:
					s.mu.Lock()
					s.delay = append(s.delay, r.Took-max(0, lag-time.Since(began)+r.Took))
					s.mu.Unlock()
				}
			})
		}
	}
	try(pod, s.hosts["default/db"], !mute)
	try(s.hosts["default/web"], pod, !mute)
	try(s.hosts["default/other"], pod, true)
	time.Sleep(time.Until(began.Add(lag))) // the lag of the API is what the test varies; no condition ends it
	file := name + ".yaml"
	err = agenttest.WriteFile(s.dir, file, s.pod("default/"+name, "role: "+role, 0, pod.Addrs()...))
	wait.Wait()
	if err == nil && !s.keepKnown {
		err = os.Remove(filepath.Join(s.dir, file))
	}
	close(failed)
	if e, some := <-failed; some {
		return e
	}
	return err
}

// run starts many pods, several at a time.
func (s *podStarter) run(count int) {
	s.t.Helper()
	next := make(chan int)
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for i := range next {
				if err := s.startOne(i, i%2 == 1, time.Duration(i%9)*100*time.Millisecond); err != nil {
					s.t.Error(err)
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	wait.Wait()
}

// A pod that starts under a policy is isolated from its first packet on. Its allowed packets
// are not rejected, but held until the agent knows the pod.
func TestFirstPacketOnPackets(t *testing.T) {
	// Use a long --hold, because on a busy machine the agent may get a pod's manifest long
	// after the lag.
	s := newPodStarter(t, "--hold", waitTimeout.String())
	s.run(18)
	_, page := s.scrape(t, "/metrics")
	for _, name := range []string{"sluice_held_packets_expired_total", "sluice_held_packets_refused_total"} {
		if !strings.Contains(page, "\n"+name+" 0\n") {
			t.Errorf("a held packet of a starting pod expired or was refused: want %s 0 in\n%s", name, page)
		}
	}
}

// scanned is the offset of the scanned addresses, above the addresses of the pods that start.
const scanned = 0x8000

// scans send packets that are held for pods that do not exist.
var scans = map[string]func(s *podStarter, n int) error{
	"to pending addresses": func(s *podStarter, n int) error {
		conn, err := s.host("mine/cart").DialUDP(netip.AddrPortFrom(startAddrs(scanned + n)[0], 9))
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = conn.Write([]byte("scan"))
		return err
	},
	"from pending addresses": func(s *podStarter, n int) error {
		ip := &layers.IPv4{
			Version: 4, TTL: 64, Id: 1, Protocol: layers.IPProtocolUDP,
			SrcIP: startAddrs(scanned + n)[0].AsSlice(), DstIP: s.host("default/db").IPv4.AsSlice(),
		}
		udp := &layers.UDP{SrcPort: 9, DstPort: 6379}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			return err
		}
		b := gopacket.NewSerializeBuffer()
		opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
		if err := gopacket.SerializeLayers(b, opts, ip, udp, gopacket.Payload("scan")); err != nil {
			return err
		}
		return s.host("mine/cart").Send(b.Bytes())
	},
}

// A scan that fills all places for held packets does not displace packets of pods that
// start: none of their packets is rejected.
func TestStartBesideAScanOnPackets(t *testing.T) {
	const places = 128
	for name, scan := range scans {
		for _, bridged := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, bridged %v", name, bridged), func(t *testing.T) {
				s := newPodStarterWith(t, newTestbedWith(t, lab.Options{Nodes: 2, Bridged: bridged}), "--hold", "1h", "--hold-max", strconv.Itoa(places), "--log-verdicts", "denied", "--log-verdicts-rate", "0")
				// Without the manifest of an ended pod, the agent would deny the pod's late
				// packets as pod-not-known, and the check below would count them.
				s.keepKnown = true
				// With this policy, db accepts a datagram only from some pods, so the agent must
				// know the sending pod.
				s.save("names.yaml", policies("default/names: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}]}]}"))
				sent := 0
				send := func() {
					if err := scan(s, sent%0x4000); err != nil {
						t.Error(err)
					}
					sent++
				}
				// Fill all places for held packets. The scan "from pending addresses" forges its
				// sources, and the guard may drop its packets before they are held. So this scan
				// stops after 4*places packets even if some places are still free.
				for end := time.Now().Add(waitTimeout); s.heldPackets(t) < places && (sent < 4*places || !strings.HasPrefix(name, "from")); send() {
					if time.Now().After(end) {
						t.Fatalf("the scan fills only %d places", s.heldPackets(t))
					}
				}
				stop, done := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(done)
					tick := time.NewTicker(2 * time.Millisecond)
					defer tick.Stop()
					for ; ; send() {
						select {
						case <-stop:
							return
						case <-tick.C:
						}
					}
				}()
				s.run(8)
				close(stop)
				<-done
				given := s.agent.Since(0, func(l agenttest.Line) bool {
					return l.Text("reason") == "pod-not-known" && !isScanned(l.Text("src")) && !isScanned(l.Text("dst"))
				})
				if len(given) > 0 {
					t.Errorf("%d packets of starting pods were denied as pod-not-known, first %v", len(given), given[0])
				}
				if n := s.heldPackets(t); n > places {
					t.Errorf("%d packets are held, want at most %d", n, places)
				}
			})
		}
	}
}

func isScanned(text string) bool {
	addr, err := netip.ParseAddr(text)
	return err == nil && startRange4.Contains(addr) && addr.As4()[2] >= scanned>>8
}

// heldPackets returns the number of packets that are held now.
func (s *podStarter) heldPackets(t *testing.T) (n int) {
	t.Helper()
	_, page := s.scrape(t, "/metrics")
	_, text, _ := strings.Cut(page, "\nsluice_held_packets ")
	if _, err := fmt.Sscan(text, &n); err != nil {
		t.Fatalf("%v in\n%s", err, page)
	}
	return n
}

// BenchmarkPodStart starts pods whose manifests the agent gets after a lag. It measures the
// delay of each allowed connection: the time to connect, minus the part of the lag that was
// left when the connection began. Run it with -benchtime=1000x for 1,000 starts.
func BenchmarkPodStart(b *testing.B) {
	s := newPodStarter(b)
	b.ResetTimer()
	s.run(b.N)
	reportDurations(b, "delay", s.delay)
	b.ReportMetric(float64(slices.Max(s.delay).Microseconds())/1000, "delay-ms-max")
}
