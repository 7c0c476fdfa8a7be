// Package cluster generates clusters of any size for benchmarks: objects like those of a
// busy cluster, and flows between its pods. The same options and the same seed give the same
// cluster, so that measurements can be compared.
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
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// defaultReplicas is the usual Options.Replicas.
const defaultReplicas = 10

// Options are the size of a cluster.
type Options struct {
	Pods       int
	Policies   int
	Namespaces int  // 0 means 1
	Replicas   int  // number of pods of an app, and so of the pods that a policy selects; 0 means 10
	DualStack  bool // every pod also has an IPv6 address
}

// Cluster has the objects of a cluster, as the API serves them. The policies include the fields
// that the API server sets by default.
type Cluster struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy

	maker maker
}

// New generates a cluster. An app consists of Options.Replicas pods. Each policy selects one app by two
// labels, and has two or three rules. The first rule allows the app's clients, which are the
// pods of another app.
func New(seed uint64, o Options) *Cluster {
	o.Namespaces = max(1, o.Namespaces)
	if o.Replicas == 0 {
		o.Replicas = defaultReplicas
	}
	c := &Cluster{}
	random := rand.New(rand.NewPCG(seed, 0))
	for i := range o.Namespaces {
		c.Namespaces = append(c.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
			Name:   namespaceName(i),
			Labels: map[string]string{"team": teamName(i), "env": pick(random, environments)},
		}})
	}
	m := maker{random: random, options: o, apps: max(1, o.Pods/o.Replicas)}
	c.maker = m
	for i := range o.Pods {
		c.Pods = append(c.Pods, m.pod(i))
	}
	for i := range o.Policies {
		c.Policies = append(c.Policies, m.policy(i))
	}
	return c
}

// Fill puts all objects into a store, policies last, as an agent does when it starts.
func (c *Cluster) Fill(w *policy.Store) {
	for _, o := range c.Namespaces {
		w.SetNamespace(o.Name, o.Labels)
	}
	for _, o := range c.Pods {
		w.SetPod(kubepod.Read(o))
	}
	for _, o := range c.Policies {
		w.SetPolicy(netpol.Read(o))
	}
}

// Blocks generates policies with n ipBlocks, 50 in each, from which they allow all packets to the pods of
// a namespace. Half of the blocks are in 20.0.0.0/8, the others anywhere.
func (c *Cluster) Blocks(seed uint64, n int) (all []*networkingv1.NetworkPolicy) {
	random := rand.New(rand.NewPCG(seed, 2))
	number := func() int { return random.IntN(256) }
	for i := range (n + 49) / 50 {
		var cidrs []string
		for j := range min(50, n-50*i) {
			if j%2 == 0 {
				cidrs = append(cidrs, fmt.Sprintf("20.%d.%d.0/24", number(), number()))
			} else {
				cidrs = append(cidrs, fmt.Sprintf("%d.%d.%d.%d/%d", 11+random.IntN(200), number(), number(), number(), 16+random.IntN(17)))
			}
		}
		all = append(all, BlockPolicy(c.Namespaces[i%len(c.Namespaces)].Name, fmt.Sprint("blocks-", i), cidrs...))
	}
	return all
}

// BlockPolicy returns a policy that allows all packets from some ipBlocks to the pods of a namespace.
func BlockPolicy(namespace, name string, cidrs ...string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	var from []networkingv1.NetworkPolicyPeer
	for _, cidr := range cidrs {
		from = append(from, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: cidr}})
	}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{From: from}}
	return p
}

// Keys generates n flows over TCP and IPv4. Half of them are from an app's clients to the
// port that the app's policy opens for them. Of the other half, one in ten is from outside
// the cluster, and the rest are between any two pods.
func (c *Cluster) Keys(seed uint64, n int) []filter.Key {
	random := rand.New(rand.NewPCG(seed, 1))
	keys := make([]filter.Key, n)
	for i := range keys {
		dst, port := random.IntN(len(c.Pods)), pick(random, portNumbers)
		src, _ := address(random.IntN(len(c.Pods)))
		switch random.IntN(20) {
		case 0:
			src = netip.AddrFrom4([4]byte{203, 0, 113, byte(random.Uint32())})
		case 1, 2, 3, 4, 5, 6, 7, 8, 9, 10:
			replicas := c.maker.options.Replicas
			first := replicas * c.maker.client(c.maker.appOf(dst))
			src, _ = address(min(first+random.IntN(replicas), len(c.Pods)-1))
			port = ClientPort
		}
		dstAddr, _ := address(dst)
		keys[i] = filter.NewKey(src, dstAddr, filter.TCP, uint16(port))
	}
	return keys
}

// Apps returns the number of apps. The pods of app i have the indices from i*Options.Replicas on.
func (c *Cluster) Apps() int { return c.maker.apps }

// Client returns the app whose pods may open connections to the pods of an app, at ClientPort.
func (c *Cluster) Client(app int) int { return c.maker.client(app) }

// ClientPort is the port on which every app serves its clients.
const ClientPort = 8080

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

// address returns the addresses of pod i. It leaves the first 65,536 addresses of 10.0.0.0/8
// and of fd00::/104 to the other hosts of a benchmark.
func address(i int) (v4, v6 netip.Addr) {
	i += 1 << 16
	a := [4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}
	b := [16]byte{0: 0xfd, 13: a[1], 14: a[2], 15: a[3]}
	return netip.AddrFrom4(a), netip.AddrFrom16(b)
}

// maker generates the objects of one cluster.
type maker struct {
	random  *rand.Rand
	options Options
	apps    int
}

func (m maker) appOf(pod int) int { return pod / m.options.Replicas % m.apps }

// namespaceOf returns the namespace of all pods of an app.
func (m maker) namespaceOf(app int) int { return app % m.options.Namespaces }

// neighbor returns the app that comes the given number of steps after an app in the same
// namespace. If there is no such app, it returns the namespace's first app, which may be the
// given app itself.
func (m maker) neighbor(app, steps int) int {
	if next := app + steps*m.options.Namespaces; next < m.apps {
		return next
	}
	return m.namespaceOf(app) % m.apps
}

// client returns the app whose pods are the clients of an app.
func (m maker) client(app int) int { return m.neighbor(app, 1) }

func (m maker) pod(i int) *corev1.Pod {
	app := m.appOf(i)
	v4, v6 := address(i)
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

// policy returns policy i. Each policy selects a different app if there are enough apps.
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
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From:  []networkingv1.NetworkPolicyPeer{{PodSelector: appSelector(m.client(app))}},
		Ports: []networkingv1.NetworkPolicyPort{tcpPort(intstr.FromInt32(ClientPort))},
	}}
	for range 1 + m.random.IntN(2) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: m.peers(app), Ports: m.ports()})
	}
	if m.random.IntN(4) == 0 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: m.peers(app), Ports: m.ports()}}
	}
	return p
}

func appSelector(app int) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": appName(app)}}
}

func tcpPort(port intstr.IntOrString) networkingv1.NetworkPolicyPort {
	protocol := corev1.ProtocolTCP
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &port}
}

// peers returns one or two peers for a rule about an app. Each is of a random kind.
func (m maker) peers(app int) []networkingv1.NetworkPolicyPeer {
	var peers []networkingv1.NetworkPolicyPeer
	for range 1 + m.random.IntN(2) {
		var peer networkingv1.NetworkPolicyPeer
		switch m.random.IntN(6) {
		case 0, 1:
			peer.PodSelector = appSelector(m.neighbor(app, 2+m.random.IntN(20)))
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

// ports returns one or two ports: numbers, a range or a name.
func (m maker) ports() []networkingv1.NetworkPolicyPort {
	var ports []networkingv1.NetworkPolicyPort
	for range 1 + m.random.IntN(2) {
		switch number := pick(m.random, portNumbers); m.random.IntN(6) {
		case 0:
			ports = append(ports, tcpPort(intstr.FromString("http")))
		case 1:
			port, last := tcpPort(intstr.FromInt32(30000)), int32(32767)
			port.EndPort = &last
			ports = append(ports, port)
		default:
			ports = append(ports, tcpPort(intstr.FromInt32(number)))
		}
	}
	return ports
}
