package cache_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

func pod(name, addr string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: labels},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: addr}}},
	}
}

func key(src, dst string, port uint16) filter.Key {
	return filter.NewKey(netip.MustParseAddr(src), netip.MustParseAddr(dst), filter.TCP, port)
}

// A flow is remembered when it is decided for the second time.
func TestRemembersAtTheSecondTime(t *testing.T) {
	w := policy.NewStore()
	w.SetPod(kubepod.Read(pod("a", "10.0.0.1", nil)))
	s, _ := w.Commit()
	flows := cache.NewFlows(16)
	k := key("10.0.0.1", "10.0.0.2", 80)
	for i, want := range []cache.Stats{
		{Misses: 1}, {Misses: 2, Size: 1}, {Misses: 2, Hits: 1, Size: 1}, {Misses: 2, Hits: 2, Size: 1},
	} {
		if v, _, _ := flows.Decide(s, &k); v != s.Decide(k) {
			t.Errorf("decision %d: %+v", i+1, v)
		}
		if got := flows.Stats(); got != want {
			t.Errorf("decision %d: %+v, want %+v", i+1, got, want)
		}
	}
	// Policies cannot tell this pod and this address outside the cluster from those before.
	w.SetPod(kubepod.Read(pod("b", "10.0.0.3", nil)))
	s, _ = w.Commit()
	newcomer := key("10.0.0.3", "192.0.2.1", 80)
	if v, _, fresh := flows.Decide(s, &newcomer); v != s.Decide(newcomer) || fresh {
		t.Errorf("a newcomer: %+v, %v", v, fresh)
	}
	// The pod gets another ID, and keeps it.
	w.SetPolicy(netpol.Read(denyAll("default")))
	s, _ = w.Commit()
	for range 3 {
		if v, _, _ := flows.Decide(s, &k); v.Action != filter.Deny {
			t.Errorf("after a change: %+v", v)
		}
	}
	if got, want := flows.Stats(), (cache.Stats{Misses: 4, Hits: 4, Size: 2}); got != want {
		t.Errorf("after a change: %+v, want %+v", got, want)
	}
}

// The engine holds packets of an address in the pod ranges without a pod. A verdict about it is not
// remembered: other addresses with its ID would get it although the engine has not recorded it.
func TestPendingAddressesAreNotRemembered(t *testing.T) {
	w := policy.NewStore()
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
	w.SetPod(kubepod.Read(pod("a", "10.0.0.1", nil)))
	s, _ := w.Commit()
	flows := cache.NewFlows(16)
	pending, outside := key("10.0.0.9", "10.0.0.1", 80), key("192.0.2.1", "10.0.0.1", 80)
	for range 3 {
		if _, ends, fresh := flows.Decide(s, &pending); !fresh || !ends.Pending() {
			t.Errorf("%+v, %v", ends, fresh)
		}
	}
	if _, ends, fresh := flows.Decide(s, &outside); !fresh || ends.Pending() {
		t.Errorf("%+v, %v", ends, fresh)
	}
}

func denyAll(namespace string) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "deny"},
		Spec:       networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}},
	}
}

func TestSizeIsBounded(t *testing.T) {
	s, _ := policy.NewStore().Commit()
	flows := cache.NewFlows(100)
	for range 2 {
		for port := range uint16(1000) {
			k := key("10.0.0.1", "10.0.0.2", port)
			flows.Decide(s, &k)
			flows.Decide(s, &k)
		}
	}
	if n := flows.Stats().Size; n != 100 {
		t.Errorf("%d flows are remembered, want 100", n)
	}
}

func TestOff(t *testing.T) {
	s, _ := policy.NewStore().Commit()
	flows := cache.NewFlows(0)
	k := key("10.0.0.1", "10.0.0.2", 1)
	for range 3 {
		if v, _, _ := flows.Decide(s, &k); v.Action != filter.Allow {
			t.Errorf("%+v", v)
		}
	}
	if got, want := flows.Stats(), (cache.Stats{Misses: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// scan decides one flow to each port.
func scan(flows *cache.Flows, s *policy.Snapshot) {
	for port := range uint16(60000) {
		k := key("10.0.0.9", "10.0.0.2", port)
		flows.Decide(s, &k)
	}
}

// Flows that alternate are all remembered when they are decided for the second time. They do not
// evict each other from the doorkeeper.
func TestRemembersAlternatingFlows(t *testing.T) {
	const n = 1024
	s, _ := policy.NewStore().Commit()
	flows := cache.NewFlows(4 * n)
	for range 3 {
		for port := range uint16(n) {
			k := key("10.0.0.1", "10.0.0.2", port)
			flows.Decide(s, &k)
		}
	}
	if got, want := flows.Stats(), (cache.Stats{Misses: 2 * n, Hits: n, Size: n}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestScanEvictsNothing(t *testing.T) {
	s, _ := policy.NewStore().Commit()
	flows := cache.NewFlows(64)
	k := key("10.0.0.1", "10.0.0.2", 80)
	flows.Decide(s, &k)
	flows.Decide(s, &k)
	scan(flows, s)
	before := flows.Stats().Hits
	flows.Decide(s, &k)
	if flows.Stats().Hits != before+1 {
		t.Error("a scan of ports has evicted a flow in use")
	}
}

// churn makes random changes to a small store.
type churn struct {
	*rand.Rand
	*policy.Store
}

var (
	names = []string{"a", "b", "c", "d", "e", "f"}
	roles = []string{"db", "web", "none"}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func (c churn) labels() map[string]string { return map[string]string{"role": pick(c.Rand, roles)} }

func (c churn) addr() string {
	if c.IntN(2) == 0 {
		return fmt.Sprintf("10.0.0.%d", 1+c.IntN(8))
	}
	return fmt.Sprintf("fd00::%d", 1+c.IntN(8))
}

func (c churn) selector() *metav1.LabelSelector {
	if c.IntN(3) == 0 {
		return &metav1.LabelSelector{}
	}
	return &metav1.LabelSelector{MatchLabels: c.labels()}
}

func (c churn) policy() *networkingv1.NetworkPolicy {
	port := pick(c.Rand, []intstr.IntOrString{intstr.FromInt32(80), intstr.FromInt32(81), intstr.FromString("http")})
	ports := []networkingv1.NetworkPolicyPort{{Port: &port}}
	if c.IntN(4) == 0 {
		ports = nil
	}
	peer := pick(c.Rand, []networkingv1.NetworkPolicyPeer{
		{PodSelector: c.selector()}, {NamespaceSelector: c.selector()}, {NamespaceSelector: c.selector(), PodSelector: c.selector()},
		{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/29", Except: []string{"10.0.0.2/32"}}},
		{IPBlock: &networkingv1.IPBlock{CIDR: "fd00::/125"}},
	})
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: pick(c.Rand, names[:2]), Name: pick(c.Rand, names)},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: *c.selector()},
	}
	if c.IntN(2) == 0 {
		p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{Ports: ports, From: []networkingv1.NetworkPolicyPeer{peer}}}
	} else {
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{Ports: ports, To: []networkingv1.NetworkPolicyPeer{peer}}}
	}
	return p
}

// step makes one random change.
func (c churn) step() {
	ns, name := pick(c.Rand, names[:2]), pick(c.Rand, names)
	switch c.IntN(9) {
	case 0, 1, 2:
		p := pod(name, c.addr(), c.labels())
		p.Namespace = ns
		p.CreationTimestamp = metav1.Unix(int64(c.IntN(3)), 0)
		p.Spec.Containers = []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: int32(80 + c.IntN(2))}}}}
		if c.IntN(4) == 0 {
			p.Status.HostIPs = []corev1.HostIP{{IP: c.addr()}}
		}
		c.SetPod(kubepod.Read(p))
	case 3:
		c.DeletePod(ns, name)
	case 4:
		c.SetNamespace(ns, c.labels())
	case 5:
		c.DeleteNamespace(ns)
	case 6:
		c.SetPolicy(netpol.Read(c.policy()))
	case 7:
		c.DeletePolicy(netpol.Ref(ns, name))
	case 8:
		c.SetNode([]netip.Addr{netip.MustParseAddr(c.addr())})
	}
}

// After each of many random changes of policies, pods, namespaces and addresses, a cache
// that remembers all flows returns the actions and reasons of the snapshot: no old verdict
// is used.
func TestOldVerdictsNeverAnswer(t *testing.T) {
	const stores, steps = 25, 150
	var hits uint64
	denied := 0
	for seed := range uint64(stores) {
		c := churn{rand.New(rand.NewPCG(seed, 1)), policy.NewStore()}
		flows := cache.NewFlows(4096)
		var keys []filter.Key
		for range 150 {
			keys = append(keys, key(c.addr(), c.addr(), uint16(80+c.IntN(3))))
		}
		for step := range steps {
			c.step()
			s, _ := c.Commit()
			for range 2 { // two rounds, because a flow is remembered when it is decided for the second time
				for _, k := range keys {
					want := s.Decide(k)
					got, _, _ := flows.Decide(s, &k)
					if got.Action != want.Action || got.Reason != want.Reason {
						t.Fatalf("seed %d, step %d: %v is %v, %v; the snapshot decides %v, %v", seed, step, k, got.Action, got.Reason, want.Action, want.Reason)
					}
					if got.Action == filter.Deny {
						denied++
					}
				}
			}
		}
		hits += flows.Stats().Hits
	}
	if hits < 5e5 || denied < 5e4 {
		t.Errorf("%d hits, %d denied: too few to test much", hits, denied)
	}
}

func TestDecisionsDoNotAllocate(t *testing.T) {
	s, _ := policy.NewStore().Commit()
	flows := cache.NewFlows(1024)
	hit := key("10.0.0.1", "10.0.0.2", 80)
	flows.Decide(s, &hit)
	flows.Decide(s, &hit)
	if n := testing.AllocsPerRun(1000, func() { flows.Decide(s, &hit) }); n != 0 {
		t.Errorf("a hit costs %v allocations", n)
	}
	port := uint16(0)
	miss := key("10.0.0.9", "10.0.0.2", 0)
	if n := testing.AllocsPerRun(10000, func() { port++; miss.Port = port; flows.Decide(s, &miss) }); n != 0 {
		t.Errorf("a flow that is decided for the first time costs %v allocations", n)
	}
}
