package reach_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// dice makes small random clusters, in which labels, addresses and ports are often equal.
type dice struct{ *rand.Rand }

func newDice(seed uint64) dice { return dice{rand.New(rand.NewPCG(seed, 13))} }

func pick[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

func (d dice) one(in int) bool { return d.IntN(in) == 0 }

func (d dice) labels() map[string]string {
	set := map[string]string{}
	for _, k := range []string{"role", "tier"} {
		if !d.one(3) {
			set[k] = pick(d, "a", "b")
		}
	}
	return set
}

func (d dice) selector() *metav1.LabelSelector {
	if d.one(4) {
		return &metav1.LabelSelector{}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{pick(d, "role", "tier"): pick(d, "a", "b")}}
}

func (d dice) peer() (p networkingv1.NetworkPolicyPeer) {
	switch d.IntN(8) {
	case 0, 1:
		p.PodSelector = d.selector()
	case 2:
		p.NamespaceSelector = d.selector()
	case 3:
		p.PodSelector, p.NamespaceSelector = d.selector(), d.selector()
	default:
		p.IPBlock = &networkingv1.IPBlock{CIDR: pick(d, "10.0.0.0/29", "10.0.0.4/30", "0.0.0.0/0", "fd00::/125", "::/0", "192.0.2.0/24", "10.0.0.0/8", "172.16.0.0/12", "203.0.113.0/24")}
		for range d.IntN(2) {
			p.IPBlock.Except = append(p.IPBlock.Except, pick(d, "10.0.0.2/32", "10.0.0.4/31", "fd00::4/126", "192.0.2.7/32"))
		}
	}
	return p
}

func (d dice) port() (p networkingv1.NetworkPolicyPort) {
	if !d.one(3) {
		proto := pick(d, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
		p.Protocol = &proto
	}
	if d.one(6) {
		return p
	}
	port := pick(d, intstr.FromInt32(80), intstr.FromInt32(81), intstr.FromInt32(65535), intstr.FromString("web"), intstr.FromString("alt"))
	p.Port = &port
	if d.one(3) && port.IntVal == 80 {
		end := pick[int32](d, 82, 90)
		p.EndPort = &end
	}
	return p
}

func several[T any](d dice, most int, one func() T) (all []T) {
	for range d.IntN(most + 1) {
		all = append(all, one())
	}
	return all
}

func (d dice) policy(name string) *policy.Policy {
	o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(d, "one", "two"), Name: name}}
	o.Spec.PodSelector = *d.selector()
	o.Spec.PolicyTypes = pick(d, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Ingress", "Egress"}, []networkingv1.PolicyType{"Egress"})
	o.Spec.Ingress = several(d, 2, func() networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{From: several(d, 2, d.peer), Ports: several(d, 2, d.port)}
	})
	o.Spec.Egress = several(d, 2, func() networkingv1.NetworkPolicyEgressRule {
		return networkingv1.NetworkPolicyEgressRule{To: several(d, 2, d.peer), Ports: several(d, 2, d.port)}
	})
	return netpol.Read(o)
}

// ordered returns a policy of the tier Admin or Baseline, made of a random NetworkPolicy.
func (d dice) ordered(name string) *policy.Policy {
	p := *d.policy(name)
	p.Ref = policy.Ref{Kind: "ClusterNetworkPolicy", Name: name}
	p.Subject.Namespaces, p.Subject.Namespace = labels.Everything(), ""
	p.Tier, p.Priority, p.Isolates = pick(d, policy.Admin, policy.Baseline), int32(d.IntN(3)), [2]bool{}
	p.Digest, p.Source = [32]byte{}, policy.Source{}
	for dir := range p.Rules {
		for i := range p.Rules[dir] {
			r := &p.Rules[dir][i]
			r.Action = pick(d, policy.Accept, policy.Deny, policy.Pass)
			for j := range r.Peers {
				switch x := &r.Peers[j]; {
				case x.Block != nil && d.one(2):
					*x = policy.Peer{Networks: []netip.Prefix{x.Block.CIDR.Masked(), netip.MustParsePrefix(pick(d, "10.0.0.1/32", "192.0.2.8/32"))}}
				case d.one(4):
					*x = policy.Peer{Nodes: pick(d, labels.Everything(), labels.SelectorFromSet(labels.Set{"role": "a"}))}
				case x.Block == nil && x.Namespaces == nil:
					x.Namespaces = labels.Everything()
				}
			}
		}
	}
	return &p
}

func (d dice) spec() (s corev1.PodSpec) {
	for range d.IntN(3) {
		s.Containers = append(s.Containers, corev1.Container{Ports: []corev1.ContainerPort{{
			Name: pick(d, "web", "alt"), Protocol: pick(d, corev1.ProtocolTCP, corev1.ProtocolUDP), ContainerPort: pick[int32](d, 80, 81, 8080),
		}}})
	}
	s.HostNetwork = d.one(8)
	s.NodeName = pick(d, "", "node0", "node1")
	return s
}

// pod returns a pod, often one of a workload, and sometimes one without an address.
func (d dice) pod(i int) *policy.Pod {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick(d, "one", "two"), Name: fmt.Sprint("p", i), Labels: d.labels()}, Spec: d.spec()}
	if owner := pick(d, "", "web", "db"); owner != "" {
		o.OwnerReferences = []metav1.OwnerReference{{Kind: "StatefulSet", Name: owner, Controller: new(bool)}}
		*o.OwnerReferences[0].Controller = true
	}
	if o.Spec.NodeName != "" && !d.one(3) {
		o.Status.HostIP = map[string]string{"node0": "192.0.2.7", "node1": "192.0.2.8"}[o.Spec.NodeName]
	}
	v4, v6 := corev1.PodIP{IP: fmt.Sprintf("10.0.0.%d", i+1)}, corev1.PodIP{IP: fmt.Sprintf("fd00::%d", i+1)}
	o.Status.PodIPs = pick(d, []corev1.PodIP{v4}, []corev1.PodIP{v4, v6}, []corev1.PodIP{v4, v6}, []corev1.PodIP{v6}, nil)
	if o.Spec.HostNetwork && len(o.Status.PodIPs) > 0 {
		o.Status.PodIPs = nil
		o.Status.HostIP = pick(d, "192.0.2.7", "192.0.2.8")
	}
	return kubepod.Read(o)
}

// objects returns the objects of a cluster.
func (d dice) objects() (o inventory.Objects) {
	for _, name := range []string{"one", "two"} {
		o.Namespaces = append(o.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: d.labels()}})
	}
	for i := range 4 + d.IntN(4) {
		o.Pods = append(o.Pods, d.pod(i))
	}
	for i := range d.IntN(3) {
		ref := policy.Ref{Kind: "Deployment", Namespace: pick(d, "one", "two"), Name: fmt.Sprint("w", i)}
		pod := kubepod.Read(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ref.Namespace, Name: ref.Name, Labels: d.labels()}, Spec: d.spec()})
		o.Workloads = append(o.Workloads, &kubepod.Workload{Ref: ref, Pod: pod})
	}
	for i := range d.IntN(3) {
		n := &policy.Node{Name: fmt.Sprint("node", i), Labels: d.labels(), Addrs: []netip.Addr{netip.MustParseAddr(fmt.Sprint("192.0.2.", 7+i))}}
		if d.one(2) {
			n.Addrs = append(n.Addrs, netip.MustParseAddr(fmt.Sprint("203.0.113.", 1+i)), netip.MustParseAddr(fmt.Sprint("fd00::9", i)))
		}
		o.Nodes = append(o.Nodes, n)
	}
	o.Policies = d.policies()
	if d.one(3) {
		o.PodRanges = []netip.Prefix{netip.MustParsePrefix(pick(d, "10.0.0.0/28", "10.0.0.0/16"))}
	}
	if d.one(4) {
		o.NodeAddrs = []netip.Addr{netip.MustParseAddr(pick(d, "192.0.2.7", "192.0.2.50"))}
	}
	if d.one(4) {
		o = bare(o)
	}
	return o
}

// bare removes the addresses of the pods, as in Git: their families are then those that policies mention.
func bare(o inventory.Objects) inventory.Objects {
	for _, p := range o.Pods {
		p.Addrs, p.Hosts = nil, nil
	}
	return o
}

func (d dice) policies() (all []*policy.Policy) {
	for i := range 1 + d.IntN(4) {
		all = append(all, d.policy(fmt.Sprint("policy", i)))
	}
	if d.one(2) {
		for i := range 1 + d.IntN(3) {
			all = append(all, d.ordered(fmt.Sprint("ordered", i)))
		}
	}
	return slices.Clip(all)
}
