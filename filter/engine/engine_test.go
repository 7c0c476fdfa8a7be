package engine_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/bench/testbed/cluster"
	"sluice/cache"
	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/packet"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
	"sluice/filter/queue"
)

var _ queue.Evaluator = (*engine.Evaluator)(nil)

func pod(name, addr string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: addr}}},
	}
}

func key(src, dst string, port uint16) filter.Key {
	return filter.NewKey(netip.MustParseAddr(src), netip.MustParseAddr(dst), filter.TCP, port)
}

func denyAll(namespace string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "deny"},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}},
	}
}

// datagram returns the IPv4 packet that opens a TCP connection with the key.
func datagram(k filter.Key) []byte {
	b := make([]byte, 40)
	b[0], b[9] = 0x45, byte(filter.TCP)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	src, dst := k.SrcAddr().As4(), k.DstAddr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[20:], 40000)
	binary.BigEndian.PutUint16(b[22:], k.Port)
	b[32], b[33] = 5<<4, 0x02
	return b
}

// seen is an Observer that records what it is called with.
type seen []string

func (s *seen) Observe(p packet.Packet, v filter.Verdict) {
	*s = append(*s, fmt.Sprintf("%v from %d: %v, %v", p.Key, p.SrcPort, v.Action, v.Reason))
}

func TestEvaluate(t *testing.T) {
	var published policy.Published
	var said seen
	e := engine.New(engine.Config{Published: &published, Observer: &said}, cache.NewFlows(16))
	defer e.Close()
	k := key("10.0.0.1", "10.0.0.2", 80)
	ask := func(data []byte, want filter.Action, line string) {
		t.Helper()
		said = nil
		e.Enter()
		if got, _ := e.Evaluate(data, filter.AtPostrouting); got != want || len(said) != 1 || said[0] != line {
			t.Errorf("%v, and observed %q; want %v and %q", got, said, want, line)
		}
		e.Exit()
	}
	const flow = "10.0.0.1 > 10.0.0.2 TCP 80 from 40000: "
	ask(datagram(k), filter.Deny, flow+"deny, not-synced")
	w := policy.NewStore()
	w.SetPod(kubepod.Read(pod("a", "10.0.0.1", nil)))
	s, _ := w.Commit()
	published.Publish(s)
	ask(datagram(k), filter.Allow, flow+"allow, not-isolated")
	ask(datagram(k)[:7], filter.Deny, ":: > :: 0 opaque from 0: deny, malformed")
	w.SetPolicy(netpol.Read(denyAll("default")))
	s, _ = w.Commit()
	published.Publish(s)
	ask(datagram(k), filter.Deny, flow+"deny, egress-denied")
}

// denyIngress returns a policy that denies all ingress to the pods of an app.
func denyIngress(app string) *networkingv1.NetworkPolicy {
	p := denyAll("default")
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	return p
}

// A packet that does not begin a connection passes only if both directions are allowed,
// because its sender may be the end that accepted the connection.
func TestEvaluateMidStream(t *testing.T) {
	var published policy.Published
	var said seen
	e := engine.New(engine.Config{Published: &published, Observer: &said}, cache.NewFlows(16))
	defer e.Close()
	w := policy.NewStore()
	server, client := pod("server", "10.0.0.1", nil), pod("client", "10.0.0.2", nil)
	server.Labels, client.Labels = map[string]string{"app": "server"}, map[string]string{"app": "client"}
	w.SetPod(kubepod.Read(server))
	w.SetPod(kubepod.Read(client))
	w.SetPolicy(netpol.Read(denyIngress("server")))
	s, _ := w.Commit()
	published.Publish(s)
	const denied, out, in = "deny, mid-stream", "10.0.0.1", "10.0.0.2"
	for _, tt := range []struct {
		name     string
		src, dst string
		flags    byte
		want     string
	}{
		{"SYN", out, in, 0x02, "allow, not-isolated"},
		{"SYN with ECN bits and PSH", out, in, 0xca, "allow, not-isolated"},
		{"SYN+ACK", out, in, 0x12, denied},
		{"ACK", out, in, 0x10, denied},
		{"FIN+ACK", out, in, 0x11, denied},
		{"RST", out, in, 0x04, denied},
		{"SYN+RST", out, in, 0x06, denied},
		{"SYN+FIN", out, in, 0x03, denied},
		{"no flags", out, in, 0, denied},
		{"SYN the other way", in, out, 0x02, "deny, ingress-denied"},
		{"ACK the other way", in, out, 0x10, "deny, ingress-denied"},
		{"ACK to an address outside", out, "192.0.2.1", 0x10, denied},
		{"ACK of an open pod", in, "192.0.2.1", 0x10, "allow, not-isolated"},
	} {
		for range 3 { // the third verdict is from the flow cache
			said = nil
			data := datagram(key(tt.src, tt.dst, 40000))
			data[33] = tt.flags
			e.Enter()
			if action, _ := e.Evaluate(data, filter.AtPostrouting); len(said) != 1 || !strings.HasSuffix(said[0], ": "+tt.want) || !strings.HasPrefix(tt.want, action.String()) {
				t.Errorf("%s: %v, and observed %q; want %s", tt.name, action, said, tt.want)
			}
			e.Exit()
		}
	}
}

// Packets of pods that are not known are held, unless the verdict is the same for all pods.
func TestEvaluateHolds(t *testing.T) {
	w := policy.NewStore()
	w.SetPod(kubepod.Read(pod("free", "10.1.0.1", nil)))
	guarded := pod("guarded", "10.1.0.2", nil)
	guarded.Namespace = "guarded"
	w.SetPod(kubepod.Read(guarded))
	w.SetPolicy(netpol.Read(denyAll("guarded")))
	picky := pod("picky", "10.1.0.3", nil)
	picky.Namespace = "picky"
	w.SetPod(kubepod.Read(picky))
	only80 := denyAll("picky")
	port := intstr.FromInt32(80)
	ports := []networkingv1.NetworkPolicyPort{{Port: &port}}
	friends := []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"is": "friend"}}}}
	only80.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: friends, Ports: ports}}
	only80.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: friends, Ports: ports}}
	w.SetPolicy(netpol.Read(only80))
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")})
	w.SetNodeRanges("other", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	s, _ := w.Commit()
	var published policy.Published
	published.Publish(s)
	var said seen
	config := engine.Config{Published: &published, Observer: &said}
	const free, closed, choosy, local, remote, outside = "10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.9", "10.2.0.9", "192.0.2.1"
	tests := []struct {
		src, dst string
		want     filter.Action
		pending  string
		expired  string // the verdict after Expire, with the fail mode closed
	}{
		{free, outside, filter.Allow, "", ""},
		{outside, closed, filter.Deny, "", ""},
		{local, free, filter.Hold, local, "deny, pod-not-known"},
		{free, local, filter.Hold, local, "deny, pod-not-known"},
		{outside, local, filter.Hold, local, "deny, pod-not-known"},
		{remote, free, filter.Allow, "", ""}, // the remote pod's own node enforces its policies
		{free, remote, filter.Allow, "", ""},
		{remote, local, filter.Hold, local, "deny, pod-not-known"},
		{local, local, filter.Hold, local, "deny, pod-not-known"},
		// These verdicts are the same whichever pod turns out to have the address.
		{remote, closed, filter.Deny, "", ""},
		{closed, remote, filter.Deny, "", ""},
		{local, closed, filter.Deny, "", ""},
		{closed, local, filter.Deny, "", ""},
		// These verdicts depend on the labels of the pod.
		{remote, choosy, filter.Hold, remote, "deny, ingress-denied"},
		{choosy, remote, filter.Hold, remote, "deny, egress-denied"},
		{local, choosy, filter.Hold, local, "deny, ingress-denied"},
		{choosy, local, filter.Hold, local, "deny, egress-denied"},
	}
	for _, open := range []bool{false, true} {
		config.FailOpen = open
		e := engine.New(config, cache.NewFlows(16))
		e.Enter()
		for _, ends := range [][2]string{{remote, choosy}, {choosy, local}} {
			if action, _ := e.Evaluate(datagram(key(ends[0], ends[1], 81)), filter.AtPostrouting); action != filter.Deny {
				t.Errorf("%s > %s, to a port that no rule names: %v", ends[0], ends[1], action)
			}
		}
		for _, tt := range tests {
			said = nil
			data := datagram(key(tt.src, tt.dst, 80))
			action, pending := e.Evaluate(data, filter.AtPostrouting)
			if action != tt.want || pending.IsValid() != (tt.pending != "") || pending.IsValid() && pending.String() != tt.pending {
				t.Errorf("%s > %s: %v for %v, want %v for %q", tt.src, tt.dst, action, pending, tt.want, tt.pending)
			}
			if tt.pending == "" {
				continue
			}
			if len(said) > 0 {
				t.Errorf("%s > %s: the observer got a packet that is held: %q", tt.src, tt.dst, said)
			}
			want, action := tt.expired, e.Expire(data, filter.AtPostrouting, true)
			if open && tt.pending == local {
				want = "allow, pod-not-known"
			}
			if len(said) != 1 || !strings.HasSuffix(said[0], want) || !strings.HasPrefix(want, action.String()) {
				t.Errorf("%s > %s expired: %v, and observed %q; want %s", tt.src, tt.dst, action, said, want)
			}
		}
		e.Close()
	}
}

// Synchronize returns only when the kernel has applied every verdict of the older snapshot.
func TestSynchronizeWaitsForVerdicts(t *testing.T) {
	var published policy.Published
	e := engine.New(engine.Config{Published: &published}, cache.NewFlows(16))
	w := policy.NewStore()
	s, _ := w.Commit()
	published.Publish(s)
	data := datagram(key("10.0.0.1", "10.0.0.2", 80))
	e.Enter()
	e.Evaluate(data, filter.AtPostrouting)
	e.Evaluate(data, filter.AtPostrouting)
	next, _ := w.Commit()
	published.Publish(next)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	if err := published.Synchronize(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Synchronize returned within a read section: %v", err)
	}
	e.Exit()
	e.Exit() // a second time, as when a worker is restarted
	if err := published.Synchronize(t.Context()); err != nil {
		t.Error(err)
	}
	e.Enter()
	e.Evaluate(data, filter.AtPostrouting)
	e.Close()
	if err := published.Synchronize(t.Context()); err != nil {
		t.Errorf("Synchronize waits for an evaluator that is closed: %v", err)
	}
}

// BenchmarkEvaluate measures the path of a packet from its bytes to its verdict: decoding
// plus a cache hit, and decoding plus a miss. As in the agent, allowed flows are tracked
// for the sweeps. On one core of an AMD EPYC, a hit takes 140 ns at each size; the lookup
// and decoding each take a little more than a quarter of that. A miss, which is measured
// without a cache, takes 260 to 600 ns.
func BenchmarkEvaluate(b *testing.B) {
	for _, o := range []cluster.Options{
		{Pods: 100, Policies: 10, Namespaces: 1},
		{Pods: 1000, Policies: 100, Namespaces: 1},
		{Pods: 10000, Policies: 1000, Namespaces: 1},
		{Pods: 10000, Policies: 1000, Namespaces: 100},
		{Pods: 100000, Policies: 10000, Namespaces: 1000},
	} {
		w := policy.NewStore()
		c := cluster.New(1, o)
		c.Fill(w)
		s, _ := w.Commit()
		var published policy.Published
		published.Publish(s)
		packets := make([][]byte, 0, 4096)
		for _, k := range c.Keys(2, cap(packets)) {
			if k.Src != k.Dst { // a verdict about a pod and itself is not cached
				packets = append(packets, datagram(k))
			}
		}
		for name, size := range map[string]int{"hit": cache.DefaultSize, "miss": 0} {
			b.Run(fmt.Sprintf("pods=%d/policies=%d/namespaces=%d/%s", o.Pods, o.Policies, o.Namespaces, name), func(b *testing.B) {
				e := engine.New(engine.Config{Published: &published, Tracker: conntrack.NewTrackedFlows()}, cache.NewFlows(size))
				defer e.Close()
				e.Enter()
				for range 2 {
					for _, p := range packets {
						e.Evaluate(p, filter.AtPostrouting)
					}
				}
				e.Exit()
				before := e.Stats()
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					e.Enter()
					e.Evaluate(packets[i%len(packets)], filter.AtPostrouting)
					e.Exit()
				}
				if now := e.Stats(); name == "hit" && now.Misses != before.Misses {
					b.Errorf("%d of %d were not hits", now.Misses-before.Misses, b.N)
				}
			})
		}
	}
}

// BenchmarkEvaluateBesidePlatform measures misses, like BenchmarkEvaluate, without and with 100
// ClusterNetworkPolicies of 25 rules. The flows are random, so that the processor's caches hold
// neither flows nor pods. Flows are not tracked: tracking takes longer than a decision, and
// would be rarer with the ClusterNetworkPolicies, which deny most flows.
func BenchmarkEvaluateBesidePlatform(b *testing.B) {
	c := cluster.New(1, cluster.Options{Pods: 10_000, Policies: 1_000, Namespaces: 200})
	var packets [][]byte
	for _, k := range c.Keys(1, 1<<16) {
		packets = append(packets, datagram(k))
	}
	for _, policies := range []int{0, 100} {
		w := policy.NewStore()
		c.Fill(w)
		for _, o := range cluster.Platform(policies, 25) {
			w.SetPolicy(clusterpolicy.Read(o))
		}
		s, _ := w.Commit()
		var published policy.Published
		published.Publish(s)
		b.Run(fmt.Sprint(policies), func(b *testing.B) {
			e := engine.New(engine.Config{Published: &published}, cache.NewFlows(0))
			defer e.Close()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				e.Enter()
				e.Evaluate(packets[i%len(packets)], filter.AtPostrouting)
				e.Exit()
			}
		})
	}
}
