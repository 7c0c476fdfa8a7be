package bpf

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// The kernel reads the first bytes of an IDKey as a key of the map flows.
func TestKeyLayout(t *testing.T) {
	spec, err := loadProgram()
	if err != nil {
		t.Fatal(err)
	}
	var k policy.IDKey
	end := unsafe.Offsetof(k.Transport) + unsafe.Sizeof(k.Transport)
	if got := spec.Maps[programMapFlows].KeySize; uintptr(got) != end {
		t.Errorf("a key of the map has %d bytes, an IDKey %d", got, end)
	}
	for name, size := range map[string][2]uintptr{
		programMapPrefixes: {uintptr(spec.Maps[programMapPrefixes].ValueSize), unsafe.Sizeof(unowned{})},
		"endpoints":        {uintptr(spec.Maps[programMapEndpoints].InnerMap.ValueSize), unsafe.Sizeof(endpoint{})},
	} {
		if size[0] != size[1] {
			t.Errorf("%s: a value of the map has %d bytes, that of Go %d", name, size[0], size[1])
		}
	}
}

// fakePrefixes is the map prefixes without a kernel.
type fakePrefixes map[prefix]unowned

func (m fakePrefixes) Update(key, value any, _ ebpf.MapUpdateFlags) error {
	m[key.(prefix)] = value.(unowned)
	return nil
}

func (m fakePrefixes) Delete(key any) error {
	delete(m, key.(prefix))
	return nil
}

// Pods that do not agree about the addresses of their node have different numbers, and addresses of
// both have none of them. The addresses of the other family do not matter, nor does the order.
func TestHosts(t *testing.T) {
	addrs := func(list ...string) (all []netip.Addr) {
		for _, a := range list {
			all = append(all, netip.MustParseAddr(a))
		}
		return all
	}
	pod := netip.MustParseAddr("10.0.0.1")
	a, b, c := addrs("192.0.2.1", "192.0.2.2", "2001:db8::1"), addrs("192.0.2.2", "192.0.2.1"), addrs("192.0.2.2")
	h := newHosts(0)
	h.use(pod, a)
	h.use(pod, b)
	if first := h.number(pod, a); first == 0 || h.number(pod, b) != first || h.at(a[0]) != first || h.at(a[1]) != first || h.at(a[2]) != 0 {
		t.Errorf("%d and %d, at the addresses %d, %d, %d", first, h.number(pod, b), h.at(a[0]), h.at(a[1]), h.at(a[2]))
	}
	h.use(pod, c)
	if h.number(pod, c) == h.number(pod, a) || h.at(a[0]) != h.number(pod, a) || h.at(c[0]) != several {
		t.Errorf("%d and %d, at the addresses %d, %d", h.number(pod, a), h.number(pod, c), h.at(a[0]), h.at(c[0]))
	}
	h.move(pod, c, nil)
	if h.number(pod, c) != 0 || h.at(c[0]) != h.number(pod, a) {
		t.Errorf("without the last: %d, at the address %d", h.number(pod, c), h.at(c[0]))
	}
	h.release(pod, a)
	h.release(pod, b)
	if len(h.known)+len(h.of) > 0 {
		t.Errorf("without all: %v, %v", h.known, h.of)
	}
}

// BenchmarkPlan measures what a change of one CIDR costs Publish, beside the endpoints, in a cluster
// with 10,000 other CIDRs and with the addresses of 1,000 nodes.
func BenchmarkPlan(b *testing.B) {
	w := policy.NewStore()
	name := func(n string, blocks ...string) {
		p := &policy.Policy{Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "a", Name: n}, Tier: policy.NetworkPolicy, Subject: policy.Subject{Namespace: "a", Pods: labels.Everything()}, Isolates: [2]bool{filter.Ingress: true}}
		var rule policy.Rule
		rule.Action = policy.Accept
		for _, cidr := range blocks {
			rule.Peers = append(rule.Peers, policy.Peer{Block: &policy.Block{CIDR: netip.MustParsePrefix(cidr)}})
		}
		p.Rules[filter.Ingress] = []policy.Rule{rule}
		w.SetPolicy(p)
	}
	var many []string
	for i := range 10_000 {
		many = append(many, fmt.Sprintf("100.%d.%d.0/24", i>>8, i&255))
	}
	name("many", many...)
	for i := range 1000 {
		w.SetPod(&policy.Pod{Namespace: "a", Name: fmt.Sprint(i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})}, Hosts: []netip.Addr{netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)})}})
	}
	for _, cidr := range []string{"203.0.113.0/24", "0.0.0.0/1", "128.0.0.0/1"} {
		b.Run(cidr, func(b *testing.B) {
			c := &Cache{prefixes: newPrefixTable()}
			c.prefixes.in = make(fakePrefixes)
			step := func() {
				s, changes := w.Commit()
				b.StartTimer()
				set, removed := c.prefixChanges(s)
				all := c.planPrefixes(s, slices.Collect(owners(s, slices.Values(changes))), set, removed)
				if err := c.prefixes.begin(all); err != nil {
					b.Fatal(err)
				}
				if err := c.prefixes.end(all); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				c.snapshot, c.tables = s, new(tables)
			}
			step()
			b.ResetTimer()
			for i := range b.N {
				name("one", []string{cidr, "203.0.114.0/24"}[i%2])
				step()
			}
		})
	}
}
