package conntrack_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/cache"
	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

var (
	_ engine.FlowTracker = (*conntrack.TrackedFlows)(nil)

	nodePods = netip.MustParsePrefix("10.1.0.0/24")
	allPods  = netip.MustParsePrefix("10.1.0.0/16")
)

// history is a node on which connections begin and end while policies and pods change at
// random. It has an evaluator with its flow cache, and a model of the flow cache in the
// kernel, which allows connections that no policy concerns and repeats remembered verdicts.
type history struct {
	*fixture
	rand           *rand.Rand
	published      policy.Published
	evaluator      *engine.Evaluator
	tracked        *conntrack.TrackedFlows
	follower       *conntrack.Follower
	kernel         map[policy.IDKey]filter.Action
	kernelSnapshot *policy.Snapshot // the snapshot by which the kernel's flow cache answers
	changed        policy.Changes   // addresses that have changed since the last sweep
	live           []conntrack.Ref
	port           uint16
	addrs          []netip.Addr
	ranged         bool // the pod ranges are known
}

func (h *history) Remember(k policy.IDKey, action filter.Action) { h.kernel[k] = action }

func newHistory(t *testing.T, seed uint64, keys, moved, few int) *history {
	h := &history{fixture: newFixture(t), rand: rand.New(rand.NewPCG(seed, 1)), kernel: make(map[policy.IDKey]filter.Action)}
	h.ranged = h.rand.IntN(4) > 0
	failOpen := h.rand.IntN(4) == 0
	if h.ranged {
		h.store.SetPodRanges([]netip.Prefix{nodePods})
		h.store.SetNodeRanges("other", []netip.Prefix{allPods})
	}
	h.tracked = conntrack.NewTrackedFlows()
	h.tracked.Limit(keys, moved, few)
	h.follower = conntrack.Follow(h.Sweeper, h.tracked, nil)
	h.FailOpen = failOpen
	h.evaluator = engine.New(engine.Config{Published: &h.published, Memory: h, Tracker: h.tracked, Strangers: new(engine.Strangers), FailOpen: failOpen}, cache.NewFlows(8))
	for _, a := range []string{"10.1.0.1", "10.1.0.2", "10.1.0.3", "10.1.0.4", "10.1.1.1", "10.1.1.2", "10.1.1.3", "192.168.0.1", "192.168.0.2", "203.0.113.9"} {
		h.addrs = append(h.addrs, netip.MustParseAddr(a))
	}
	return h
}

// forgetful takes the verdicts away from the flow cache in the kernel.
func (h *history) forgetful() {
	h.evaluator.Close()
	h.evaluator = engine.New(engine.Config{Published: &h.published, Tracker: h.tracked, Strangers: new(engine.Strangers), FailOpen: h.FailOpen}, cache.NewFlows(8))
}

func (h *history) addr() netip.Addr { return h.addrs[h.rand.IntN(len(h.addrs))] }

// connect begins a connection, if it is allowed.
func (h *history) connect() {
	src, dst := h.addr(), h.addr()
	if src == node {
		return // the rules let packets of the node pass without a verdict
	}
	k := filter.NewKey(src, dst, filter.TCP, 80+uint16(h.rand.IntN(3)))
	h.port++
	port, midStream := h.port, h.rand.IntN(3) == 0
	if midStream {
		port = 80 + uint16(h.rand.IntN(3))
	}
	if h.allows(&k, port, midStream) {
		ref := h.table.Add(k, port, netip.AddrPortFrom(dst, k.Port), allowed)
		if midStream {
			h.table.SetMidStream(ref)
		}
		h.live = append(h.live, ref)
	}
}

// hangUp ends a random connection.
func (h *history) hangUp() {
	i := h.rand.IntN(len(h.live))
	h.table.Remove(h.live[i])
	h.live[i] = h.live[len(h.live)-1]
	h.live = h.live[:len(h.live)-1]
}

// unjudged reports whether the rules let a packet from src to the node pass without a verdict.
// The rules follow the same snapshot as the kernel's flow cache.
func (h *history) unjudged(src netip.Addr) bool {
	s := h.kernelSnapshot
	selected := slices.ContainsFunc(s.LocalRanges(), func(p netip.Prefix) bool { return p.Contains(src) })
	return !s.JudgesOwnNode() || !selected && s.Endpoint(src).EffectToNode() == policy.Open
}

// allows reports whether a connection is allowed, decided by the first of its packets that the
// node sees. If midStream is set, this packet is not the SYN.
func (h *history) allows(k *filter.Key, port uint16, midStream bool) bool {
	toNode := h.published.Snapshot().Endpoint(k.DstAddr()).IsNode()
	if toNode && h.unjudged(k.SrcAddr()) {
		return true
	}
	if action, ok := h.inKernel(k); ok && h.rand.IntN(4) > 0 && (action == filter.Deny || !midStream || h.openBack(k)) {
		return action == filter.Allow
	}
	hook := filter.AtPostrouting
	if toNode {
		hook = filter.AtInput
	}
	packet := syn(k, port)
	if midStream {
		packet[33] = 0x10
	}
	h.evaluator.Enter()
	action, pending := h.evaluator.Evaluate(packet, hook)
	if pending.IsValid() {
		action = h.evaluator.Expire(packet, hook, true)
	}
	h.evaluator.Exit()
	return action == filter.Allow
}

// inKernel returns the answer of the kernel's flow cache, and whether it has one.
func (h *history) inKernel(k *filter.Key) (filter.Action, bool) {
	src, srcPending := h.kernelSnapshot.Lookup(k.SrcAddr())
	dst, dstPending := h.kernelSnapshot.Lookup(k.DstAddr())
	if srcPending != policy.Known || dstPending != policy.Known {
		return 0, false
	}
	open := src.Effect(filter.Egress) == policy.Open && dst.Effect(filter.Ingress) == policy.Open
	if dst.IsNode() {
		open = src.EffectToNode() == policy.Open
	}
	if (src != nil || dst != nil) && (src.IsNode() || open) {
		return filter.Allow, true
	}
	if !policy.DecidedByIDs(k.SrcAddr(), k.DstAddr(), src, dst) {
		return filter.Allow, (src != nil || dst != nil) && (k.Src == k.Dst || src.EffectToNode() == policy.Open)
	}
	_, srcID := h.kernelSnapshot.Identify(k.SrcAddr())
	_, dstID := h.kernelSnapshot.Identify(k.DstAddr())
	for _, key := range []filter.Key{*k, k.Pair()} {
		if action, ok := h.kernel[policy.NewIDKey(&key, srcID, dstID)]; ok {
			return action, true
		}
	}
	return 0, false
}

// openBack reports whether policies leave the opposite direction of the flow open: one end is
// the node, or no policy isolates the source for ingress or the destination for egress. Only
// then may the kernel's flow cache allow a packet from the middle of a connection, because the
// connection may have been opened in the opposite direction.
func (h *history) openBack(k *filter.Key) bool {
	src, dst := h.kernelSnapshot.Endpoint(k.SrcAddr()), h.kernelSnapshot.Endpoint(k.DstAddr())
	return src.IsNode() || dst.IsNode() || src.Effect(filter.Ingress) == policy.Open && dst.Effect(filter.Egress) == policy.Open
}

// syn returns the first packet of a connection.
func syn(k *filter.Key, srcPort uint16) []byte {
	b := make([]byte, 40)
	b[0], b[9] = 0x45, byte(filter.TCP)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	src, dst := k.SrcAddr().As4(), k.DstAddr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[20:], srcPort)
	binary.BigEndian.PutUint16(b[22:], k.Port)
	b[32], b[33] = 5<<4, 0x02
	return b
}

// change makes one random change to the store.
func (h *history) change() {
	switch h.rand.IntN(11) {
	case 8:
		h.store.SetNamespace("default", h.label("team"))
		h.store.SetNamespaceDenial("default", oneOf(h, filter.DenialUnset, filter.DenialDrop, filter.DenialReject), nil)
	case 9:
		name := fmt.Sprint("n", h.rand.IntN(2))
		if h.rand.IntN(4) == 0 {
			h.store.DeleteNodeObject(name)
		} else {
			h.store.SetNodeObject(&policy.Node{Name: name, Labels: h.label("pool"), Addrs: []netip.Addr{oneOf(h, node, h.addr()), h.addr()}})
		}
	case 10:
		if h.rand.IntN(3) == 0 {
			h.store.DeletePolicy(policy.Ref{Kind: "ClusterNetworkPolicy", Name: fmt.Sprint("c", h.rand.IntN(2))})
		} else {
			h.store.SetPolicy(h.randomCluster())
		}
	case 0, 1:
		h.store.SetPod(kubepod.Read(h.randomPod()))
	case 2:
		h.store.DeletePod("default", fmt.Sprint("p", h.rand.IntN(7)))
	case 3:
		h.store.DeletePolicy(netpol.Ref("default", fmt.Sprint("n", h.rand.IntN(4))))
	case 4:
		if h.rand.IntN(4) == 0 {
			h.store.SetNode([]netip.Addr{node, h.addrs[len(h.addrs)-1-h.rand.IntN(2)]})
		} else {
			h.store.SetNode([]netip.Addr{node})
		}
	case 5:
		if h.rand.IntN(2) == 0 {
			h.store.DeletePolicy(policy.Ref{Kind: "Ordered", Namespace: "default", Name: fmt.Sprint("n", h.rand.IntN(4))})
		} else {
			h.store.SetPolicy(h.randomOrdered())
		}
	default:
		h.store.SetPolicy(netpol.Read(h.randomPolicy()))
	}
}

// randomOrdered returns a policy of the tier Admin or Baseline.
func (h *history) randomOrdered() *policy.Policy {
	p := netpol.Read(h.randomPolicy())
	p.Ref.Kind, p.Tier, p.Isolates = "Ordered", policy.Admin, [2]bool{}
	p.Digest, p.Source = [32]byte{}, policy.Source{}
	if h.rand.IntN(2) == 0 {
		p.Tier = policy.Baseline
	}
	for d := range p.Rules {
		for i := range p.Rules[d] {
			p.Rules[d][i].Action = []policy.Action{policy.Deny, policy.Accept, policy.Pass}[h.rand.IntN(3)]
		}
	}
	return p
}

// randomCluster returns a policy of the whole cluster.
func (h *history) randomCluster() *policy.Policy {
	p := h.randomOrdered()
	p.Ref = policy.Ref{Kind: "ClusterNetworkPolicy", Name: fmt.Sprint("c", h.rand.IntN(2))}
	p.Subject.Namespaces = oneOf(h, labels.Everything(), labels.SelectorFromSet(h.label("team")))
	p.Subject.Pods = oneOf(h, labels.Everything(), p.Subject.Pods)
	for d := range p.Rules {
		for i := range p.Rules[d] {
			for j := range p.Rules[d][i].Peers {
				peer := &p.Rules[d][i].Peers[j]
				switch {
				case d == int(filter.Egress) && h.rand.IntN(2) == 0:
					*peer = policy.Peer{Nodes: oneOf(h, labels.Everything(), labels.SelectorFromSet(h.label("pool")))}
				case peer.Block == nil:
					peer.Namespaces = labels.SelectorFromSet(h.label("team"))
				}
			}
		}
	}
	return p
}

// label returns labels of a namespace or a Node.
func (h *history) label(key string) labels.Set { return labels.Set{key: oneOf(h, "a", "b")} }

func oneOf[T any](h *history, from ...T) T { return from[h.rand.IntN(len(from))] }

func (h *history) randomPod() *corev1.Pod {
	p := pod(fmt.Sprint("p", h.rand.IntN(7)), h.addr())
	p.Labels["app"] = fmt.Sprint("a", h.rand.IntN(3))
	if h.rand.IntN(5) == 0 {
		p.Status.HostIPs = []corev1.HostIP{{IP: "203.0.113.9"}}
	}
	return p
}

func (h *history) randomPolicy() *networkingv1.NetworkPolicy {
	app := func() *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", h.rand.IntN(3))}}
	}
	var peers []networkingv1.NetworkPolicyPeer
	switch h.rand.IntN(4) {
	case 0:
		peers = []networkingv1.NetworkPolicyPeer{{PodSelector: app()}}
	case 1:
		peers = []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: netip.PrefixFrom(h.addr(), 24).Masked().String()}}}
	case 2:
		peers = []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}
	}
	tcp := corev1.ProtocolTCP
	var ports []networkingv1.NetworkPolicyPort
	for n := range int32(3) {
		if h.rand.IntN(2) == 0 {
			port := intstr.FromInt32(80 + n)
			ports = append(ports, networkingv1.NetworkPolicyPort{Protocol: &tcp, Port: &port})
		}
	}
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprint("n", h.rand.IntN(4))}}
	if with := oneOf(h, "", "drop", "reject"); with != "" {
		p.Annotations = map[string]string{policy.DenyWithAnnotation: with}
	}
	p.Spec.PodSelector = *app()
	if h.rand.IntN(2) == 0 {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: peers, Ports: ports}}
	} else {
		p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: peers, Ports: ports}}
	}
	return p
}

// publish commits the changes and publishes the snapshot, first to the evaluator and then to
// the model of the kernel's flow cache. In between, up to three connections begin: the
// evaluator decides them by the new snapshot, the model by the old one.
func (h *history) publish(scope conntrack.Scope) {
	s, changes := h.store.Commit()
	h.published.Publish(s)
	if h.kernelSnapshot == nil {
		h.kernelSnapshot = s
	}
	for range h.rand.IntN(4) {
		h.connect()
	}
	h.kernelSnapshot = s
	h.follower.Published(s, changes, scope)
	h.changed = append(h.changed, changes...)
}

// sweep sweeps, and reports whether the sweep read the connection table. It makes the first
// attempt fail at random.
func (h *history) sweep() (walked bool) {
	before, _ := h.table.Uses()
	defer func() { h.table.Interrupt = nil }()
	for try := 0; ; try++ {
		failing := try == 0 && h.rand.IntN(8) == 0
		h.table.Interrupt = func() bool { return failing }
		err := h.follower.Sweep(h.t.Context())
		if err == nil {
			after, _ := h.table.Uses()
			return after > before
		}
		if !failing {
			h.t.Fatal(err)
		}
	}
}

// Because of TrackedFlows, the Follower limits a sweep to some connections, or skips it. The test
// checks that no connection keeps a wrong mark: after each publication and sweep, a second
// sweeper evaluates all live connections of the changed addresses, and must find no wrong mark.
func TestNoSweepIsLeftOut(t *testing.T) {
	const histories = 400
	for _, limit := range []struct {
		keys, moved, few int
		kernel           bool // with the flow cache in the kernel
	}{{1000, 1000, 1000, true}, {1000, 1000, 1000, false}, {1000, 1000, 1, true}, {12, 1000, 1, true}, {1000, 3, 1, true}, {12, 5, 1, false}} {
		walked, spared, written := 0, 0, 0
		for seed := range histories {
			h := newHistory(t, uint64(seed), limit.keys, limit.moved, limit.few)
			if !limit.kernel {
				h.forgetful()
			}
			var wrong observed
			complete := conntrack.New(h.table, conntrack.DefaultMarks, nil, &wrong)
			complete.Local, complete.FailOpen = h.Local, h.FailOpen
			h.publish(conntrack.ScopeAll)
			h.sweep()
			for range 60 {
				for range h.rand.IntN(12) {
					h.connect()
				}
				for len(h.live) > 20 || len(h.live) > 0 && h.rand.IntN(3) == 0 {
					h.hangUp()
				}
				for range 1 + h.rand.IntN(2) {
					h.change()
					h.publish(conntrack.ScopeFlows)
					for range h.rand.IntN(3) {
						h.connect()
					}
				}
				before := h.follower.Total()
				if h.sweep() {
					walked++
				} else {
					spared++
				}
				written += h.follower.Total().Written() - before.Written()
				res, err := complete.Sweep(t.Context(), h.published.Snapshot(), h.changed, conntrack.ScopeAddresses)
				h.changed = nil
				if err != nil {
					t.Fatal(err)
				}
				if res.Written() > 0 {
					t.Fatalf("seed %d: of all connections, these had the wrong mark: %v", seed, wrong)
				}
			}
			if n := h.tracked.Keys(); n > limit.keys {
				t.Fatalf("seed %d: %d keys are tracked", seed, n)
			}
			h.evaluator.Close()
		}
		t.Logf("limits %+v: of %d sweeps, %d were unnecessary; %d marks were rewritten", limit, walked+spared, spared, written)
		if spared == 0 || walked == 0 || written == 0 {
			t.Errorf("limits %+v: swept %d times, spared %d, rewrote %d marks; want some of each", limit, walked, spared, written)
		}
	}
}

// quiet returns a history without random events. p0 has an address, a policy allows only
// TCP to its port 80, and k is the key of such a connection.
func quiet(t *testing.T) (h *history, k filter.Key) {
	h = newHistory(t, 1, 1000, 1000, 1000)
	h.ranged = true
	t.Cleanup(h.evaluator.Close)
	h.store.SetPod(kubepod.Read(pod("p0", h.addrs[4])))
	h.store.SetPolicy(netpol.Read(guard("p0", 80)))
	h.publishAndSweep(conntrack.ScopeAll)
	return h, filter.NewKey(outside, h.addrs[4], filter.TCP, 80)
}

// publishAndSweep publishes the changes, and sweeps.
func (h *history) publishAndSweep(scope conntrack.Scope) {
	h.t.Helper()
	s, changes := h.store.Commit()
	h.published.Publish(s)
	h.kernelSnapshot = s
	h.follower.Published(s, changes, scope)
	if err := h.follower.Sweep(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
}

// open begins a connection. It must be allowed by the evaluator or, if byKernel is set, by the
// kernel's flow cache.
func (h *history) open(k filter.Key, byKernel bool) conntrack.Ref {
	h.t.Helper()
	var action filter.Action
	if byKernel {
		action, _ = h.inKernel(&k)
	} else {
		h.evaluator.Enter()
		action, _ = h.evaluator.Evaluate(syn(&k, 1), filter.AtPostrouting)
		h.evaluator.Exit()
	}
	if action != filter.Allow {
		h.t.Fatalf("%v, by the kernel: %v, is not allowed", k, byKernel)
	}
	return h.table.Add(k, 1, netip.AddrPortFrom(k.DstAddr(), k.Port), allowed)
}

// revokes begins a connection that the evaluator or the kernel's flow cache allows, denies its key, and
// checks that the connection is revoked.
func (h *history) revokes(k filter.Key, byKernel bool) {
	h.t.Helper()
	ref := h.open(k, byKernel)
	h.store.SetPolicy(netpol.Read(guard("p0", 1)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, revoked)
}

// The address of pod p0 goes to p1 for some time, and then back to p0. From then on, the
// verdicts that the evaluator's flow cache remembers about p0 are valid again. The next sweep
// must find the connections that these verdicts allow, with and without a sweep while p1 had
// the address.
func TestAnAddressComesBack(t *testing.T) {
	for _, sweep := range []bool{true, false} {
		t.Run(fmt.Sprintf("sweep=%v", sweep), func(t *testing.T) { testComesBack(t, sweep) })
	}
}

func testComesBack(t *testing.T, sweep bool) {
	h, k := quiet(t)
	for range 2 { // the flow cache keeps the second verdict
		h.table.Remove(h.open(k, false))
	}
	later := pod("p1", h.addrs[4])
	later.CreationTimestamp = metav1.Now()
	h.store.SetPod(kubepod.Read(later))
	s, changes := h.store.Commit()
	h.follower.Published(s, changes, conntrack.ScopeAddresses)
	if e := s.Endpoint(h.addrs[4]); e.Name != "p1" {
		t.Fatalf("%v has the address", e)
	}
	if sweep { // a sweep that finds no live connection
		if err := h.follower.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	h.store.DeletePod("default", "p1")
	h.publishAndSweep(conntrack.ScopeFlows)
	h.revokes(k, false)
}

// A connection begins and ends after a publication and before the sweep that follows it. The
// kernel's flow cache then remembers a verdict of the new snapshot. Later sweeps must find
// the connections that this verdict allows.
func TestAVerdictBeforeTheSweep(t *testing.T) {
	h, k := quiet(t)
	h.store.SetPolicy(netpol.Read(guard("p0", 80, 81)))
	s, changes := h.store.Commit()
	h.published.Publish(s)
	h.kernelSnapshot = s
	h.follower.Published(s, changes, conntrack.ScopeAddresses)
	h.table.Remove(h.open(k, false))
	if err := h.follower.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.revokes(k, true)
}

// The kernel's flow cache allows connections between addresses that no worker has seen, because others
// with the same IDs have talked. A sweep must find these connections.
func TestNewcomersAreRevoked(t *testing.T) {
	h, k := quiet(t)
	h.store.SetPod(kubepod.Read(pod("p0", h.addrs[4])))
	twin := pod("p1", h.addrs[5])
	twin.Labels = pod("p0", h.addrs[4]).Labels
	h.store.SetPod(kubepod.Read(twin))
	h.store.SetPolicy(netpol.Read(guard("p0", 80)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.open(k, false)
	k.Src[15]++
	h.revokes(filter.NewKey(k.SrcAddr(), h.addrs[5], filter.TCP, 80), true)
}

// A change that alters no verdict needs no sweep, although both ends of the connection get new IDs, also if
// they share one ID. A later change still finds the connection.
func TestBothEndsMove(t *testing.T) {
	for name, from := range map[string]int{"a pod with the same ID": 5, "a client": 6} {
		t.Run(name, func(t *testing.T) {
			h, k := quiet(t)
			twin := pod("p0", h.addrs[5])
			twin.Name = "p1"
			h.store.SetPod(kubepod.Read(twin))
			h.store.SetPod(kubepod.Read(pod("p2", h.addrs[6])))
			h.store.SetPolicy(netpol.Read(guard("p2", 1)))
			h.publishAndSweep(conntrack.ScopeFlows)
			ref := h.open(filter.NewKey(h.addrs[from], k.DstAddr(), filter.TCP, 80), false)
			before, _ := h.table.Uses()
			for port := range int32(3) {
				h.store.SetPolicy(netpol.Read(guard("p0", 80, 100+port)))
				h.store.SetPolicy(netpol.Read(guard("p2", 100+port)))
				h.publishAndSweep(conntrack.ScopeFlows)
			}
			if dumps, _ := h.table.Uses(); dumps != before {
				t.Errorf("%d dumps", dumps-before)
			}
			h.store.SetPolicy(netpol.Read(guard("p0", 81)))
			h.publishAndSweep(conntrack.ScopeFlows)
			h.want(ref, revoked)
		})
	}
}

// A pod goes away, and its address is pending. Its live connection still follows the policies of the
// other end.
func TestConnectionOfAGonePod(t *testing.T) {
	h, k := quiet(t)
	h.tracked.Limit(1000, 1000, 1) // keys of IDs that no address has are removed soon, but not those of this pod
	h.store.SetNodeRanges("other", []netip.Prefix{allPods})
	local := h.addrs[3]
	h.store.SetPod(kubepod.Read(pod("p1", local)))
	h.store.SetPolicy(netpol.Read(guard("p1", 80)))
	h.publishAndSweep(conntrack.ScopeFlows)
	ref := h.open(filter.NewKey(k.DstAddr(), local, filter.TCP, 80), false)
	h.store.DeletePod("default", "p0")
	for range 4 {
		h.publishAndSweep(conntrack.ScopeFlows)
		h.want(ref, allowed)
	}
	h.store.SetPolicy(netpol.Read(guard("p1", 81)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, revoked)
}

// A worker that was stuck allows a connection by a snapshot that is out of date. Later changes concern the
// connection as well.
func TestLateVerdict(t *testing.T) {
	h, k := quiet(t)
	old := h.published.Snapshot()
	h.store.SetPolicy(netpol.Read(guard("p0", 80, 81)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.tracked.Track(old, k)
	ref := h.table.Add(k, 1, netip.AddrPortFrom(k.DstAddr(), k.Port), allowed)
	h.store.SetPolicy(netpol.Read(guard("p0", 1)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, revoked)
}

// A worker allows a connection by a snapshot that the follower does not know yet, and removes keys that
// nothing needs. It keeps the key of the connection.
func TestEarlyVerdict(t *testing.T) {
	h, k := quiet(t)
	h.tracked.Limit(1000, 1000, 1)
	h.store.SetPolicy(netpol.Read(guard("p0", 80, 81)))
	s, changes := h.store.Commit()
	h.published.Publish(s)
	h.follower.Published(s, changes, conntrack.ScopeFlows)
	h.store.SetPolicy(netpol.Read(guard("p0", 80, 82)))
	s, changes = h.store.Commit()
	h.published.Publish(s)
	ref := h.open(k, false)
	if err := h.follower.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.follower.Published(s, changes, conntrack.ScopeFlows)
	h.store.SetPolicy(netpol.Read(guard("p0", 1)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, revoked)
}

// A worker allows a connection by a snapshot that the follower does not know yet. The sweeps for two older
// snapshots run after that, because an earlier sweep took long. They remove unneeded keys, but keep the key
// of the connection.
func TestEarlyVerdictBeforeTwoSweeps(t *testing.T) {
	h, k := quiet(t)
	h.tracked.Limit(1000, 1000, -1000) // each sweep removes keys
	type publication struct {
		*policy.Snapshot
		policy.Changes
	}
	var older []publication
	for i := range 2 {
		h.store.SetPod(kubepod.Read(pod(fmt.Sprint("p", 1+i), h.addrs[5+i])))
		s, changes := h.store.Commit()
		older = append(older, publication{s, changes})
	}
	h.store.SetPolicy(netpol.Read(guard("p0", 80, 81)))
	s, changes := h.store.Commit()
	h.published.Publish(s)
	ref := h.open(k, false)
	for _, p := range older {
		h.follower.Published(p.Snapshot, p.Changes, conntrack.ScopeFlows)
		if err := h.follower.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	h.follower.Published(s, changes, conntrack.ScopeFlows)
	h.store.SetPolicy(netpol.Read(guard("p0", 1)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, revoked)
}

// An address is pending, then a pod has it, and then it is pending again in a snapshot that the follower does
// not know yet. A worker allows a connection from the address by this snapshot. The key of the connection is kept,
// although two snapshots in a row have a pod with the address.
func TestPendingAgain(t *testing.T) {
	h, k := quiet(t)
	h.tracked.Limit(1000, 1000, -1000) // each sweep removes keys
	h.store.SetNodeRanges("other", []netip.Prefix{allPods})
	src, other := h.addrs[5], h.addrs[6]
	h.store.SetPod(kubepod.Read(pod("p2", other)))
	h.store.SetPolicy(netpol.Read(guard("p2", 80)))
	h.publishAndSweep(conntrack.ScopeAll)
	h.tracked.Track(h.published.Snapshot(), filter.NewKey(src, other, filter.TCP, 80))
	h.store.SetPod(kubepod.Read(pod("p1", src)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.store.SetPod(kubepod.Read(pod("p3", h.addrs[0])))
	s, changes := h.store.Commit()
	h.follower.Published(s, changes, conntrack.ScopeFlows)

	h.store.DeletePod("default", "p1")
	s, changes = h.store.Commit()
	k = filter.NewKey(src, k.DstAddr(), filter.TCP, 80)
	h.tracked.Track(s, k)
	ref := h.table.Add(k, 1, netip.AddrPortFrom(k.DstAddr(), k.Port), allowed)
	if err := h.follower.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.follower.Published(s, changes, conntrack.ScopeFlows)
	h.store.SetPolicy(netpol.Read(guard("p0", 1)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, revoked)
}

// An address of a node had a pod. Without it, the node reaches its pods, whatever policies say.
func TestConnectionOfANode(t *testing.T) {
	h, k := quiet(t)
	on := pod("p0", k.DstAddr())
	on.Status.HostIPs = []corev1.HostIP{{IP: "203.0.113.9"}}
	h.store.SetPod(kubepod.Read(on))
	src := netip.MustParseAddr("203.0.113.9")
	h.store.SetPod(kubepod.Read(pod("p1", src)))
	h.publishAndSweep(conntrack.ScopeFlows)
	ref := h.open(filter.NewKey(src, k.DstAddr(), filter.TCP, 80), false)
	h.open(filter.NewKey(netip.MustParseAddr("198.51.100.1"), k.DstAddr(), filter.TCP, 80), false)
	h.store.SetPolicy(netpol.Read(guard("p0", 81)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, revoked)
	h.store.DeletePod("default", "p1")
	h.publishAndSweep(conntrack.ScopeFlows)
	h.want(ref, allowed)
}

// If there are more keys than the limit, each change needs a sweep. Once the addresses have new IDs and the
// keys of the live connections fit, the keys are complete again.
func TestManyKeys(t *testing.T) {
	h, k := quiet(t)
	h.tracked.Limit(6, 1000, 1)
	h.store.SetPolicy(netpol.Read(guard("p0", 80, 81, 82, 83, 84, 85, 86, 87)))
	h.publishAndSweep(conntrack.ScopeFlows)
	h.open(k, false)
	for port := uint16(81); port < 88; port++ {
		k.Port = port
		h.table.Remove(h.open(k, false))
	}
	dumps := func() int { n, _ := h.table.Uses(); return n }
	for i, want := range []int{1, 1, 0} { // the first change gives the pod an ID whose keys find no room
		before := dumps()
		h.store.SetPolicy(netpol.Read(guard("p0", 80, int32(100+i))))
		h.publishAndSweep(conntrack.ScopeFlows)
		if got := dumps() - before; got != want {
			t.Errorf("change %d: %d dumps, want %d", i, got, want)
		}
	}
}
