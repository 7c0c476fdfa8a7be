package bpf_test

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

	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// chance generates random clusters and packets. It draws from few names, labels and addresses, so
// that policies often select pods, and many packets are between pods.
type chance struct{ *rand.Rand }

func oneOf[T any](r chance, values ...T) T { return values[r.IntN(len(values))] }

func (r chance) oneIn(n int) bool { return r.IntN(n) == 0 }

const pods = 8

// podAddrs returns the IPv4 and the IPv6 address of pod n.
func podAddrs(n int) [2]netip.Addr {
	return [2]netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}), netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(n)})}
}

var (
	nodeAddrs = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	outside   = [2]netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:f::7")}
	// outsides are addresses outside the cluster, by family. The first two of each are those of nodes
	// with pods.
	outsides = [2][]netip.Addr{
		{outside[0], netip.MustParseAddr("198.51.100.8"), netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("203.0.113.5")},
		{outside[1], netip.MustParseAddr("2001:db8:f::8"), netip.MustParseAddr("2001:db8:f::9"), netip.MustParseAddr("2001:db8:e::5")},
	}
	// blocks are nested or disjoint, and contain some addresses of pods, of nodes, and of outsides.
	blocks = [2][]string{
		{"10.0.0.4/30", "10.0.0.0/24", "198.51.100.0/24", "198.51.100.8/29", "198.51.100.9/32", "192.0.2.0/24", "0.0.0.0/0"},
		{"fd00::4/126", "fd00::/64", "2001:db8:f::/64", "2001:db8:f::8/125", "2001:db8:f::9/128", "2001:db8::/64", "::/0"},
	}
	// podRanges contain the addresses of pods 2 to 7, and not those of pods 8 and 9.
	podRanges = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("fd00::/125")}
)

// addr returns the address of a pod, of this node, or from outside the cluster.
func (r chance) addr(v6 int) netip.Addr {
	switch r.IntN(9) {
	case 0, 1:
		return nodeAddrs[v6]
	case 2, 3:
		return oneOf(r, outsides[v6]...)
	}
	return podAddrs(2 + r.IntN(pods))[v6]
}

func (r chance) labels() map[string]string {
	return map[string]string{"app": oneOf(r, "x", "y"), "role": oneOf(r, "x", "y")}
}

func (r chance) pod(n int) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.Labels = oneOf(r, "a", "b"), fmt.Sprint("p", n), r.labels()
	if r.oneIn(8) {
		n = 2 + r.IntN(pods) // another pod may have this address too
	}
	for _, a := range podAddrs(n) {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	// The pod may be on another node. Pods do not always agree about the addresses of a node.
	nodes := [2][]netip.Addr{{nodeAddrs[0], outsides[0][0], outsides[0][1]}, {nodeAddrs[1], outsides[1][0], outsides[1][1]}}
	for _, host := range oneOf(r, nil, nil, []int{0}, []int{1}, []int{1}, []int{2}, []int{1, 2}) {
		for v6 := range nodes {
			if !r.oneIn(6) {
				p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: nodes[v6][host].String()})
			}
		}
	}
	p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: oneOf[int32](r, 80, 81)}}}}
	return p
}

var portNumbers = []uint16{53, 80, 81}

func (r chance) ports() (ports []networkingv1.NetworkPolicyPort) {
	for range r.IntN(3) {
		protocol, port := oneOf(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP), intstr.FromInt32(int32(oneOf(r, portNumbers...)))
		if r.oneIn(4) {
			port = intstr.FromString("http")
		}
		ports = append(ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port})
	}
	return ports
}

// block returns one of the blocks, often with one or more of those inside it as exceptions.
func (r chance) block() *networkingv1.IPBlock {
	of := oneOf(r, blocks[:]...)
	b := &networkingv1.IPBlock{CIDR: oneOf(r, of...)}
	outer := netip.MustParsePrefix(b.CIDR)
	for _, in := range of {
		if p := netip.MustParsePrefix(in); p.Bits() > outer.Bits() && outer.Contains(p.Addr()) && r.oneIn(3) {
			b.Except = append(b.Except, in)
		}
	}
	return b
}

func (r chance) peers() (peers []networkingv1.NetworkPolicyPeer) {
	for range r.IntN(3) {
		if r.oneIn(3) {
			peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: r.block()})
			continue
		}
		peers = append(peers, networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": oneOf(r, "x", "y")}}})
	}
	return peers
}

func (r chance) policy(n int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{}
	p.Namespace, p.Name = oneOf(r, "a", "b"), fmt.Sprint("n", n)
	p.Spec.PodSelector.MatchLabels = map[string]string{"app": oneOf(r, "x", "y")}
	if r.oneIn(2) {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
		for range r.IntN(3) {
			p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers(), Ports: r.ports()})
		}
	} else {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		for range r.IntN(3) {
			p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: r.peers(), Ports: r.ports()})
		}
	}
	return p
}

// ordered returns a policy of the tier Admin or Baseline. In one of three cases, it has no rule
// that denies. Most have rules for egress, which may concern the node.
func (r chance) ordered(n int) *policy.Policy {
	o := r.policy(n)
	for len(o.Spec.Egress) == 0 && !r.oneIn(5) {
		o = r.policy(n)
	}
	p := netpol.Read(o)
	p.Ref.Kind, p.Tier, p.Priority, p.Isolates = "Ordered", oneOf(r, policy.Admin, policy.Baseline), int32(r.IntN(3)), [2]bool{}
	p.Digest, p.Source = [32]byte{}, policy.Source{}
	if r.oneIn(2) {
		p.Subject.Pods = labels.Everything()
	}
	mild := r.oneIn(3)
	for d := range p.Rules {
		for i := range p.Rules[d] {
			rule := &p.Rules[d][i]
			rule.Action = oneOf(r, policy.Accept, policy.Pass, policy.Deny)
			if mild && rule.Action == policy.Deny {
				rule.Action = policy.Pass
			}
			if r.oneIn(2) { // the node, or all of one family
				rule.Peers = append(rule.Peers, policy.Peer{Block: &policy.Block{CIDR: netip.MustParsePrefix(oneOf(r, "192.0.2.0/24", "2001:db8::/64", "0.0.0.0/0", "::/0"))}})
			}
		}
	}
	return p
}

// change makes a random change to the cluster.
func (r chance) change(u *user) {
	n := 2 + r.IntN(pods)
	switch r.IntN(9) {
	case 6, 7:
		u.store.SetPolicy(r.ordered(r.IntN(3)))
	case 8:
		u.store.DeletePolicy(policy.Ref{Kind: "Ordered", Namespace: oneOf(r, "a", "b"), Name: fmt.Sprint("n", r.IntN(3))})
	case 0:
		for _, ns := range []string{"a", "b"} {
			u.store.DeletePod(ns, fmt.Sprint("p", n))
		}
	case 1, 2:
		u.store.SetPod(kubepod.Read(r.pod(n)))
	case 3, 4:
		u.store.SetPolicy(netpol.Read(r.policy(r.IntN(3))))
	case 5:
		u.store.DeletePolicy(netpol.Ref(oneOf(r, "a", "b"), fmt.Sprint("n", r.IntN(3))))
	}
	if r.oneIn(20) {
		u.store.SetNode(oneOf(r, nodeAddrs[:], nil))
	}
}

// packet returns a random packet. Many are well-formed. Others have a changed byte or length, IPv4
// options, IPv6 extension headers, or are not the first of a connection. "plain" reports
// whether the packet is well-formed and of a protocol that the programs read.
func (r chance) packet() (data []byte, plain bool) {
	v6 := r.IntN(2)
	src, dst := r.addr(v6), r.addr(v6)
	protocol := oneOf[uint8](r, 6, 6, 6, 17, 17, 132, 1, 58, 47, 50, 0, 44, 60)
	data = packetOf(src, dst, filter.Protocol(protocol), oneOf(r, portNumbers...), oneOf(r, 20, 20, 24, 60))
	plain = slices.Contains([]uint8{6, 17, 132, 1, 58}, protocol)
	switch r.IntN(7) {
	case 6:
		// Change the flags of TCP or the chunk type of SCTP, so that the packet may be in the
		// middle of a connection.
		data[len(data)-len(packetBody(data))+12+r.IntN(2)] ^= byte(r.Uint32() & 0x1f)
		plain = false
	case 0:
		at := r.IntN(len(data))
		data[at] = byte(r.Uint32())
		plain = false
	case 1:
		data = data[:r.IntN(len(data)+1)]
		plain = false
	case 2:
		at := min(oneOf(r, 0, 2, 4, 6, 20, 24, 32, 44, 52), len(data)-2)
		binary.BigEndian.PutUint16(data[at:], oneOf[uint16](r, 0, 7, 8, 11, 12, 19, 20, 28, 39, 40, 0x4000, 0x2000, 1, 0x4600, 0x6000, 0x0600, 0x2b06))
		plain = false
	case 3:
		if v6 == 1 && r.oneIn(2) {
			mapped := podAddrs(3)[0].As16()
			copy(data[oneOf(r, 8, 24):], mapped[:])
			plain = false
		}
	}
	return data, plain
}

// leftToUserSpace reports whether the programs leave a well-formed packet to user space, although its
// addresses are known: policies may deny what a pod sends to its node, and this node is not that one;
// or an address is that of a node, and the pods on it do not agree about its addresses.
func leftToUserSpace(s *policy.Snapshot, k filter.Key) bool {
	srcAddr, dstAddr := k.SrcAddr(), k.DstAddr()
	src, dst := s.Endpoint(srcAddr), s.Endpoint(dstAddr)
	if srcAddr != dstAddr && src.EffectToNode() != policy.Open && !policy.DecidedByIDs(srcAddr, dstAddr, src, dst) {
		return true
	}
	return dst == nil && len(hostsOf(s, srcAddr)) > 0 && disputed(s, dstAddr) || src == nil && len(hostsOf(s, dstAddr)) > 0 && disputed(s, srcAddr)
}

// hostsOf returns those addresses of the node of a pod that are of the same family as the pod's.
func hostsOf(s *policy.Snapshot, pod netip.Addr) (of []netip.Addr) {
	for _, a := range s.Endpoint(pod).Hosts() {
		if a.Is4() == pod.Is4() && !slices.Contains(of, a) {
			of = append(of, a)
		}
	}
	slices.SortFunc(of, netip.Addr.Compare)
	return of
}

// disputed reports whether pods on the node with this address do not agree about its addresses.
func disputed(s *policy.Snapshot, node netip.Addr) bool {
	var first []netip.Addr
	for a := range s.Endpoints() {
		switch of := hostsOf(s, a); {
		case !slices.Contains(of, node):
		case first == nil:
			first = of
		case !slices.Equal(first, of):
			return true
		}
	}
	return false
}

// packetBody returns the bytes behind the IP header of a packet from packetOf.
func packetBody(data []byte) []byte {
	if data[0]>>4 == 6 {
		return data[40:]
	}
	return data[20:]
}

// The programs never contradict user space, whatever the packet is. For well-formed packets they
// repeat every verdict that was remembered.
func TestAgreesWithUserSpace(t *testing.T) {
	c := newCache(t, bpf.Options{})
	p := load(t, c)
	u := newUser(t, c, podRanges)
	r := chance{rand.New(rand.NewPCG(3, 0))}
	count, toNode := map[verdict]int{}, map[verdict]int{}
	rounds, packets := 300, 200
	if testing.Short() {
		rounds = 30
	}
	u.store.SetNode(nodeAddrs[:])
	for round := range rounds {
		for range 1 + r.IntN(3) {
			r.change(u)
		}
		u.commit(t)
		var again [][]byte
		for range packets {
			data, plain := r.packet()
			before := p.run(data)
			action := u.evaluate(data)
			after := p.run(data)
			if plain {
				again = append(again, data)
			}
			for when, got := range map[string]verdict{"before": before, "after": after} {
				if got == allowed && action != filter.Allow || got == denied && action != filter.Deny {
					k, _ := u.decoder.Decode(data)
					t.Logf("%v %+v", k, u.published.Snapshot().Decide(k.Key))
					t.Fatalf("round %d, %s the verdict was remembered: kernel %s, user space %s, for %x", round, when, got, action, data)
				}
			}
			k, err := u.decoder.Decode(data)
			unknown, pending := 0, false
			for _, a := range []netip.Addr{k.Key.SrcAddr(), k.Key.DstAddr()} {
				if e, is := u.published.Snapshot().Lookup(a); err == nil && e == nil {
					unknown++
					// The programs leave packets of pending addresses to user space in any case.
					pending = pending || is != policy.Known
				}
			}
			if plain && after == noMatch && unknown < 2 && !pending && !leftToUserSpace(u.published.Snapshot(), k.Key) {
				t.Fatalf("round %d: the kernel does not repeat the verdict of user space, %s, for %x", round, action, data)
			}
			count[before]++
			s := u.published.Snapshot()
			if err == nil && s.Endpoint(k.Key.DstAddr()).IsNode() && s.Endpoint(k.Key.SrcAddr()).EffectToNode() != policy.Open {
				toNode[before]++
				toNode[after]++
			}
		}
		// Verdicts from before a change must not be used after it.
		for range r.IntN(2) {
			r.change(u)
			u.commit(t)
			for _, data := range again {
				got := p.run(data)
				if action := u.evaluate(data); got == allowed && action != filter.Allow || got == denied && action != filter.Deny {
					t.Fatalf("round %d, after a change: kernel %s, user space %s, for %x", round, got, action, data)
				}
				count[got]++
			}
		}
	}
	t.Log(count)
	t.Log(toNode)
	for _, v := range []verdict{allowed, denied, noMatch} {
		if toNode[v] < rounds/20 {
			t.Errorf("result %q for only %d packets from pods that policies concern to the node in %d rounds", v, toNode[v], rounds)
		}
		if count[v] < rounds {
			t.Errorf("result %q only %d times in %d rounds: the random packets test too little", v, count[v], rounds)
		}
	}
}
