//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/cache/bpf"
	"sluice/filter/event"
)

// kernelArgs returns flags of an agent that requires the kernel's flow cache.
func kernelArgs(more ...string) []string { return append([]string{"--kernel-cache", "on"}, more...) }

// pinned lists the directories of the programs that agents have pinned on the node.
func (s *testbed) pinned(t *testing.T) (found []string) {
	t.Helper()
	err := s.Nodes[0].Do(func() (err error) {
		found, err = filepath.Glob(filepath.Join(bpf.DefaultBPFFS, "sluice-*"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// checkNotQueued calls f and checks that no packet is queued during the call.
func (s *testbed) checkNotQueued(t *testing.T, what string, f func()) {
	t.Helper()
	before := s.queued()
	f()
	if n := s.queued() - before; n != 0 {
		t.Errorf("%s: %d packets were queued", what, n)
	}
}

const (
	webToDB   = "default/web default/db tcp 6379"
	otherToDB = "default/other default/db tcp 6379"
)

// other1 is like demo1, but allows default/other instead of default/web.
var other1 = strings.ReplaceAll(demo1, "role: frontend", "role: backend")

// By default, the agent uses the kernel's flow cache if the node supports it and no other flag
// excludes it. Otherwise the agent logs the reason and enforces without the cache.
func TestKernelCacheByItselfOnPackets(t *testing.T) {
	notDirectory := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(notDirectory, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, because string
		args          []string
	}{
		{"works", "", []string{"--iptables", "nft"}},
		{"each verdict logged", "", []string{"--log-verdicts", "all", "--iptables", "nft"}},
		{"legacy tables", "legacy tables", []string{"--iptables", "legacy"}},
		{"cannot be pinned", "mount the BPF file system", []string{"--bpffs", notDirectory, "--iptables", "nft"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies(demo1))
			s.start(c.args...)
			logged := s.agent.Since(0, agenttest.Event(event.KernelCacheOff))
			if works := c.because == ""; works != (len(logged) == 0) || works != (len(s.pinned(t)) == 1) || !works && !strings.Contains(logged[0].Text("because"), c.because) {
				t.Errorf("pinned %v, logged %v", s.pinned(t), logged)
			}
			s.check(t, []string{webToDB}, []string{otherToDB})
			before := s.queued()
			s.check(t, []string{webToDB}, []string{otherToDB})
			if asked := s.queued() > before; asked == (c.because == "") {
				t.Errorf("packets of flows that were judged before are queued: %v", asked)
			}
			s.save("policies.yaml", policies(other1))
			s.check(t, []string{otherToDB}, []string{webToDB})
			// Other programs can still change their rules in the table, even in a
			// container that does not see the node's BPF file system.
			err := s.Nodes[0].Run("unshare", "-m", "sh", "-c", "umount /sys/fs/bpf && exec \"$@\"", "sh",
				"iptables-"+map[bool]string{true: "legacy", false: "nft"}[c.name == "legacy tables"], "-w", "-t", "mangle", "-N", "OTHER")
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// Flows that were judged before are not queued again, and flows between pods without
// policies are not queued at all. A change takes effect on all flows at once.
func TestKernelCacheOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs()...)
	before := s.queued()
	s.check(t, []string{webToDB}, []string{otherToDB})
	if s.queued() == before {
		t.Error("the first time, no packet was queued")
	}
	s.checkNotQueued(t, "the second time", func() { s.check(t, []string{webToDB, webToDB}, []string{otherToDB}) })
	s.checkNotQueued(t, "no policy", func() {
		s.check(t, []string{
			"default/web default/other tcp 80", "default/db default/other udp 53", "default/web outside tcp 80",
			"outside default/web tcp 8080", "default/far bare/odd tcp 80", "node-1 default/db tcp 80", "default/db outside udp 53",
		}, nil)
	})
	for range 3 {
		s.save("policies.yaml", policies(other1))
		s.check(t, []string{otherToDB}, []string{webToDB})
		s.checkNotQueued(t, "after a change, the second time", func() { s.check(t, []string{otherToDB}, []string{webToDB}) })
		s.save("policies.yaml", policies(demo1))
		s.check(t, []string{webToDB}, []string{otherToDB})
	}
	s.save("policies.yaml", policies(demo1, "default/none: {podSelector: {matchLabels: {tier: x}}, policyTypes: [Egress]}"))
	s.check(t, []string{webToDB, "default/web default/other tcp 80"}, []string{"default/other outside tcp 80", otherToDB})
}

// The legacy tables of iptables call the programs, too, and other programs can still change
// these tables.
func TestKernelCacheInLegacyTablesOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs("--iptables", "legacy")...)
	s.check(t, []string{webToDB}, []string{otherToDB})
	s.checkNotQueued(t, "the second time", func() { s.check(t, []string{webToDB}, []string{otherToDB}) })
	s.agent.Kill()
	for _, tool := range []string{"iptables-legacy", "ip6tables-legacy"} {
		if err := s.Nodes[0].Run(tool, "-w", "-t", "mangle", "-A", "POSTROUTING", "-m", "mark", "--mark", "0x7", "-j", "DROP"); err != nil {
			t.Error(err)
		}
	}
	s.check(t, []string{webToDB}, []string{otherToDB})
}

// What the kernel answers without the agent is logged, too.
func TestKernelAnswersAreLoggedOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs("--log-verdicts", "all", "--log-verdicts-rate", "0")...)
	s.check(t, []string{webToDB}, []string{otherToDB})
	for range 2 {
		mark := s.agent.Mark()
		s.checkNotQueued(t, "the second time", func() { s.check(t, []string{webToDB}, []string{otherToDB}) })
		for verdict, from := range map[string]string{"allow": "default/web", "deny": "default/other"} {
			for _, f := range families {
				src := f.addr(s.host(from)).String()
				s.await(mark, "a line of the verdict "+verdict, func(l agenttest.Line) bool {
					return l.Text("verdict") == verdict && l.Text("src") == src && l.Text("from") == from && l.Text("policy") == "default/access-demo1"
				})
			}
		}
	}
}

// Without an agent, the verdicts in the kernel's flow cache still apply, and the fail mode
// decides about all other flows. The next agent removes the programs that the previous agent
// pinned.
func TestKernelCacheWithoutAgentOnPackets(t *testing.T) {
	const noPolicy, outside, neverSeen = "default/web default/other tcp 80", "default/other outside tcp 80", "mine/cart default/db tcp 6379"
	for _, c := range []struct {
		name            string
		exit, fail      string
		kill            bool
		allow, deny     []string
		pins, leftovers bool // whether the agent that has ended leaves pinned programs (pins), and rules or marks (leftovers)
	}{
		{"killed, closed", "remove", "closed", true, []string{webToDB, noPolicy, outside}, []string{otherToDB, neverSeen}, true, true},
		{"killed, open", "remove", "open", true, []string{webToDB, noPolicy, otherToDB, neverSeen}, nil, true, true},
		{"keep, closed", "keep", "closed", false, []string{webToDB, noPolicy, outside}, []string{otherToDB, neverSeen}, true, true},
		{"remove", "remove", "closed", false, []string{webToDB, noPolicy, otherToDB, neverSeen}, nil, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies(demo1))
			args := kernelArgs("--on-exit", c.exit, "--fail", c.fail)
			s.start(args...)
			s.check(t, []string{webToDB}, []string{otherToDB})
			if c.kill {
				s.agent.Kill()
			} else {
				s.stop()
			}
			if left := s.pinned(t); (len(left) == 1) != c.pins {
				t.Errorf("pinned without an agent: %v", left)
			}
			if left := s.leftovers(t); (left != "") != c.leftovers {
				t.Errorf("left without an agent:\n%s", left)
			}
			s.check(t, c.allow, c.deny)
			before := s.pinned(t)
			s.start(args...)
			after := s.pinned(t)
			if len(after) != 1 || len(before) == 1 && after[0] == before[0] {
				t.Errorf("pinned by the next agent: %v, after %v", after, before)
			}
			s.check(t, []string{webToDB}, []string{otherToDB, neverSeen})
			s.agent.Kill()
			s.removeRules(t)
			if left := s.pinned(t); len(left) > 0 {
				t.Errorf("pinned after all was removed: %v", left)
			}
			s.check(t, []string{webToDB, otherToDB, neverSeen}, nil)
		})
	}
}

// removeRules runs sluice rules --remove on the node.
func (s *testbed) removeRules(t *testing.T) {
	t.Helper()
	err := s.Nodes[0].Run("sluice", "rules", "--remove")
	if err != nil {
		t.Fatal(err)
	}
}

// rejectMatches makes the node's iptables reject rules that contain one of the words, as an
// iptables without the match would.
func rejectMatches(t *testing.T, words ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"iptables", "ip6tables"} {
		for _, backend := range []string{"", "-nft"} {
			for _, what := range []string{"", "-save", "-restore"} {
				tool := name + backend + what
				path, err := exec.LookPath(tool)
				if err != nil {
					t.Fatal(err)
				}
				if what != "-restore" {
					if err := os.Symlink(path, filepath.Join(dir, tool)); err != nil {
						t.Fatal(err)
					}
					continue
				}
				script := fmt.Sprintf("#!/bin/sh\nrules=$(cat)\ncase $rules in *%s*) echo \"Couldn't load match\" >&2; exit 2;; esac\nprintf '%%s\\n' \"$rules\" | exec %s \"$@\"\n", strings.Join(words, "*|*"), path)
				if err := os.WriteFile(filepath.Join(dir, tool), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// If iptables cannot call the programs, an agent with --kernel-cache auto enforces without the
// cache and queues all packets. An agent with --kernel-cache on does not start.
func TestKernelCacheWithoutTheMatchOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	rejectMatches(t, "object-pinned")
	args := []string{"--iptables", "nft"}
	s.start(args...)
	s.await(0, "the agent logs that the cache is off", agenttest.Event(event.KernelCacheOff))
	for range 2 {
		before := s.queued()
		s.check(t, []string{webToDB, "default/web default/other tcp 80"}, []string{otherToDB})
		if n := s.queued() - before; n < 6 {
			t.Errorf("%d packets were queued of 6 connections", n)
		}
	}
	s.save("policies.yaml", policies(other1))
	s.check(t, []string{otherToDB}, []string{webToDB})
	if left := s.pinned(t); len(left) > 0 {
		t.Errorf("pinned, although no rule calls the programs: %v", left)
	}
	s.stop()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	program, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatal(err)
	}
	_, err = agenttest.Start(ctx, agenttest.Options{Sluice: program, Node: s.Nodes[0], Dir: s.dir, Args: append(args, "--kernel-cache", "on", "--socket", s.socket)})
	if err == nil || !strings.Contains(err.Error(), "load match") {
		t.Errorf("with on: %v", err)
	}
}

// Agents take over from each other without a gap, and each removes only its own programs.
func TestKernelCacheTakeoverOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	args := kernelArgs("--on-exit", "keep", "--fail", "closed")
	s.start(args...)
	l := s.newLoad(t, true)
	for range 2 {
		l.more(100)
		next := s.startAnother(args...)
		if n := len(s.pinned(t)); n != 2 {
			t.Errorf("%d agents have pinned programs, want 2", n)
		}
		l.more(100)
		s.stop()
		s.agent = next
		if n := len(s.pinned(t)); n != 1 {
			t.Errorf("%d agents have pinned programs, want 1", n)
		}
		l.more(100)
	}
	l.end()
	next := s.startAnother(args...)
	mark := s.agent.Mark()
	next.Kill()
	s.await(mark, "the old agent steps in", func(l agenttest.Line) bool {
		return l.Is(event.RulesApplied) && l.Text("table") == "ip6tables-nft"
	})
	s.await(mark, "the dead agent's pins are removed", agenttest.Event(event.PinsRemoved))
	s.save("policies.yaml", policies(other1))
	s.check(t, []string{otherToDB}, []string{webToDB})
}

// The test changes all that a verdict depends on as fast as possible while connections open:
// policies of each tier, the CIDRs that hold an address, labels of pods and namespaces, addresses.
// After the agent has acknowledged a change, every packet gets the new verdict: the first
// packets of new connections and the packets of open connections.
func TestNoOldVerdictEscapesTheKernelOnPackets(t *testing.T) {
	const rounds, ports = 2, 3000
	s := newTestbed(t)
	s.start(kernelArgs()...)
	web := s.host("default/web")
	web9 := db("[{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{protocol: UDP, port: 9}]}]")
	web10 := strings.ReplaceAll(web9, "port: 9", "port: 10")
	anyPort := db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")
	s.save("policies.yaml", policies(web9))
	block := func(more4, more6 string) string {
		return policies(db(fmt.Sprintf("[{from: [{ipBlock: {cidr: 0.0.0.0/0%s}}, {ipBlock: {cidr: \"::/0\"%s}}]}]", more4, more6)))
	}
	ofTeam := db("[{from: [{namespaceSelector: {matchLabels: {team: a}}}]}]")
	cluster := func(team, without, instead string) string {
		return strings.Replace(s.cluster(without, instead), "{name: default}", "{name: default, labels: {team: "+team+"}}", 1)
	}
	s.save("cluster.yaml", cluster("a", "", ""))
	webIs := func(name, labels string) string { return s.pod("default/"+name, labels, 0, web.Addrs()...) }
	// Each entry has a change that denies the flow, and one that allows it again.
	changes := []struct{ name, file, deny, allow string }{
		{"policy", "policies.yaml", policies(db("[]")), policies(web9)},
		{"port", "policies.yaml", policies(web10), policies(anyPort)},
		{"any port", "policies.yaml", policies(web10), policies(anyPort)},
		{"except of a CIDR", "policies.yaml", block(fmt.Sprintf(", except: [%s/32]", web.IPv4), fmt.Sprintf(", except: [\"%s/128\"]", web.IPv6)), block("", "")},
		{"another CIDR", "policies.yaml", policies(db("[{from: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: \"2001:db8:ffff::/48\"}}]}]")), policies(web9)},
		{"Admin tier", "admin.yaml", clusterPolicies(toAll("{action: Deny, from: [" + anyPods + "]}")), ""},
		{"Baseline tier", "policies.yaml", clusterPolicies(ofAll("b", "Baseline", 1, "ingress: [{action: Deny, from: ["+anyPods+"]}]")), policies(ofTeam)},
		{"namespace", "cluster.yaml", cluster("b", "", ""), cluster("a", "", "")},
		{"policy of the source", "egress.yaml", policies("default/none: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress]}"), ""},
		{"policy of the source's label", "policies.yaml", policies(db("[]")), policies(anyPort)},
		{"label", "cluster.yaml", cluster("a", "default/web", webIs("web", "role: backend")), cluster("a", "", "")},
		{"address", "cluster.yaml", cluster("a", "default/web", webIs("new", "role: new")), cluster("a", "", "")},
	}
	for i, f := range families {
		t.Run(f.name, func(t *testing.T) {
			pr := s.newProber(t, i == 1)
			e := newStagedSender(t, pr, ports, 2*rounds*len(changes)+2)
			for range rounds {
				for _, c := range changes {
					e.allowed()
					e.change(func() { s.save(c.file, c.deny) })
					e.denied(c.name)
					e.change(func() { s.save(c.file, c.allow) })
				}
			}
			e.allowed()
			e.end()
		})
	}
}

// cluster returns the testbed's manifests with two changes: the pod whose name is in the
// parameter "without" is missing, and the text in the parameter "instead" is added.
func (s *testbed) cluster(without, instead string) string {
	text := testbedNamespaces + instead
	for _, p := range testbedPods {
		if p.name != without {
			text += s.pod(p.name, p.labels, p.node, s.hosts[p.name].Addrs()...)
		}
	}
	return text
}

// stagedSender sends datagrams from web to db. Each datagram contains the stage in which it was
// sent. Its source port is random, so that most datagrams begin a connection.
type stagedSender struct {
	*prober
	t        *testing.T
	gate     sync.RWMutex // read-locked by a sender while it sends; write-locked to change the stage
	stage    int          // current stage; 0 while a change is made, when any verdict is right
	next     int
	denies   map[int]string
	sent     []atomic.Int64
	received []atomic.Int64
	stop     atomic.Bool
	cancel   context.CancelFunc
	wait     sync.WaitGroup
}

func newStagedSender(t *testing.T, pr *prober, ports, stages int) *stagedSender {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	e := &stagedSender{prober: pr, t: t, denies: map[int]string{}, sent: make([]atomic.Int64, stages), received: make([]atomic.Int64, stages), cancel: cancel}
	for sender := range 2 {
		random := rand.New(rand.NewPCG(uint64(sender), 1))
		fd, to := e.socket()
		e.wait.Go(func() {
			for !e.stop.Load() {
				if err := e.send(fd, to, uint16(20000+random.IntN(ports))); err != nil {
					t.Error(err)
					break
				}
				time.Sleep(sendInterval)
			}
			_ = unix.Close(fd)
		})
	}
	e.wait.Go(func() {
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
				e.received[n].Add(1)
			}
		}
	})
	t.Cleanup(func() { e.stop.Store(true); cancel(); e.wait.Wait() })
	return e
}

// sendInterval is the pause of a sender after each datagram. It is long enough for the sniffer
// to keep up.
const sendInterval = 200 * time.Microsecond

// socket opens a raw socket in the namespace of web. lab.Host.Send opens one for each packet,
// which is too slow here.
func (e *stagedSender) socket() (fd int, to unix.Sockaddr) {
	e.t.Helper()
	db := e.host("default/db")
	family := unix.AF_INET
	to = &unix.SockaddrInet4{Addr: db.IPv4.As4()}
	if e.v6 {
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: db.IPv6.As16()}
	}
	err := e.host("default/web").Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		e.t.Fatal(err)
	}
	return fd, to
}

func (e *stagedSender) send(fd int, to unix.Sockaddr, port uint16) error {
	e.gate.RLock()
	defer e.gate.RUnlock()
	udp := &layers.UDP{SrcPort: layers.UDPPort(port), DstPort: 9}
	err := unix.Sendto(fd, e.packet(layers.IPProtocolUDP, udp, gopacket.Payload(fmt.Sprintf("stage %d.", e.stage))), 0, to)
	if err == nil {
		e.sent[e.stage].Add(1)
	}
	return err
}

func (e *stagedSender) set(stage int) {
	e.gate.Lock()
	defer e.gate.Unlock()
	e.stage = stage
}

// change calls f, which makes a change, while datagrams are sent.
func (e *stagedSender) change(f func()) {
	e.set(0)
	f()
}

// allowed begins a stage in which datagrams are allowed, and waits until some datagrams arrive.
func (e *stagedSender) allowed() {
	e.next++
	e.set(e.next)
	e.await("receive", &e.received[e.next])
}

// denied begins a stage in which no datagram may arrive, and waits until some datagrams were
// sent.
func (e *stagedSender) denied(why string) {
	e.next++
	e.denies[e.next] = why
	e.set(e.next)
	e.await("send", &e.sent[e.next])
}

// await waits until n, a count of datagrams, is at least 200.
func (e *stagedSender) await(what string, n *atomic.Int64) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), waitTimeout)
	defer cancel()
	for n.Load() < 200 {
		if ctx.Err() != nil {
			e.t.Fatalf("%s: %d datagrams only in stage %d", what, n.Load(), e.next)
		}
		time.Sleep(time.Millisecond)
	}
}

// end stops the senders and checks that no datagram of a denied stage has arrived. Call it
// after allowed(), which returns when datagrams of its own stage have arrived. By then, every
// datagram of an earlier stage has arrived or was dropped.
func (e *stagedSender) end() {
	e.t.Helper()
	e.stop.Store(true)
	e.cancel()
	e.wait.Wait()
	var sent int64
	for stage, why := range e.denies {
		sent += e.sent[stage].Load()
		if n := e.received[stage].Load(); n > 0 {
			e.t.Errorf("%s, stage %d: %d of %d datagrams passed that were sent while the change denied them", why, stage, n, e.sent[stage].Load())
		}
	}
	e.t.Logf("%d changes; %d datagrams sent while denied, none passed", len(e.denies), sent)
}

// If a policy gives all ports of a pod the same verdict, one queued packet suffices for a port
// scan: the kernel decides about the packets to all other ports.
func TestScanOfPortsIsNotQueued(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(db("[{from: [{podSelector: {matchLabels: {role: frontend}}}]}]")))
	s.start(kernelArgs()...)
	s.check(t, []string{webToDB}, []string{otherToDB})
	s.checkNotQueued(t, "a scan", func() {
		for port := range uint16(50) {
			for _, f := range families {
				to := netip.AddrPortFrom(f.addr(s.host("default/db")), 7000+port)
				if r := s.host("default/web").Connect(t.Context(), "tcp", to, waitTimeout); r.Outcome != lab.Refused {
					t.Fatalf("from the allowed pod to a closed port: %s, %v", r.Outcome, r.Err)
				}
				if r := s.host("default/other").Connect(t.Context(), "tcp", to, probeTimeout/100); r.Outcome != lab.TimedOut {
					t.Fatalf("from the denied pod: %s", r.Outcome)
				}
			}
		}
	})
}

// If a pod floods a destination to which its packets have been denied before, the kernel drops
// the packets without queueing them.
func TestFloodOfADeniedKeyIsNotQueued(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs()...)
	s.check(t, []string{webToDB}, []string{otherToDB})
	s.checkNotQueued(t, "a flood", func() {
		for range 50 {
			for _, f := range families {
				ctx, cancel := context.WithTimeout(t.Context(), probeTimeout/100)
				r := s.host("default/other").Connect(ctx, "tcp", netip.AddrPortFrom(f.addr(s.host("default/db")), 6379), probeTimeout/100)
				cancel()
				if r.Outcome == lab.Reached {
					t.Fatal("a denied packet was let through")
				}
			}
		}
	})
}
