package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
)

// chance generates random small clusters and flows. It draws labels, addresses, ports and
// names from short lists, so that they often match and overlap.
type chance struct{ *rand.Rand }

func newChance(seed uint64) chance { return chance{rand.New(rand.NewPCG(seed, 0))} }

// oneIn returns true with probability 1/n.
func (r chance) oneIn(n int) bool { return r.IntN(n) == 0 }

// oneOf returns a random one of the values.
func oneOf[T any](r chance, values ...T) T { return values[r.IntN(len(values))] }

// The lists to draw from. Values that are listed more often are more likely. Namespace
// "ghost" never has an object.
var (
	namespaceNames = []string{"a", "b", "c", "ghost", "a", "a", "b"}
	labelKeys      = []string{"app", "tier", "role"}
	labelValues    = []string{"x", "y", "z"}
	portNames      = []string{"http", "dns", "sip"}
	portNumbers    = []int32{1, 53, 80, 81, 443, 8080, 65535}
	nodeAddrs      = addrs("10.9.0.1", "fd09::1", "10.9.0.2", "fd09::2", "10.9.0.3")
	outsideAddrs   = addrs("192.0.2.7", "2001:db8::7", "10.0.0.200", "0.0.0.0", "255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")
	cidrs          = []string{
		"10.0.0.0/29", "10.0.0.4/30", "10.0.0.3/32", "10.0.0.9/29", "10.0.0.0/8", "0.0.0.0/0", "192.0.2.0/24", "10.9.0.0/16", "255.255.255.248/29",
		"fd00::/125", "fd00::4/126", "fd00::3/128", "fd00::/16", "::/0", "2001:db8::/32", "ffff::/16",
	}
	malformedCIDRs = []string{"010.0.0.0/8", "10.0.0.0", "10.0.0.0/33", "", "::ffff:10.0.0.0/104", "fd00::%eth0/64"}
)

func addrs(texts ...string) (list []netip.Addr) {
	for _, text := range texts {
		list = append(list, netip.MustParseAddr(text))
	}
	return list
}

// podAddr returns one of the twelve addresses of a family that pods may have.
func (r chance) podAddr(v6 bool) netip.Addr {
	n := byte(1 + r.IntN(12))
	if v6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: n})
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, n})
}

func (r chance) labels() map[string]string {
	if r.oneIn(6) {
		return nil
	}
	set := map[string]string{}
	for _, key := range labelKeys {
		if !r.oneIn(3) {
			set[key] = oneOf(r, labelValues...)
		}
	}
	return set
}

func (r chance) cluster() *cluster {
	c := &cluster{Node: r.node(), Ranges: r.ranges()}
	for _, name := range namespaceNames[:3] {
		if !r.oneIn(4) {
			c.Namespaces = append(c.Namespaces, r.namespace(name))
		}
	}
	for i := range 5 + r.IntN(12) {
		c.Pods = append(c.Pods, r.pod(fmt.Sprintf("p%d", i)))
	}
	for i := range 1 + r.IntN(12) {
		c.Policies = append(c.Policies, r.policy(fmt.Sprintf("n%d", i)))
	}
	if r.oneIn(2) {
		r.addClusterPolicies(c)
	}
	return c
}

// localNode is the name of the enforcing node.
const localNode = "here"

// ranges returns the ranges of the enforcing node's pods: none, or some that contain a part
// of the pod addresses.
func (r chance) ranges() []netip.Prefix {
	all := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("fd00::/125"), netip.MustParsePrefix("10.0.0.9/32")}
	return all[:oneOf(r, 0, 1, 2, 2, 3)]
}

// node returns the enforcing node's addresses, usually one of each family.
func (r chance) node() []netip.Addr { return slices.Clone(nodeAddrs[:oneOf(r, 2, 2, 1, 0)]) }

func (r chance) namespace(name string) *corev1.Namespace {
	o := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: r.labels()}}
	if o.Labels != nil && r.oneIn(8) {
		o.Labels[corev1.LabelMetadataName] = oneOf(r, namespaceNames...) // sometimes the name of another namespace
	}
	return o
}

func (r chance) pod(name string) *corev1.Pod {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: oneOf(r, namespaceNames...), Name: name, Labels: r.labels(),
		CreationTimestamp: metav1.NewTime(time.Unix(int64(r.IntN(3)), 0)),
	}}
	r.setPorts(&o.Spec)
	if r.oneIn(10) {
		o.DeletionTimestamp = &metav1.Time{Time: time.Unix(9, 0)}
	}
	o.Spec.NodeName = oneOf(r, localNode, "elsewhere", "elsewhere", "")
	r.setStatus(o)
	return o
}

func (r chance) setPorts(spec *corev1.PodSpec) {
	containers := func(most int) (list []corev1.Container) {
		for range r.IntN(most + 1) {
			var c corev1.Container
			for range r.IntN(3) {
				c.Ports = append(c.Ports, corev1.ContainerPort{
					Name: r.containerPort(), ContainerPort: oneOf(r, portNumbers...),
					Protocol: oneOf(r, "", corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP),
				})
			}
			list = append(list, c)
		}
		return list
	}
	spec.Containers, spec.InitContainers = containers(2), containers(1)
	for i := range spec.InitContainers {
		if r.oneIn(2) {
			always := corev1.ContainerRestartPolicyAlways
			spec.InitContainers[i].RestartPolicy = &always
		}
	}
}

// containerPort returns a name for a port of a container: usually a valid one, sometimes none or
// an invalid one, which no policy can contain.
func (r chance) containerPort() string {
	if r.oneIn(30) {
		return oneOf(r, "80", "HTTP", "a--b")
	}
	return oneOf(r, "", "http", "dns", "sip", "http")
}

func (r chance) setStatus(o *corev1.Pod) {
	o.Status = corev1.PodStatus{Phase: corev1.PodRunning}
	if r.oneIn(12) {
		o.Status.Phase = oneOf(r, corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending)
	}
	host := oneOf(r, nodeAddrs...)
	if !r.oneIn(4) {
		o.Status.HostIP = host.String()
		o.Status.HostIPs = []corev1.HostIP{{IP: host.String()}, {IP: oneOf(r, nodeAddrs...).String()}}[:1+r.IntN(2)]
	}
	switch {
	case r.oneIn(14):
		return // no address yet
	case r.oneIn(14):
		o.Spec.HostNetwork = true
		o.Status.PodIP = host.String()
		o.Status.PodIPs = []corev1.PodIP{{IP: host.String()}}
		return
	case r.oneIn(30):
		o.Status.PodIP = host.String() // it claims its node's address
		return
	}
	o.Status.PodIP = r.podAddr(r.oneIn(5)).String()
	switch {
	case r.oneIn(8): // only podIP, as old kubelets write it
	case r.oneIn(12):
		o.Status.PodIPs = []corev1.PodIP{{IP: "::ffff:" + r.podAddr(false).String()}}
	default:
		o.Status.PodIPs = []corev1.PodIP{{IP: o.Status.PodIP}}
		if r.oneIn(2) {
			o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: r.podAddr(true).String()})
		}
	}
}

func (r chance) policy(name string) *networkingv1.NetworkPolicy {
	o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: oneOf(r, namespaceNames...), Name: name}}
	o.Spec.PodSelector = *r.selector(30)
	const ingress, egress = networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress
	o.Spec.PolicyTypes = oneOf(r, nil, []networkingv1.PolicyType{},
		[]networkingv1.PolicyType{ingress}, []networkingv1.PolicyType{egress}, []networkingv1.PolicyType{ingress, egress})
	if r.oneIn(40) {
		o.Spec.PolicyTypes = append(o.Spec.PolicyTypes, "Sideways")
	}
	if r.oneIn(2) {
		o.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{}
	}
	for range r.IntN(4) {
		o.Spec.Ingress = append(o.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers(), Ports: r.ports()})
	}
	for range r.IntN(4) {
		o.Spec.Egress = append(o.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: r.peers(), Ports: r.ports()})
	}
	return o
}

// selector returns a label selector, which is malformed with probability 1/malformed.
func (r chance) selector(malformed int) *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if r.oneIn(malformed) {
		s.MatchExpressions = []metav1.LabelSelectorRequirement{oneOf(r,
			metav1.LabelSelectorRequirement{Key: "app", Operator: "Is", Values: []string{"x"}},
			metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpIn},
			metav1.LabelSelectorRequirement{Key: "app", Operator: metav1.LabelSelectorOpExists, Values: []string{"x"}},
			metav1.LabelSelectorRequirement{Key: "not a key", Operator: metav1.LabelSelectorOpExists},
		)}
		return s
	}
	if r.oneIn(5) {
		return s
	}
	for range oneOf(r, 0, 0, 1, 1, 2) {
		if s.MatchLabels == nil {
			s.MatchLabels = map[string]string{}
		}
		s.MatchLabels[oneOf(r, labelKeys...)] = oneOf(r, labelValues...)
	}
	for range oneOf(r, 0, 1, 1, 2) {
		e := metav1.LabelSelectorRequirement{Key: oneOf(r, labelKeys...), Operator: oneOf(r,
			metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
		if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
			e.Values = []string{oneOf(r, labelValues...), oneOf(r, labelValues...)}[:1+r.IntN(2)]
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

// namespaceSelector returns a selector that sometimes selects a namespace by name.
func (r chance) namespaceSelector() *metav1.LabelSelector { return r.namespaceSelectorOr(30) }

// namespaceSelectorOr is like namespaceSelector, but the parameter sets the probability of a
// malformed selector (see selector).
func (r chance) namespaceSelectorOr(malformed int) *metav1.LabelSelector {
	if r.oneIn(4) {
		return &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: oneOf(r, namespaceNames...)}}
	}
	return r.selector(malformed)
}

func (r chance) peers() []networkingv1.NetworkPolicyPeer {
	peers := oneOf(r, nil, []networkingv1.NetworkPolicyPeer{})
	for range oneOf(r, 0, 1, 1, 1, 2, 2, 3) {
		var p networkingv1.NetworkPolicyPeer
		switch r.IntN(4) {
		case 0:
			p.PodSelector = r.selector(30)
		case 1:
			p.NamespaceSelector = r.namespaceSelector()
		case 2:
			p.PodSelector, p.NamespaceSelector = r.selector(30), r.namespaceSelector()
		case 3:
			p.IPBlock = r.block()
		}
		switch {
		case r.oneIn(40):
			p = networkingv1.NetworkPolicyPeer{}
		case r.oneIn(40):
			p.IPBlock = r.block() // malformed if the peer also has a selector
		}
		peers = append(peers, p)
	}
	return peers
}

func (r chance) cidr() string {
	if r.oneIn(40) {
		return oneOf(r, malformedCIDRs...)
	}
	return oneOf(r, cidrs...)
}

func (r chance) block() *networkingv1.IPBlock {
	b := &networkingv1.IPBlock{CIDR: r.cidr()}
	for range oneOf(r, 0, 0, 1, 2, 3) {
		b.Except = append(b.Except, r.cidr())
	}
	return b
}

func (r chance) ports() []networkingv1.NetworkPolicyPort {
	ports := oneOf(r, nil, []networkingv1.NetworkPolicyPort{})
	for range oneOf(r, 0, 0, 1, 1, 2, 3) {
		var p networkingv1.NetworkPolicyPort
		if !r.oneIn(4) {
			protocol := oneOf(r, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			if r.oneIn(40) {
				protocol = oneOf[corev1.Protocol](r, "", "tcp", "ICMP")
			}
			p.Protocol = &protocol
		}
		switch number := intstr.FromInt32(oneOf(r, portNumbers...)); r.IntN(5) {
		case 0:
		case 1, 2:
			p.Port = &number
		case 3:
			name := intstr.FromString(oneOf(r, portNames...))
			p.Port = &name
		case 4:
			last := min(65535, number.IntVal+oneOf[int32](r, 0, 1, 100, 65535))
			p.Port, p.EndPort = &number, &last
		}
		if r.oneIn(40) {
			r.spoil(&p)
		}
		ports = append(ports, p)
	}
	return ports
}

// spoil changes a port so that the API server's validation would refuse it.
func (r chance) spoil(p *networkingv1.NetworkPolicyPort) {
	last := int32(80)
	port := oneOf(r, intstr.FromInt32(0), intstr.FromInt32(-1), intstr.FromInt32(65536), intstr.FromInt32(443), intstr.FromString(""), intstr.FromString("http"),
		intstr.FromString("80"), intstr.FromString("HTTP"), intstr.FromString("a--b"), intstr.FromString("-a"), intstr.FromString("longer-than-fifteen"))
	switch r.IntN(3) {
	case 0:
		p.Port, p.EndPort = &port, &last
	case 1:
		p.Port, p.EndPort = nil, &last
	case 2:
		p.Port = &port
	}
}

// flow returns a flow that the policies are likely to match: usually between pods, and to a
// port that has a name or that rules use.
func (r chance) flow(c *cluster) flow {
	v6 := r.oneIn(3)
	f := flow{Src: r.end(c, v6), Dst: r.end(c, v6 != r.oneIn(50))}
	if f.Src == f.Dst && !r.oneIn(4) {
		f.Dst = r.end(c, v6)
	}
	f.Protocol = oneOf(r, filter.TCP, filter.TCP, filter.UDP, filter.SCTP)
	f.Transport = filter.Ported
	f.Port = uint16(oneOf(r, portNumbers...))
	switch r.IntN(12) {
	case 0:
		f.Port = uint16(r.Uint32())
	case 1:
		f.Protocol = oneOf(r, filter.ICMP, filter.ICMPv6, filter.Protocol(47))
		f.Transport, f.Port = filter.Portless, 0
	case 2:
		f.Transport, f.Port = filter.Opaque, 0
	case 3, 4, 5:
		r.aimAtNamedPort(c, &f)
	}
	return f
}

// end returns one end of a flow.
func (r chance) end(c *cluster, v6 bool) netip.Addr {
	switch r.IntN(8) {
	case 0:
		return r.podAddr(v6) // possibly an address that no pod has
	case 1:
		for {
			if a := oneOf(r, append(outsideAddrs, nodeAddrs...)...); a.Is6() == v6 {
				return a
			}
		}
	}
	for range 4 {
		for _, a := range podAddrs(oneOf(r, c.Pods...)) {
			if a.Is6() == v6 {
				return a
			}
		}
	}
	return r.podAddr(v6)
}

// aimAtNamedPort changes a flow's protocol and port to those of a named port of its destination,
// if the destination has one.
func (r chance) aimAtNamedPort(c *cluster, f *flow) {
	pod := c.podAt(f.Dst)
	if pod == nil {
		return
	}
	for _, container := range append(slices.Clone(pod.Spec.Containers), pod.Spec.InitContainers...) {
		for _, p := range container.Ports {
			if p.Name != "" {
				f.Port, f.Protocol = uint16(p.ContainerPort), max(numberOf(p.Protocol), filter.TCP)
			}
		}
	}
}
