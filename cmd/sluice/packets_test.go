//go:build linux

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

// The tests in *_packets_test.go send real packets through the real command: pods in
// network namespaces, a node with iptables and NFQUEUE, and sluice run on the node with a
// directory of manifests.

const (
	// waitTimeout bounds the wait for events that must happen. It is long because a test
	// should fail on a hang, but not on a busy machine.
	waitTimeout = 2 * time.Minute
	// probeTimeout bounds the wait for the answer to a probe. A probe without an answer
	// counts as denied. The answer to an allowed probe takes a few milliseconds, or more on a
	// busy machine.
	probeTimeout = 500 * time.Millisecond
)

// testbed is a lab with an agent on node-1 and the pods of the tests. The pod "default/far"
// runs on node-2, which has no agent; all others run on node-1.
type testbed struct {
	*lab.Lab
	t     testing.TB
	agent *agenttest.Agent
	dir   string
	// socket is the path of the agent's socket. Agents with the same path take over from
	// each other.
	socket string
	// program is the path of the sluice to run. If it is empty, agents run the sluice under test.
	program string
	bridged bool                 // the pods of a node are on a bridge
	hosts   map[string]*lab.Host // pods by "namespace/name", and "outside", "node-1" and "node-2"
}

// testbedPods are the pods of a testbed, with their labels and the index of their node.
var testbedPods = []struct {
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

// testbedPorts are the ports that every pod and the outside host serve.
var testbedPorts = map[string][]uint16{"tcp": {80, 6379, 8080}, "udp": {53}}

// testbedNamespaces are the objects of all namespaces except bare, which has no object.
const testbedNamespaces = `
{apiVersion: v1, kind: Namespace, metadata: {name: default}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: mine, labels: {project: myproject}}}
`

func newTestbed(t testing.TB) *testbed {
	t.Helper()
	return newTestbedWith(t, lab.Options{Nodes: 2})
}

// newTestbedWith builds a testbed in a lab with the given options, which must ask for two
// nodes.
func newTestbedWith(t testing.TB, opts lab.Options) *testbed {
	t.Helper()
	l := lab.ForTest(t, opts)
	s := &testbed{Lab: l, t: t, dir: t.TempDir(), socket: filepath.Join(t.TempDir(), "s"), hosts: map[string]*lab.Host{
		"outside": l.Outside, "node-1": l.Nodes[0].Host, "node-2": l.Nodes[1].Host,
	}}
	for _, p := range testbedPods {
		_, name, _ := strings.Cut(p.name, "/")
		h, err := l.Nodes[p.node].AddPod(name)
		if err != nil {
			t.Fatal(err)
		}
		s.hosts[p.name] = h
		s.serve(h)
	}
	s.serve(l.Outside)
	s.write("cluster.yaml", testbedNamespaces+s.pods())
	return s
}

func (s *testbed) serve(h *lab.Host) {
	s.t.Helper()
	for network, ports := range testbedPorts {
		for _, port := range ports {
			if err := h.Serve(network, port); err != nil {
				s.t.Fatal(err)
			}
		}
	}
}

// pods returns the manifests of all pods.
func (s *testbed) pods() string {
	var b strings.Builder
	for _, p := range testbedPods {
		b.WriteString(s.pod(p.name, p.labels, p.node, s.hosts[p.name].Addrs()...))
	}
	return b.String()
}

// pod returns the manifest of a pod that declares port 6379 with the name redis.
func (s *testbed) pod(name, labels string, node int, addrs ...netip.Addr) string {
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

// write writes a file of manifests. Unlike save, it does not wait until a running agent
// enforces the file.
func (s *testbed) write(name, text string) {
	s.t.Helper()
	if err := agenttest.WriteFile(s.dir, name, text); err != nil {
		s.t.Fatal(err)
	}
}

// start starts the agent, and kills it when the test ends.
func (s *testbed) start(args ...string) {
	s.t.Helper()
	s.agent = s.startAnother(args...)
}

// startAnother starts an agent, and kills it when the test ends. If an agent already runs,
// the new one takes over from it.
func (s *testbed) startAnother(args ...string) *agenttest.Agent {
	s.t.Helper()
	program := s.program
	if program == "" {
		var err error
		if program, err = exec.LookPath("sluice"); err != nil {
			s.t.Fatalf("find the command under test: %v", err)
		}
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	args = append([]string{"--socket", s.socket}, args...)
	// SLUICE_TEST_ARGS adds flags to all agents, such as --kernel-cache off.
	args = append(args, strings.Fields(os.Getenv("SLUICE_TEST_ARGS"))...)
	a, err := agenttest.Start(ctx, agenttest.Options{Sluice: program, Node: s.Nodes[0], Dir: s.dir, Args: args})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(a.Kill)
	return a
}

// stop ends the agent gracefully.
func (s *testbed) stop() {
	s.t.Helper()
	if err := s.agent.Stop(); err != nil {
		s.t.Fatal(err)
	}
}

// save writes a file of manifests and returns when the agent enforces it.
func (s *testbed) save(name, text string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	if _, err := s.agent.Save(ctx, name, text); err != nil {
		s.t.Fatal(err)
	}
}

// await waits for a line of the agent's log for which match() returns true, and considers only
// lines after the position "mark". If there is no such line in time, the test fails with a
// message that begins with the text in the parameter "what".
func (s *testbed) await(mark int, what string, match func(agenttest.Line) bool) agenttest.Line {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	l, err := s.agent.Await(ctx, mark, match)
	if err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
	return l
}

// attempt is one attempt to connect. The tests write it as
// "default/web default/db tcp 6379".
type attempt struct {
	from, to string // pods or hosts; to may be an address
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

// host returns the host with a name.
func (s *testbed) host(name string) *lab.Host {
	s.t.Helper()
	h := s.hosts[name]
	if h == nil {
		s.t.Fatalf("there is no %s in the lab", name)
	}
	return h
}

// targets returns the host's addresses of both families. If name is an address, targets
// returns only this address.
func (s *testbed) targets(name string) []netip.Addr {
	s.t.Helper()
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}
	}
	return s.host(name).Addrs()
}

// check makes all probes at once, each over both families, and compares the outcomes with
// the expected ones. If a probe that should pass times out, check repeats it with the longer
// waitTimeout: a probe that is slow on a busy machine is not a denial.
func (s *testbed) check(t *testing.T, allow, deny []string) {
	t.Helper()
	var wait sync.WaitGroup
	try := func(text string, want bool) {
		p := parseAttempt(t, text)
		from := s.host(p.from)
		for _, addr := range s.targets(p.to) {
			to := netip.AddrPortFrom(addr, p.port)
			wait.Go(func() {
				r := from.Connect(t.Context(), p.network, to, probeTimeout)
				if want && r.Outcome == lab.TimedOut {
					r = from.Connect(t.Context(), p.network, to, waitTimeout)
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

// policies returns manifests with the given specs, each written "namespace/name: {spec}" in
// YAML flow style.
func policies(specs ...string) string {
	var b strings.Builder
	for _, text := range specs {
		name, spec, _ := strings.Cut(text, ": ")
		ns, name, _ := strings.Cut(name, "/")
		fmt.Fprintf(&b, "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: %s, name: %s}, spec: %s}\n", ns, name, spec)
	}
	return b.String()
}

// TestPacketsNeedRoot shows the reason if the tests that send packets are skipped.
func TestPacketsNeedRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the tests that send packets are skipped: they need root, to make network namespaces")
	}
}
