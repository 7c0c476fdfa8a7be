//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/cluster"
	"sluice/bench/testbed/controlplane"
	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// clusterTestbed is a lab with a real API server on its node, and an agent that watches the
// server.
type clusterTestbed struct {
	*lab.Lab
	t      *testing.T
	server *controlplane.ControlPlane
	admin  *kubernetes.Clientset
	agent  *agenttest.Agent
	pods   map[string]*lab.Host
}

// newClusterTestbed starts everything except the agent: pods db, web and other in namespace
// default. It also creates the objects of 1,000 other pods, which have no traffic, and of
// 100 policies.
func newClusterTestbed(t *testing.T) *clusterTestbed {
	t.Helper()
	l := lab.ForTest(t, lab.Options{})
	s := &clusterTestbed{Lab: l, t: t, pods: make(map[string]*lab.Host), server: controlplane.ForTest(t, l.Nodes[0].Host)}
	var err error
	s.admin, err = s.server.Client(controlplane.Admin)
	s.must(err)
	s.must(controlplane.Grant(t.Context(), s.admin))
	n := l.Nodes[0]
	_, err = s.admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name},
		Spec:       corev1.NodeSpec{PodCIDR: n.Pods4.String(), PodCIDRs: []string{n.Pods4.String(), n.Pods6.String()}},
	}, metav1.CreateOptions{})
	s.must(err)
	for name, role := range map[string]string{"db": "db", "web": "frontend", "other": "backend"} {
		s.pods[name], err = l.AddPod(name)
		s.must(err)
		s.must(s.pods[name].Serve("tcp", 6379))
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"role": role}},
			Spec:       corev1.PodSpec{NodeName: n.Name, Containers: []corev1.Container{{Name: "main"}}},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, HostIP: n.IPv4.String(), PodIP: s.pods[name].IPv4.String()},
		}
		for _, a := range s.pods[name].Addrs() {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
		}
		for _, a := range n.Addrs() {
			p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: a.String()})
		}
		s.must(controlplane.CreatePod(t.Context(), s.admin, p))
	}
	s.must(controlplane.Fill(t.Context(), s.admin, cluster.New(1, cluster.Options{Pods: 1000, Policies: 100, Namespaces: 20})))
	return s
}

func (s *clusterTestbed) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// start starts the agent as a user with only the rights that it needs.
func (s *clusterTestbed) start() {
	s.t.Helper()
	program, err := exec.LookPath("sluice")
	s.must(err)
	kubeconfig, err := s.server.Kubeconfig(controlplane.Agent)
	s.must(err)
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	s.agent, err = agenttest.Start(ctx, agenttest.Options{Sluice: program, Node: s.Nodes[0], Args: []string{
		"--kubeconfig", kubeconfig, "--node-name", s.Nodes[0].Name, "--socket", filepath.Join(s.t.TempDir(), "s"),
	}})
	s.must(err)
	s.t.Cleanup(s.agent.Kill)
}

// isolate returns a policy that lets only pods with the given roles reach db, or no pod if
// there are no roles.
func isolate(name string, roles ...string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	p.Spec.PodSelector.MatchLabels = map[string]string{"role": "db"}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	for _, role := range roles {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			From: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": role}}}},
		})
	}
	return p
}

func (s *clusterTestbed) create(p *networkingv1.NetworkPolicy) {
	s.t.Helper()
	_, err := s.admin.NetworkingV1().NetworkPolicies(p.Namespace).Create(s.t.Context(), p, metav1.CreateOptions{})
	s.must(err)
}

func (s *clusterTestbed) remove(name string) {
	s.t.Helper()
	s.must(s.admin.NetworkingV1().NetworkPolicies("default").Delete(s.t.Context(), name, metav1.DeleteOptions{}))
}

// awaitOutcome waits until connections of a pod to db have the wanted outcome over both
// families.
func (s *clusterTestbed) awaitOutcome(from string, want lab.Outcome) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	for _, addr := range s.pods["db"].Addrs() {
		for {
			r := s.pods[from].Connect(ctx, "tcp", netip.AddrPortFrom(addr, 6379), probeTimeout)
			if r.Outcome == want {
				break
			}
			if ctx.Err() != nil {
				s.t.Fatalf("%s to db at %s: %s, want %s", from, addr, r.Outcome, want)
			}
		}
	}
}

// Policies that are written to a real API server take effect on real packets, and stay in
// force while the server is down.
func TestClusterPackets(t *testing.T) {
	s := newClusterTestbed(t)
	s.create(isolate("access-db", "frontend"))
	s.start()
	s.awaitOutcome("web", lab.Reached)
	s.awaitOutcome("other", lab.TimedOut)

	s.create(isolate("access-db-2", "backend"))
	s.awaitOutcome("other", lab.Reached)
	s.remove("access-db-2")
	s.awaitOutcome("other", lab.TimedOut)

	s.must(s.server.StopServer(syscall.SIGKILL))
	s.awaitOutcome("other", lab.TimedOut)
	s.awaitOutcome("web", lab.Reached)
	s.must(s.server.StartServer(t.Context()))
	s.remove("access-db")
	s.awaitOutcome("other", lab.Reached)
	s.must(s.agent.Stop())
}

// stream sends packets from one pod to another. Each packet has a new socket, and so belongs
// to a new connection.
type stream struct {
	mu      sync.Mutex
	sent    []time.Time // when each packet was sent, by its number
	arrived []bool      // whether each packet has arrived, by its number
	changed chan struct{}
}

// pace is the interval between packets, and therefore the resolution of the measured times.
const pace = time.Millisecond

// newStream sends packets from one pod to another until the test ends.
func (s *clusterTestbed) newStream(from, to *lab.Host) *stream {
	s.t.Helper()
	st := &stream{changed: make(chan struct{}, 1)}
	listener, err := to.ListenUDP(netip.AddrPortFrom(to.IPv4, 9999))
	s.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		buf := make([]byte, 64)
		for {
			n, err := listener.Read(buf)
			if err != nil {
				return
			}
			if n == 8 {
				st.receive(int(binary.BigEndian.Uint64(buf)))
			}
		}
	})
	wait.Go(func() {
		err := from.Do(func() error { return st.send(ctx, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to.IPv4, 9999))) })
		if err != nil {
			s.t.Error(err)
		}
	})
	s.t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		wait.Wait()
	})
	return st
}

func (st *stream) send(ctx context.Context, to *net.UDPAddr) error {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for number := uint64(0); ; number++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c, err := net.DialUDP("udp", nil, to) // opens the socket in the pod's namespace, which this thread has entered
		if err != nil {
			return fmt.Errorf("open a socket: %w", err)
		}
		st.mu.Lock()
		st.sent, st.arrived = append(st.sent, time.Now()), append(st.arrived, false)
		st.mu.Unlock()
		_, err = c.Write(binary.BigEndian.AppendUint64(nil, number))
		_ = c.Close()
		if err != nil {
			return fmt.Errorf("send a packet: %w", err)
		}
		st.notify()
	}
}

func (st *stream) receive(number int) {
	st.mu.Lock()
	st.arrived[number] = true
	st.mu.Unlock()
	st.notify()
}

func (st *stream) notify() {
	select {
	case st.changed <- struct{}{}:
	default:
	}
}

// next returns the number of the next packet.
func (st *stream) next() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.sent)
}

// gaps returns the times between consecutive packets. A change can be measured only to within
// such a gap.
func (st *stream) gaps() (all []time.Duration) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for i := 1; i < len(st.sent); i++ {
		all = append(all, st.sent[i].Sub(st.sent[i-1]))
	}
	return all
}

// A change is complete when stablePackets consecutive packets have the same outcome, and the
// last of them was sent at least transitTime ago.
const (
	stablePackets = 20
	transitTime   = 10 * time.Millisecond
)

// awaitChange waits until the change to the wanted outcome is complete: packets arrive, or do
// not arrive. It ignores packets with lower numbers than the given one, and returns the
// time at which the first packet with the new outcome was sent.
func (st *stream) awaitChange(ctx context.Context, from int, arrive bool) (time.Time, error) {
	for {
		if at, ok := st.changedAt(from, arrive); ok {
			return at, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("wait until packets arrive: %v: %w", arrive, ctx.Err())
		case <-st.changed:
		}
	}
}

func (st *stream) changedAt(from int, arrive bool) (time.Time, bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	old := len(st.sent)
	for old > from && time.Since(st.sent[old-1]) < transitTime {
		old--
	}
	first := old
	for first > from && st.arrived[first-1] == arrive {
		first--
	}
	if old-first < stablePackets {
		return time.Time{}, false
	}
	// A change from denied to allowed is timed by the first packet that arrives, even if a
	// later packet is dropped. The workers answer in parallel, so when one uses the new
	// snapshot, another may still drop a packet by the old one.
	if arrive {
		first = from + slices.Index(st.arrived[from:], true)
	}
	return st.sent[first], true
}

// TestClusterPacketLatency prints the time from a write to the API until the first packet is
// denied, and until the first is allowed, in a cluster with 1,000 other pods and 100 other
// policies.
func TestClusterPacketLatency(t *testing.T) {
	const changes = 500
	s := newClusterTestbed(t)
	s.start()
	// Each allowed packet leaves a conntrack entry. With a timeout of one second, there are at
	// most about 1,000 entries at a time; with the default timeout, entries would accumulate.
	s.must(s.Nodes[0].Do(func() error {
		return os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", []byte("1"), 0o644)
	}))
	st := s.newStream(s.pods["web"], s.pods["db"])
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	times := make(map[string][]time.Duration)
	measure := func(what string, arrive bool, write func()) {
		from, mark, before := st.next(), s.agent.Mark(), time.Now()
		write()
		after := time.Now()
		at, err := st.awaitChange(ctx, from, arrive)
		s.must(err)
		line, err := s.agent.Await(ctx, mark, agenttest.Event(event.Published))
		s.must(err)
		// Wait until the agent is idle before the next change, because an agent in a real
		// cluster is usually idle when a change arrives.
		_, err = s.agent.Await(ctx, mark, agenttest.Followed(line))
		s.must(err)
		times[what+", from the request"] = append(times[what+", from the request"], at.Sub(before))
		times[what+", from the answer"] = append(times[what+", from the answer"], at.Sub(after))
		times[what+", until the agent logs it, from the answer"] = append(times[what+", until the agent logs it, from the answer"], line.Time().Sub(after))
	}
	if _, err := st.awaitChange(ctx, 0, true); err != nil {
		t.Fatal(err)
	}
	for range changes {
		measure("first packet denied", false, func() { s.create(isolate("closed")) })
		measure("first packet allowed", true, func() { s.remove("closed") })
	}
	times["(one packet to the next)"] = st.gaps()
	fmt.Printf("%d policies created and deleted, with 1,000 pods and 100 policies beside; from the API write\n", changes)
	fmt.Printf("  %-66s %10s %10s %10s\n", "until", "p50", "p99", "max")
	for _, what := range slices.Sorted(maps.Keys(times)) {
		list := times[what]
		slices.Sort(list)
		ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
		fmt.Printf("  %-66s %10s %10s %10s\n", what, ms(list[len(list)/2]), ms(list[len(list)*99/100]), ms(list[len(list)-1]))
	}
	s.must(s.agent.Stop())
}
