// Package cluster makes up clusters of any size, for benchmarks: objects such as
// a busy cluster has, and flows between them. What it makes depends on the seed
// alone, so that two measurements of one size measure the same thing.
package cluster

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
	"sluice/filter/policy"
)

// replicas is how many pods an app has, and therefore how many a policy selects.
const replicas = 10

// Options are the size of a cluster.
type Options struct {
	Pods       int
	Policies   int
	Namespaces int  // over which both are spread; 0 means 1
	DualStack  bool // every pod has an IPv6 address too
}

// Cluster is objects as the API serves them. Policies have passed the API
// server's defaulting.
type Cluster struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
}

// New makes a cluster up. Pods come in apps of ten; each policy selects one app,
// by two labels, and has two or three rules.
func New(seed uint64, o Options) *Cluster {
	o.Namespaces = max(1, o.Namespaces)
	c := &Cluster{}
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range o.Namespaces {
		c.Namespaces = append(c.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name:   namespaceName(i),
			Labels: map[string]string{"team": teamName(i), "env": pick(random, environments)},
		}})
	}
	m := maker{random: random, options: o, apps: max(1, o.Pods/replicas)}
	for i := range o.Pods {
		c.Pods = append(c.Pods, m.pod(i))
	}
	for i := range o.Policies {
		c.Policies = append(c.Policies, m.policy(i))
	}
	return c
}

// Fill puts all objects into a world, policies last, as an agent's start does.
func (c *Cluster) Fill(w *policy.World) {
	for _, o := range c.Namespaces {
		w.SetNamespace(o)
	}
	for _, o := range c.Pods {
		w.SetPod(o)
	}
	for _, o := range c.Policies {
		w.SetPolicy(o)
	}
}

// Keys makes up n flows between the pods, one in ten of them from outside the
// cluster. All are IPv4.
func (c *Cluster) Keys(seed uint64, n int) []filter.Key {
	random := rand.New(rand.NewPCG(seed, 1))
	address := func() netip.Addr { return netip.MustParseAddr(c.Pods[random.IntN(len(c.Pods))].Status.PodIP) }
	keys := make([]filter.Key, n)
	for i := range keys {
		src, dst := address(), address()
		if random.IntN(10) == 0 {
			src = netip.AddrFrom4([4]byte{203, 0, 113, byte(random.Uint32())})
		}
		keys[i] = filter.NewKey(src, dst, filter.TCP, uint16(pick(random, portNumbers)))
	}
	return keys
}

var (
	environments = []string{"production", "staging", "test"}
	tiers        = []string{"web", "service", "data", "batch"}
	regions      = []string{"north", "east", "south", "west"}
	portNumbers  = []int32{80, 443, 5432, 6379, 8080, 8443, 9090}
)

func pick[T any](random *rand.Rand, from []T) T { return from[random.IntN(len(from))] }

func namespaceName(i int) string { return fmt.Sprintf("ns-%04d", i) }
func appName(i int) string       { return fmt.Sprintf("app-%05d", i) }
func teamName(i int) string      { return fmt.Sprintf("team-%02d", i%20) }

// address is pod i's own: 10.0.0.0/8 and fd00::/104 hold enough.
func address(i int) (v4, v6 netip.Addr) {
	a := [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
	b := [16]byte{0: 0xfd, 13: a[1], 14: a[2], 15: a[3]}
	return netip.AddrFrom4(a), netip.AddrFrom16(b)
}

// maker makes the objects of one cluster.
type maker struct {
	random  *rand.Rand
	options Options
	apps    int
}

// namespaceOf is the namespace of all pods of an app.
func (m maker) namespaceOf(app int) int { return app % m.options.Namespaces }

func (m maker) pod(i int) *corev1.Pod {
	app := i / replicas % m.apps
	v4, v6 := address(i + 256) // no address ends in the network's first numbers
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespaceName(m.namespaceOf(app)),
			Name:      appName(app) + "-" + strconv.Itoa(i),
			Labels: map[string]string{
				"app":               appName(app),
				"tier":              tiers[app%len(tiers)],
				"team":              teamName(app),
				"version":           "v" + strconv.Itoa(app%3+m.random.IntN(2)),
				"pod-template-hash": strconv.FormatUint(uint64(app)*2654435761%(1<<32), 36),
			},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP},
			{Name: "metrics", ContainerPort: 9090, Protocol: corev1.ProtocolTCP},
		}}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, HostIP: "172.16.0.1", PodIP: v4.String(),
			HostIPs: []corev1.HostIP{{IP: "172.16.0.1"}}, PodIPs: []corev1.PodIP{{IP: v4.String()}},
		},
	}
	for _, extra := range []string{"region", "canary", "owner"} {
		if m.random.IntN(2) == 0 {
			p.Labels[extra] = pick(m.random, regions)
		}
	}
	if m.options.DualStack {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: v6.String()})
	}
	return p
}

// policy selects an app of its own as long as there are as many as policies.
func (m maker) policy(i int) *networkingv1.NetworkPolicy {
	app := i % m.apps
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespaceName(m.namespaceOf(app)),
			Name:      "allow-" + strconv.Itoa(i),
		},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": appName(app), "tier": tiers[app%len(tiers)]}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
	for range 2 + m.random.IntN(2) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: m.peers(), Ports: m.ports()})
	}
	if m.random.IntN(4) == 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: m.peers(), Ports: m.ports()}}
	}
	return p
}

// peers is one or two peers, each of one of the kinds that policies use.
func (m maker) peers() []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for range 1 + m.random.IntN(2) {
		var peer networkingv1.NetworkPolicyPeer
		switch m.random.IntN(6) {
		case 0, 1:
			peer.PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": appName(m.random.IntN(m.apps))}}
		case 2:
			peer.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": teamName(m.random.IntN(20))}}
		case 3:
			peer.NamespaceSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"env": pick(m.random, environments)}}
			peer.PodSelector = &metav1.LabelSelector{MatchLabels: map[string]string{"team": teamName(m.random.IntN(20))}}
		case 4:
			peer.PodSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "tier", Operator: metav1.LabelSelectorOpIn, Values: []string{pick(m.random, tiers), pick(m.random, tiers)}},
				{Key: "canary", Operator: metav1.LabelSelectorOpDoesNotExist},
			}}
		case 5:
			block := m.random.IntN(200)
			peer.IPBlock = &networkingv1.IPBlock{
				CIDR:   fmt.Sprintf("203.0.%d.0/24", block),
				Except: []string{fmt.Sprintf("203.0.%d.%d/28", block, 16*m.random.IntN(16))},
			}
		}
		peers = append(peers, peer)
	}
	return peers
}

// ports is one or two ports: numbers, a range or a name.
func (m maker) ports() []networkingv1.NetworkPolicyPort {
	var ports []networkingv1.NetworkPolicyPort
	for range 1 + m.random.IntN(2) {
		protocol := corev1.ProtocolTCP
		port := networkingv1.NetworkPolicyPort{Protocol: &protocol}
		switch number := pick(m.random, portNumbers); m.random.IntN(6) {
		case 0:
			name := intstr.FromString("http")
			port.Port = &name
		case 1:
			first, last := intstr.FromInt32(30000), int32(32767)
			port.Port, port.EndPort = &first, &last
		default:
			n := intstr.FromInt32(number)
			port.Port = &n
		}
		ports = append(ports, port)
	}
	return ports
}
