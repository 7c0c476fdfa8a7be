//go:build linux

package main

import (
	"net/netip"
	"testing"
	"time"

	"sluice/bench/testbed/lab"
)

// replacePod ends a pod and starts a new pod with its addresses. No agent gets the new pod's
// manifest.
func (s *testbed) replacePod(t *testing.T, name string) *lab.Host {
	t.Helper()
	old := s.host(name)
	addrs := old.Addrs()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	h, err := s.Nodes[0].AddPod("new", addrs...)
	if err != nil {
		t.Fatal(err)
	}
	s.hosts["new"] = h
	s.serve(h)
	return h
}

// After the agent has ended, the kernel's flow cache applies a verdict about a pod of this
// node only to packets at that pod's interface. If a new pod gets the address, it has
// another interface, and --fail decides about its packets, because a policy may isolate the
// new pod. This holds whether the old pod had no policies or a rule allowed its traffic.
func TestAddressPassesOnWithoutAgentOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs("--on-exit", "keep", "--unattended", "0")...)
	others := []string{"default/web default/other tcp 80", "default/other default/web udp 53", "default/other outside tcp 80", "outside default/other tcp 8080", webToDB}
	toOdd := []string{"default/other bare/odd tcp 80", "outside bare/odd tcp 80", "bare/odd default/other tcp 80", "bare/odd outside udp 53"}
	s.check(t, append(toOdd, others...), nil)
	s.awaitNotQueued(t, func() { s.check(t, append(toOdd, others...), nil) })
	s.agent.Kill()
	s.check(t, append(toOdd, others...), nil)
	s.replacePod(t, "bare/odd")
	delete(s.hosts, "bare/odd")
	s.check(t, others, []string{"default/other new tcp 80", "outside new tcp 80", "new default/other tcp 80", "new outside udp 53"})
	// Also replace a pod whose traffic a rule allows.
	s.replacePod(t, "default/web")
	s.check(t, nil, []string{"new default/db tcp 6379"})
	// The node itself reaches the new pod, as the kubelet's probes must.
	s.check(t, []string{"node-1 new tcp 80"}, nil)
	s.start(kernelArgs()...)
	s.check(t, []string{"default/other outside tcp 80"}, nil)
}

// The kernel's flow cache cannot distinguish pods that share an interface. After the agent has
// ended, the cache applies its verdicts about such pods only for the time --unattended.
func TestSharedInterfaceWithoutAgentOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	// Add a second route to each address of the pod, so that its interface is ambiguous.
	other := s.host("default/web").RouterDevice()
	for i, addr := range s.host("bare/odd").Addrs() {
		family := []string{"-4", "-6"}[i]
		if err := s.Nodes[0].Run("ip", family, "route", "add", addr.String(), "dev", other, "metric", "4000"); err != nil {
			t.Fatal(err)
		}
	}
	const limit = 4 * time.Second
	s.start(kernelArgs("--on-exit", "keep", "--unattended", limit.String())...)
	toOdd, others := []string{"default/other bare/odd tcp 80", "bare/odd outside tcp 80"}, []string{"default/other outside tcp 80", webToDB}
	s.check(t, append(toOdd, others...), nil)
	time.Sleep(limit + limit/2) // longer than the limit, which must not apply while the agent runs
	s.awaitNotQueued(t, func() { s.check(t, append(toOdd, others...), nil) })
	s.agent.Kill()
	for _, addr := range s.host("bare/odd").Addrs() {
		open := func() bool {
			return s.host("default/other").Connect(t.Context(), "tcp", netip.AddrPortFrom(addr, 80), probeTimeout).Outcome == lab.Reached
		}
		for end := time.Now().Add(waitTimeout); open(); {
			if time.Now().After(end) {
				t.Fatalf("%s stays open after --unattended", addr)
			}
		}
	}
	s.check(t, others, toOdd)
}

// awaitNotQueued calls the function "what" repeatedly, until no packet is queued during a call.
// On a busy machine, one call may not be enough: a heartbeat of the agent may be late. Until the
// heartbeat comes, the kernel's flow cache decides no packets of pods that share an interface.
func (s *testbed) awaitNotQueued(t *testing.T, what func()) {
	t.Helper()
	for end := time.Now().Add(waitTimeout); ; {
		before := s.queued()
		what()
		now := s.queued()
		if now == before {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d packets are queued with an agent", now-before)
		}
	}
}
