// Package worstcase generates policies as a hostile tenant might write them: as expensive to
// compile as possible for their size. It also generates the pods that they select.
package worstcase

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Largest is the size in bytes of the largest object that an API server stores: etcd's
// limit for a request.
const Largest = 1536 << 10

// Layouts of the port ranges of the rules.
const (
	Nested = iota
	Overlapping
	Apart
	Alike
	Layouts // number of the layouts above
)

// Namespace is the namespace of the policies and pods.
const Namespace = "attacker"

// Recipe describes a large policy and the pods of its cluster. The fields that count ports, port
// names, address blocks and peers state how many of them each rule has.
type Recipe struct {
	Layout               int // layout of the port ranges
	Ports, Names, Blocks int
	Excepts              int // number of exceptions of each block
	V6                   bool
	In, NotIn, Exists    int // peers by labels, with these operators
	Absent               int // peers by labels, with the operator DoesNotExist
	Values               int // number of values in each In and NotIn
	Namespaces           int // peers by labels of namespaces
	Reuse                int // rule i has the peers of rule i%Reuse; 0 means that the peers of rules do not repeat
	Requirements         int // if not 0, each rule has one more peer, with this number of label requirements for pods of all namespaces
	Both                 int // peers by labels of namespaces and pods
	Identities           int // number of pods with distinct labels, in the policy's namespace
	PodNamespaces        int // number of namespaces of these pods, if there is more than one
}

func (m Recipe) String() string { type plain Recipe; return fmt.Sprintf("%+v", plain(m)) }

// Policy returns the recipe's policy with the given number of rules.
func (m Recipe) Policy(name string, rules int) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name}}
	r := rand.New(rand.NewPCG(uint64(rules), 1))
	for i := range rules {
		rule := networkingv1.NetworkPolicyIngressRule{}
		for j := range m.Ports {
			rule.Ports = append(rule.Ports, m.port(r, i*m.Ports+j, rules*m.Ports))
		}
		for j := range m.Names {
			name := intstr.FromString(fmt.Sprintf("p-%d", r.IntN(1+4*m.Names)+j))
			rule.Ports = append(rule.Ports, networkingv1.NetworkPolicyPort{Port: &name})
		}
		if m.Reuse > 0 {
			i %= m.Reuse
		}
		rule.From = m.peers(i)
		p.Spec.Ingress = append(p.Spec.Ingress, rule)
	}
	return p
}

func (m Recipe) port(r *rand.Rand, i, of int) networkingv1.NetworkPolicyPort {
	const ports = 65535
	low, high := 1, ports
	switch m.Layout {
	case Nested:
		half := 1 + i%(ports/2)
		low, high = half, ports-half
	case Overlapping:
		low, high = 1+r.IntN(ports), 1+r.IntN(ports)
	case Apart:
		width := max(1, ports/max(1, of))
		low = 1 + i*width%ports
		high = low + width/2
	}
	low, high = min(low, high), min(max(low, high), ports)
	port, end := intstr.FromInt32(int32(low)), int32(high)
	return networkingv1.NetworkPolicyPort{Port: &port, EndPort: &end}
}

func (m Recipe) peers(rule int) (peers []networkingv1.NetworkPolicyPeer) {
	for j := range m.Blocks {
		peers = append(peers, networkingv1.NetworkPolicyPeer{IPBlock: m.block(rule*m.Blocks + j)})
	}
	expression := func(op metav1.LabelSelectorOperator, i int) *metav1.LabelSelector {
		e := metav1.LabelSelectorRequirement{Key: "id", Operator: op}
		switch op {
		case metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn:
			for v := range max(1, m.Values) {
				e.Values = append(e.Values, fmt.Sprintf("v%d", i*max(1, m.Values)+v))
			}
		default:
			e.Key = fmt.Sprintf("k%d", i)
		}
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{e}}
	}
	for op, n := range map[metav1.LabelSelectorOperator]int{
		metav1.LabelSelectorOpIn: m.In, metav1.LabelSelectorOpNotIn: m.NotIn,
		metav1.LabelSelectorOpExists: m.Exists, metav1.LabelSelectorOpDoesNotExist: m.Absent,
	} {
		for j := range n {
			peers = append(peers, networkingv1.NetworkPolicyPeer{PodSelector: expression(op, rule*n+j)})
		}
	}
	for j := range m.Namespaces {
		peers = append(peers, networkingv1.NetworkPolicyPeer{NamespaceSelector: expression(metav1.LabelSelectorOpNotIn, rule*m.Namespaces+j)})
	}
	if m.Requirements > 0 {
		all := &metav1.LabelSelector{}
		for j := range m.Requirements {
			all.MatchExpressions = append(all.MatchExpressions, expression(metav1.LabelSelectorOpDoesNotExist, 1<<20+rule*m.Requirements+j).MatchExpressions...)
		}
		peers = append(peers, networkingv1.NetworkPolicyPeer{NamespaceSelector: &metav1.LabelSelector{}, PodSelector: all})
	}
	for j := range m.Both {
		peers = append(peers, networkingv1.NetworkPolicyPeer{
			NamespaceSelector: expression(metav1.LabelSelectorOpNotIn, rule*m.Both+j),
			PodSelector:       expression(metav1.LabelSelectorOpNotIn, rule*m.Both+j+1),
		})
	}
	return peers
}

func (m Recipe) block(i int) *networkingv1.IPBlock {
	addr := netip.AddrFrom4([4]byte{byte(1 + i>>16), byte(i >> 8), byte(i), 1})
	if m.V6 {
		addr = netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 4: byte(i >> 16), 5: byte(i >> 8), 6: byte(i), 15: 1})
	}
	if m.Excepts == 0 {
		return &networkingv1.IPBlock{CIDR: netip.PrefixFrom(addr, addr.BitLen()).String()}
	}
	b := &networkingv1.IPBlock{CIDR: "0.0.0.0/0"}
	if m.V6 {
		b.CIDR = "::/0"
	}
	for range m.Excepts {
		b.Except = append(b.Except, netip.PrefixFrom(addr, addr.BitLen()).String())
		addr = addr.Next().Next()
	}
	return b
}

// Pods returns the recipe's pods, each with different labels.
func (m Recipe) Pods() (list []*corev1.Pod) {
	for i := range m.Identities {
		namespace := Namespace
		if m.PodNamespaces > 0 && i > 0 {
			namespace = fmt.Sprintf("ns-%d", i%m.PodNamespaces)
		}
		list = append(list, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprintf("pod-%d", i), Labels: map[string]string{
				"id": fmt.Sprintf("v%d", i), fmt.Sprintf("k%d", i): "",
			}},
			Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}).String()}}},
		})
	}
	return list
}

// OfSize returns the recipe's policy with as many rules as fit into size bytes in etcd, but with
// at least one.
func (m Recipe) OfSize(name string, size int) *networkingv1.NetworkPolicy {
	few := m.Policy(name, 8)
	rules := max(1, 8*size/max(1, few.Size()))
	p := m.Policy(name, rules)
	for p.Size() > size && rules > 1 {
		rules = max(1, min(rules-1, rules*size/p.Size()))
		p = m.Policy(name, rules)
	}
	return p
}

// Named is a recipe with a name.
type Named struct {
	Name string
	Recipe
}

// Known returns the recipes of the benchmark: the most expensive ones found until now. The name
// of a recipe says what makes it expensive.
func Known() []Named {
	return []Named{
		{"nested-ports", Recipe{Layout: Nested, Ports: 1, Blocks: 5, Identities: 1}},
		{"nested-ports-1-block", Recipe{Layout: Nested, Ports: 1, Blocks: 1, Identities: 1}},
		{"overlapping-ports-products", Recipe{Layout: Overlapping, Ports: 12, Blocks: 12, Identities: 1}},
		{"names-products", Recipe{Names: 12, Blocks: 12, Identities: 1}},
		{"NotIn", Recipe{Layout: Alike, Ports: 1, NotIn: 100, Values: 1, Identities: 3000}},
		{"Exists", Recipe{Layout: Alike, Ports: 1, Exists: 100, Absent: 100, Identities: 3000}},
		{"namespaces", Recipe{Layout: Alike, Ports: 1, Namespaces: 100, Identities: 1000, PodNamespaces: 1000}},
		{"namespaces-and-pods", Recipe{Layout: Alike, Ports: 1, Both: 100, Identities: 1000, PodNamespaces: 1000}},
		{"requirements", Recipe{Layout: Alike, Ports: 1, Requirements: 1000, Identities: 3000}},
		{"excepts", Recipe{Layout: Nested, Ports: 1, Blocks: 1, Excepts: 50, Identities: 1}},
	}
}
