package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
)

// The tests of this file and its neighbours send real packets through the real
// command: pods in network namespaces, a node with iptables and NFQUEUE, and
// sluice run on it, fed from a folder.

const (
	// patience bounds the wait for what must come. It is for hangs alone: on a busy
	// machine everything takes its time.
	patience = 2 * time.Minute
	// silence is after how long without an answer a probe counts as denied. One
	// that is allowed takes a few milliseconds; on a loaded machine, more.
	silence = 500 * time.Millisecond
)

// site is a lab with an agent on node-1 and the pods of the tests. Those of
// namespaces default, mine and bare run on node-1, far on node-2 where there is
// no agent.
type site struct {
	*lab.Lab
	t     testing.TB
	agent *agenttest.Agent
	dir   string
	// socket is where the agent answers: two that have the same take over from
	// each other.
	socket string
	// program is the sluice to run; empty for the one under test.
	program string
	hosts   map[string]*lab.Host // by "namespace/name"; "outside", "node-1", "node-2"
}

// sitePods are the pods, with their labels and the node that they run on.
var sitePods = []struct {
	name   string
	labels string
	node   int
}{
	{"default/db", "role: db", 0},
	{"default/web", "role: frontend", 0},
	{"default/other", "role: backend, tier: x", 0},
	{"mine/cart", "role: frontend", 0},
	{"bare/odd", "", 0},
	{"default/far", "role: frontend, zone: far", 1},
}

// sitePorts are what every pod and outside host serves.
var sitePorts = map[string][]uint16{"tcp": {80, 6379, 8080}, "udp": {53}}

// siteNamespaces are the namespaces that have an object; bare has none.
const siteNamespaces = `
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: mine, labels: {project: myproject}}}
`

func newSite(t testing.TB) *site {
	t.Helper()
	return newSiteIn(t, lab.Options{Nodes: 2})
}

// newSiteIn is newSite in another lab, of two nodes.
func newSiteIn(t testing.TB, opts lab.Options) *site {
	t.Helper()
	l := lab.ForTest(t, opts)
	s := &site{Lab: l, t: t, dir: t.TempDir(), socket: filepath.Join(t.TempDir(), "s"), hosts: map[string]*lab.Host{
		"outside": l.Outside, "node-1": l.Nodes[0].Host, "node-2": l.Nodes[1].Host,
	}}
	for _, p := range sitePods {
		_, name, _ := strings.Cut(p.name, "/")
		h, err := l.Nodes[p.node].AddPod(name)
		if err != nil {
			t.Fatal(err)
		}
		s.hosts[p.name] = h
		s.serve(h)
	}
	s.serve(l.Outside)
	s.write("cluster.yaml", siteNamespaces+s.pods())
	return s
}

func (s *site) serve(h *lab.Host) {
	s.t.Helper()
	for network, ports := range sitePorts {
		for _, port := range ports {
			if err := h.Serve(network, port); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// pods are the manifests of all pods.
func (s *site) pods() string {
	var b strings.Builder
	for _, p := range sitePods {
		b.WriteString(s.pod(p.name, p.labels, p.node, s.hosts[p.name].Addrs()...))
	}
	return b.String()
}

// pod is a manifest. It declares port 6379 under the name redis.
func (s *site) pod(name, labels string, node int, addrs ...netip.Addr) string {
	ns, name, _ := strings.Cut(name, "/")
	var ips []string
	for _, a := range addrs {
		ips = append(ips, fmt.Sprintf("{ip: %q}", a))
	}
	host := s.Nodes[node].Host
	return fmt.Sprintf(`
---
{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s, labels: {%s}},
 spec: {containers: [{name: c, ports: [{name: redis, containerPort: 6379}]}]},
 status: {podIPs: [%s], hostIPs: [{ip: %q}, {ip: %q}]}}
`, ns, name, labels, strings.Join(ips, ", "), host.IPv4, host.IPv6)
}

// write writes a file of the folder before the agent is started.
func (s *site) write(name, text string) {
	s.t.Helper()
	if err := agenttest.WriteFile(s.dir, name, text); err != nil {
		s.t.Fatal(err)
	}
}

// start starts the agent and ends it with the test.
func (s *site) start(args ...string) {
	s.t.Helper()
	s.agent = s.another(args...)
}

// another starts an agent, which takes over if there is one, and ends it with the
// test.
func (s *site) another(args ...string) *agenttest.Agent {
	s.t.Helper()
	program := s.program
	if program == "" {
		var err error
		if program, err = exec.LookPath("sluice"); err != nil {
			s.t.Fatalf("find the command under test: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	args = append([]string{"--socket", s.socket}, args...)
	// So that all tests can be made with other flags too, such as --kernel-cache off.
	args = append(args, strings.Fields(os.Getenv("SLUICE_TEST_ARGS"))...)
	a, err := agenttest.Start(ctx, agenttest.Options{Sluice: program, Node: s.Nodes[0], Dir: s.dir, Args: args})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(a.Kill)
	return a
}

// stop ends the agent in order.
func (s *site) stop() {
	s.t.Helper()
	if err := s.agent.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

// save saves a file and returns when it is in force.
func (s *site) save(name, text string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	if _, err := s.agent.Save(ctx, name, text); err != nil {
		s.t.Fatal(err)
	}
}

// await waits for a line of the log after a mark.
func (s *site) await(mark int, what string, match func(agenttest.Line) bool) agenttest.Line {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	l, err := s.agent.Await(ctx, mark, match)
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
	return l
}

// attempt is one attempt to talk, as the tests write it:
// "default/web default/db tcp 6379".
type attempt struct {
	from, to string // pods, hosts, or for to an address
	network  string
	port     uint16
}

func parseAttempt(t *testing.T, text string) attempt {
	t.Helper()
	f := strings.Fields(text)
	if len(f) != 4 {
		t.Fatalf("probe %q: write from, to, tcp or udp, and port", text)
	}
	port, err := strconv.ParseUint(f[3], 10, 16)
	if err != nil {
		t.Fatalf("probe %q: %v", text, err)
	}
	return attempt{f[0], f[1], f[2], uint16(port)}
}

// host is who has a name.
func (s *site) host(name string) *lab.Host {
	s.t.Helper()
	h := s.hosts[name]
	if h == nil {
		s.t.Fatalf("there is no %s in the lab", name)
	}
	return h
}

// targets are the addresses of both families that a name stands for.
func (s *site) targets(name string) []netip.Addr {
	s.t.Helper()
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}
	}
	return s.host(name).Addrs()
}

// check makes all probes at once, each over both families, and compares what
// comes of them with what the policies promise. A probe that should pass and did
// not is made once more with patience, since a busy machine could look like a denial.
func (s *site) check(t *testing.T, allow, deny []string) {
	t.Helper()
	var wait sync.WaitGroup
	try := func(text string, want bool) {
		p := parseAttempt(t, text)
		from := s.host(p.from)
		for _, addr := range s.targets(p.to) {
			to := netip.AddrPortFrom(addr, p.port)
			wait.Go(func() {
				r := from.Connect(t.Context(), p.network, to, silence)
				if want && r.Outcome == lab.TimedOut {
					r = from.Connect(t.Context(), p.network, to, patience)
				}
				if reached := r.Outcome == lab.Reached; reached != want {
					t.Errorf("%s (%s): %s, want allowed: %v", text, addr, r.Outcome, want)
				}
			})
		}
	}
	for _, text := range allow {
		try(text, true)
	}
	for _, text := range deny {
		try(text, false)
	}
	wait.Wait()
}

// policies makes manifests of specs, each "namespace/name: {spec}" in YAML flow.
func policies(specs ...string) string {
	var b strings.Builder
	for _, text := range specs {
		name, spec, _ := strings.Cut(text, ": ")
		ns, name, _ := strings.Cut(name, "/")
		fmt.Fprintf(&b, "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: %s, name: %s}, spec: %s}\n", ns, name, spec)
	}
	return b.String()
}

// TestPacketsNeedRoot says why the tests of packets are left out, where they are.
func TestPacketsNeedRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the tests that send packets are skipped: they need root, to make network namespaces")
	}
}
