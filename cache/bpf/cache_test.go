package bpf_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
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

// The pods of most tests. db is isolated for ingress and lets web in at port 6379.
var (
	db     = netip.MustParseAddr("10.0.0.2")
	web    = netip.MustParseAddr("10.0.0.3")
	other  = netip.MustParseAddr("10.0.0.4")
	remote = netip.MustParseAddr("198.51.100.7")
)

func podOf(name string, addr netip.Addr) *corev1.Pod {
	p := &corev1.Pod{}
	p.Namespace, p.Name, p.Labels = "default", name, map[string]string{"name": name}
	p.Status.PodIPs = []corev1.PodIP{{IP: addr.String()}}
	return p
}

// letIn returns an ingress policy for one pod (into). The policy allows connections from one other
// pod (from) to port 6379, and nothing else.
func letIn(into, from string) *networkingv1.NetworkPolicy {
	port := intstr.FromInt32(6379)
	p := &networkingv1.NetworkPolicy{}
	p.Namespace, p.Name = "default", into
	p.Spec.PodSelector.MatchLabels = map[string]string{"name": into}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		Ports: []networkingv1.NetworkPolicyPort{{Port: &port}},
		From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": from}}}},
	}}
	return p
}

// newFixture returns a cache, its programs, and a user, which decides in user space. The store of
// the user has the pods and the policy of db, but has not committed them yet.
func newFixture(t testing.TB, opts bpf.Options, ranges []netip.Prefix) (*bpf.Cache, *programs, *user) {
	t.Helper()
	c := newCache(t, opts)
	p, u := load(t, c), newUser(t, c, ranges)
	for name, addr := range map[string]netip.Addr{"db": db, "web": web, "other": other} {
		u.store.SetPod(kubepod.Read(podOf(name, addr)))
	}
	u.store.SetPolicy(netpol.Read(letIn("db", "web")))
	return c, p, u
}

func redis(from netip.Addr) []byte { return packetOf(from, db, filter.TCP, 6379, 20) }

// The programs match nothing until a snapshot is published and a verdict is remembered. From then
// on they repeat the verdict.
func TestRemembers(t *testing.T) {
	c, p, u := newFixture(t, bpf.Options{}, nil)
	if got := p.run(redis(web)); got != noMatch {
		t.Errorf("before a snapshot was published: %s", got)
	}
	u.commit(t)
	for from, want := range map[netip.Addr]verdict{web: allowed, other: denied, remote: denied} {
		if got := p.run(redis(from)); got != noMatch {
			t.Errorf("from %s, before a verdict was remembered: %s", from, got)
		}
		u.evaluate(redis(from))
		if got := p.run(redis(from)); got != want {
			t.Errorf("from %s, after a verdict was remembered: %s, want %s", from, got, want)
		}
	}
	if got := p.run(packetOf(web, db, filter.TCP, 6380, 20)); got != noMatch {
		t.Errorf("another port: %s", got)
	}
	if got := p.run(packetOf(db, other, filter.UDP, 9, 20)); got != allowed {
		t.Errorf("no policy isolates an end: %s", got)
	}
	stats, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if stats.Open != 1 || stats.Allowed != 1 || stats.Denied != 2 || stats.Failed != 0 || stats.Published <= 0 {
		t.Errorf("stats: %+v", stats)
	}
}

// manyPackets returns packets between two addresses with different ports and protocols.
func manyPackets(src, dst netip.Addr) (all [][]byte) {
	for _, port := range []uint16{0, 80, 6378, 6379, 65535} {
		for _, protocol := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
			all = append(all, packetOf(src, dst, protocol, port, 20))
		}
	}
	return append(all, packetOf(src, dst, filter.ICMP, 0, 20))
}

// If a verdict applies to all packets between two addresses, the kernel remembers it for
// this pair of addresses, whatever the protocol and port. So only the first packet of a
// port scan reaches user space. Such a verdict becomes invalid by the same changes as any other.
func TestPairs(t *testing.T) {
	_, p, u := newFixture(t, bpf.Options{}, nil)
	all := letIn("db", "web")
	all.Spec.Ingress[0].Ports = nil
	u.store.SetPolicy(netpol.Read(all))
	u.commit(t)
	expect := func(from netip.Addr, want verdict) {
		t.Helper()
		for _, data := range manyPackets(from, db) {
			if got := p.run(data); got != want {
				t.Errorf("%x: %s, want %s", data, got, want)
			}
		}
	}
	for from, want := range map[netip.Addr]verdict{web: allowed, other: denied, remote: denied} {
		expect(from, noMatch)
		u.evaluate(packetOf(from, db, filter.UDP, 53, 20))
		expect(from, want)
	}
	// Now the rule names a port, so that one verdict does not apply to all packets.
	u.store.SetPolicy(netpol.Read(letIn("db", "web")))
	u.commit(t)
	expect(web, noMatch)
	for _, data := range manyPackets(web, db) {
		want := denied
		if u.evaluate(data) == filter.Allow {
			want = allowed
		}
		if got := p.run(data); got != want {
			t.Errorf("%x: %s, want %s", data, got, want)
		}
	}
	if p.run(redis(web)) != allowed {
		t.Error("the allowed port is not allowed")
	}
}

// If a pod is isolated in both directions and no rule allows anything, the kernel denies
// packets between this pod and other pods, and allows those from the pod to itself, even if it
// remembers no verdict about them. It leaves packets between the pod and an unknown address to user
// space until it remembers a verdict, because that may be an address of the node.
func TestClosed(t *testing.T) {
	_, p, u := newFixture(t, bpf.Options{}, nil)
	u.store.SetNode([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	none := letIn("db", "web")
	none.Spec.Ingress = nil
	none.Spec.PolicyTypes = append(none.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	u.store.SetPolicy(netpol.Read(none))
	u.commit(t)
	for _, one := range []struct {
		src, dst     netip.Addr
		first, later verdict
	}{
		{web, db, denied, denied},
		{db, web, denied, denied},
		{db, db, allowed, allowed},
		{remote, db, noMatch, denied},
		{db, remote, noMatch, denied},
		{netip.MustParseAddr("192.0.2.1"), db, allowed, allowed},
		{web, other, allowed, allowed},
	} {
		for i, data := range manyPackets(one.src, one.dst) {
			if got := p.run(data); i == 0 && got != one.first || i > 0 && got != one.later {
				t.Errorf("packet %d from %s to %s: %s, want %s for the first and %s for later ones", i, one.src, one.dst, got, one.first, one.later)
			}
			u.evaluate(data)
		}
	}
	fragment := packetOf(web, db, filter.TCP, 80, 20)
	fragment[6] = 0x20
	if got := p.run(fragment); got != denied {
		t.Errorf("a fragment: %s", got)
	}
}

// orderedPolicy returns a policy of a tier for all pods of the namespace default, with one rule
// for egress.
func orderedPolicy(tier policy.Tier, rule policy.Rule) *policy.Policy {
	return &policy.Policy{
		Ref: policy.Ref{Kind: "Ordered", Namespace: "default", Name: tier.String()}, Tier: tier,
		Subject: policy.Subject{Namespace: "default", Pods: labels.Everything()},
		Rules:   [2][]policy.Rule{filter.Egress: {rule}},
	}
}

// Without a policy, the BPF programs allow every packet from a pod to its node. If an ordered
// rule may deny such packets, the programs leave each one to user space until they have its
// verdict, and then repeat that verdict, also in the middle of a connection. Packets from the
// node, and packets of pods that no policy concerns, still need no verdict.
func TestToNode(t *testing.T) {
	node, closed := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.66")
	ack := packetOf(web, node, filter.TCP, 22, 20)
	ack[20+13] = 0x10
	for _, tier := range []policy.Tier{policy.Admin, policy.Baseline} {
		_, p, u := newFixture(t, bpf.Options{}, nil)
		u.store.SetNode([]netip.Addr{node})
		none := letIn("closed", "web")
		none.Spec.Ingress, none.Spec.PolicyTypes = nil, []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
		u.store.SetPod(kubepod.Read(podOf("closed", closed)))
		u.store.SetPolicy(netpol.Read(none))
		u.commit(t)
		ssh, dns := packetOf(web, node, filter.TCP, 22, 20), packetOf(web, node, filter.UDP, 53, 20)
		for _, data := range [][]byte{ssh, dns, ack, packetOf(closed, node, filter.TCP, 22, 20)} {
			if got := p.run(data); got != allowed {
				t.Errorf("%s, before there is a policy: %s", tier, got)
			}
		}
		u.store.SetPolicy(orderedPolicy(tier, policy.Rule{Action: policy.Deny, Ports: []policy.PortRange{{Protocol: filter.TCP, High: 65535}}}))
		u.commit(t)
		wantClosed := denied
		if tier == policy.Baseline {
			wantClosed = allowed // a NetworkPolicy isolates this pod: the tier Baseline is not evaluated, and its node is open to it
		}
		for i, one := range []struct {
			data         []byte
			first, later verdict
		}{
			{ssh, noMatch, denied},
			{ack, denied, denied},
			{dns, noMatch, allowed},
			{packetOf(node, web, filter.TCP, 22, 20), allowed, allowed},
			{packetOf(remote, node, filter.TCP, 22, 20), allowed, allowed},
			{packetOf(closed, node, filter.TCP, 22, 20), map[bool]verdict{true: noMatch, false: allowed}[tier == policy.Admin], wantClosed},
		} {
			if got := p.run(one.data); got != one.first {
				t.Errorf("%s, packet %d: %s, want %s", tier, i, got, one.first)
			}
			u.evaluate(one.data)
			if got := p.run(one.data); got != one.later {
				t.Errorf("%s, packet %d, later: %s, want %s", tier, i, got, one.later)
			}
		}
		u.store.DeletePolicy(policy.Ref{Kind: "Ordered", Namespace: "default", Name: tier.String()})
		u.commit(t)
		if got := p.run(ssh); got != allowed {
			t.Errorf("%s, after the policy: %s", tier, got)
		}
	}
}

// With an Admin policy for all pods that may deny packets, the BPF programs need a remembered
// verdict, as with a NetworkPolicy. If the Admin policy can deny nothing, they allow packets
// between pods without another policy, and need no verdict.
func TestAdminPolicyForAllPods(t *testing.T) {
	_, p, u := newFixture(t, bpf.Options{}, nil)
	u.store.SetPolicy(orderedPolicy(policy.Admin, policy.Rule{Action: policy.Pass}))
	u.commit(t)
	data := packetOf(web, other, filter.TCP, 80, 20)
	if got := p.run(data); got != allowed {
		t.Errorf("a policy that denies nothing: %s", got)
	}
	u.store.SetPolicy(orderedPolicy(policy.Admin, policy.Rule{Action: policy.Deny, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 443, High: 443}}}))
	u.commit(t)
	for port, want := range map[uint16]verdict{80: allowed, 443: denied} {
		data := packetOf(web, other, filter.TCP, port, 20)
		if got := p.run(data); got != noMatch {
			t.Errorf("port %d: %s before a verdict", port, got)
		}
		u.evaluate(data)
		if got := p.run(data); got != want {
			t.Errorf("port %d: %s, want %s", port, got, want)
		}
	}
}

// User space checks both directions of a packet in the middle of a connection. So if policies
// isolate an end in the direction opposite to the packet's, the BPF programs leave such a packet
// to user space. A remembered denial applies to all packets.
func TestMidStreamIsLeftToUserSpace(t *testing.T) {
	_, p, u := newFixture(t, bpf.Options{}, nil)
	u.commit(t)
	u.evaluate(redis(web))
	u.evaluate(redis(other))
	v6 := netip.MustParseAddr("fd00::2")
	pod := podOf("db", db)
	pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: v6.String()})
	u.store.SetPod(kubepod.Read(pod))
	u.commit(t)
	edit := func(data []byte, at int, value byte) []byte {
		data = append([]byte(nil), data...)
		data[len(data)-len(packetBody(data))+at] = value
		return data
	}
	remote6 := netip.MustParseAddr("2001:db8::9")
	options := packetOf(db, remote, filter.TCP, 80, 24)
	copy(options[20:], append([]byte{1, 1, 1, 1}, options[20:40]...))
	options[0] = 0x46
	for _, one := range []struct {
		name string
		data []byte
		want verdict
	}{
		{"SYN out of an isolated pod", packetOf(db, remote, filter.TCP, 80, 20), allowed},
		{"SYN with ECN", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0xc2), allowed},
		{"ACK", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x10), noMatch},
		{"SYN+ACK", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x12), noMatch},
		{"RST", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x04), noMatch},
		{"FIN+ACK", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x11), noMatch},
		{"SYN+FIN", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x03), noMatch},
		{"no flags", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0), noMatch},
		{"SYN behind IP options", options, noMatch},
		{"IPv6, SYN", packetOf(v6, remote6, filter.TCP, 80, 20), allowed},
		{"IPv6, ACK", edit(packetOf(v6, remote6, filter.TCP, 80, 20), 13, 0x10), noMatch},
		{"IPv6, extension header", packetOf(v6, remote6, 60, 80, 20), noMatch},
		{"SCTP INIT", packetOf(db, remote, filter.SCTP, 80, 20), allowed},
		{"SCTP HEARTBEAT", edit(packetOf(db, remote, filter.SCTP, 80, 20), 12, 4), noMatch},
		{"UDP", packetOf(db, remote, filter.UDP, 80, 20), allowed},
		{"ICMP", packetOf(db, remote, filter.ICMP, 0, 20), allowed},
		{"ACK, remembered denial", edit(redis(other), 13, 0x10), denied},
		{"ACK with no isolated end", edit(packetOf(web, other, filter.TCP, 80, 20), 13, 0x10), allowed},
		{"ACK into an isolated pod", edit(redis(web), 13, 0x10), allowed},
	} {
		if got := p.run(one.data); got != one.want {
			t.Errorf("%s: %s, want %s", one.name, got, one.want)
		}
	}
}

// A change of either end invalidates a remembered verdict. A change elsewhere does not.
func TestForgets(t *testing.T) {
	_, p, u := newFixture(t, bpf.Options{}, nil)
	u.commit(t)
	u.evaluate(redis(web))
	u.store.SetPod(kubepod.Read(podOf("new", remote)))
	u.commit(t)
	if got := p.run(redis(web)); got != allowed {
		t.Errorf("after a change elsewhere: %s", got)
	}
	relabeled := podOf("web", web)
	relabeled.Labels["name"] = "other"
	u.store.SetPod(kubepod.Read(relabeled))
	u.commit(t)
	if got := p.run(redis(web)); got != noMatch {
		t.Errorf("after the source's labels changed: %s", got)
	}
	u.evaluate(redis(web))
	if got := p.run(redis(web)); got != denied {
		t.Errorf("after it was evaluated again: %s", got)
	}
	u.store.DeletePolicy(netpol.Ref("default", "db"))
	u.commit(t)
	if got := p.run(redis(web)); got != allowed {
		t.Errorf("after the policy was deleted: %s", got)
	}
}

// A verdict that is inserted after the ID of an end has changed is not used for it.
func TestLateVerdict(t *testing.T) {
	c, p, u := newFixture(t, bpf.Options{}, nil)
	u.commit(t)
	s := u.published.Snapshot()
	k := idKey(s, filter.NewKey(web, db, filter.TCP, 6379))
	u.store.SetPolicy(netpol.Read(letIn("db", "other")))
	u.commit(t)
	c.NewWriter().Remember(k, filter.Allow)
	if got := p.run(redis(web)); got != noMatch {
		t.Errorf("with a verdict of the previous snapshot: %s", got)
	}
}

// Packets of unknown addresses in pod ranges are left to user space, even if a verdict about them is
// remembered.
func TestUnknownPodsAreLeftToUserSpace(t *testing.T) {
	c, p, u := newFixture(t, bpf.Options{}, nil)
	u.commit(t)
	u.evaluate(redis(remote))
	out := packetOf(web, remote, filter.TCP, 443, 20)
	testUnknownPods(t, p, out, func(ranges []netip.Prefix) { u.store.SetPodRanges(ranges); u.commit(t) })
	testUnknownPods(t, p, out, func(starting []netip.Prefix) {
		if err := c.SetStarting(starting); err != nil {
			t.Fatal(err)
		}
	})
}

func testUnknownPods(t *testing.T, p *programs, out []byte, set func([]netip.Prefix)) {
	t.Helper()
	for _, in := range []bool{false, true, false} {
		var ranges []netip.Prefix
		if in {
			ranges = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("fd00::/64")}
		}
		set(ranges)
		for _, one := range []struct {
			data []byte
			want verdict
		}{{out, allowed}, {redis(remote), denied}} {
			if in {
				one.want = noMatch
			}
			if got := p.run(one.data); got != one.want {
				t.Errorf("address in a pod range is %v: %s, want %s", in, got, one.want)
			}
		}
	}
}

// Packets between two unknown addresses are left to user space, although user space lets them pass:
// after the agent has ended, the addresses may belong to new pods.
func TestUnknownAddressesAreLeftToUserSpace(t *testing.T) {
	_, p, u := newFixture(t, bpf.Options{}, nil)
	u.commit(t)
	data := packetOf(remote, netip.MustParseAddr("198.51.100.8"), filter.TCP, 80, 20)
	if action := u.evaluate(data); action != filter.Allow {
		t.Fatalf("user space: %s, want %s", action, filter.Allow)
	}
	if got := p.run(data); got != noMatch {
		t.Errorf("kernel: %s, want %s", got, noMatch)
	}
}

// With AllowedOnly, the program that denies is not pinned.
func TestAllowedOnly(t *testing.T) {
	c, p, u := newFixture(t, bpf.Options{AllowedOnly: true}, nil)
	u.commit(t)
	u.evaluate(redis(web))
	u.evaluate(redis(other))
	if got := p.run(redis(web)); got != allowed {
		t.Errorf("allowed: %s", got)
	}
	if got := p.run(redis(other)); got != noMatch || c.DenyPin() != "" {
		t.Errorf("denied: %s, with a program pinned at %q", got, c.DenyPin())
	}
}

// The tables of endpoints grow when the endpoints do not fit, and remembered verdicts stay valid.
func TestGrows(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 70000 pods")
	}
	_, p, u := newFixture(t, bpf.Options{}, nil)
	u.commit(t)
	u.evaluate(redis(web))
	for i := range 70000 {
		u.store.SetPod(kubepod.Read(podOf(fmt.Sprint("many", i), netip.AddrFrom4([4]byte{10, 1 + byte(i>>16), byte(i >> 8), byte(i)}))))
	}
	u.commit(t)
	if got := p.run(redis(web)); got != allowed {
		t.Errorf("with a verdict from before: %s", got)
	}
	if got := p.run(packetOf(netip.MustParseAddr("10.2.0.5"), web, filter.TCP, 1, 20)); got != allowed {
		t.Errorf("one of the added pods: %s", got)
	}
}

// RemoveStale removes the pins of dead agents, but not those of live agents or of agents in other
// network namespaces.
func TestStalePins(t *testing.T) {
	dir := bpffs(t)
	live, err := bpf.Open(bpf.Options{BPFFS: dir})
	if err != nil {
		t.Fatal(err)
	}
	dead, err := bpf.Open(bpf.Options{BPFFS: dir})
	if err != nil {
		t.Fatal(err)
	}
	foreign := filepath.Join(dir, "sluice-1-1") // as if from an agent in another network namespace
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := dead.Close(); err != nil { // as if its process had ended
		t.Fatal(err)
	}
	removed, err := bpf.RemoveStale(dir)
	if err != nil || len(removed) != 1 || removed[0] != filepath.Dir(dead.AllowPin()) {
		t.Errorf("removed %v, %v", removed, err)
	}
	for path, want := range map[string]bool{live.AllowPin(): true, live.DenyPin(): true, dead.AllowPin(): false, foreign: true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s exists: %v, want %v", path, err == nil, want)
		}
	}
	if err := live.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Dir(live.AllowPin())); err == nil {
		t.Error("Remove has left the pins")
	}
}

// Without a BPF file system, RemoveStale removes nothing and mounts nothing.
func TestNoStalePins(t *testing.T) {
	if removed, err := bpf.RemoveStale(t.TempDir()); err != nil || len(removed) > 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
}

// If the BPF file system cannot be mounted, the error of Open names that step.
func TestOpenWithoutMount(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: for other users, an earlier step fails")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bpf.Open(bpf.Options{BPFFS: file}); err == nil || !strings.Contains(err.Error(), "mount the BPF file system") {
		t.Errorf("error %v", err)
	}
}

// Remember is called for each evaluated packet, and does not allocate.
func TestRememberAllocatesNothing(t *testing.T) {
	w := newCache(t, bpf.Options{}).NewWriter()
	k := policy.IDKey{Src: 1, Dst: 2, Port: 80, Protocol: filter.TCP, Transport: filter.Ported}
	if n := testing.AllocsPerRun(100, func() { w.Remember(k, filter.Allow) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRemember(b *testing.B) {
	w := newCache(b, bpf.Options{}).NewWriter()
	k := policy.IDKey{Src: 1, Dst: 2, Port: 80, Protocol: filter.TCP, Transport: filter.Ported}
	b.ReportAllocs()
	for b.Loop() {
		k.Port++
		w.Remember(k, filter.Allow)
	}
}

// BenchmarkPrograms measures the programs for each result and each reason for that result.
func BenchmarkPrograms(b *testing.B) {
	_, p, u := newFixture(b, bpf.Options{}, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")})
	closed := letIn("other", "absent")
	closed.Spec.Ingress = nil
	u.store.SetPolicy(netpol.Read(closed))
	u.commit(b)
	u.evaluate(redis(web))
	u.evaluate(redis(remote))
	benchmarkPrograms(b, []packetCase{
		{"allow, remembered", p.allow, redis(web)},
		{"allow, not remembered", p.allow, redis(other)},
		{"deny, not remembered", p.deny, redis(other)},
		{"allow, no policy", p.allow, packetOf(db, web, filter.TCP, 80, 20)},
		{"allow, from outside", p.allow, packetOf(remote, web, filter.TCP, 80, 20)},
		{"deny, closed", p.deny, packetOf(db, other, filter.TCP, 80, 20)},
		{"deny, remembered for the pair", p.deny, redis(remote)},
	})
}

// packetCase is a packet whose evaluation by a program is measured.
type packetCase struct {
	name    string
	program *ebpf.Program
	data    []byte
}

func benchmarkPrograms(b *testing.B, cases []packetCase) {
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			frame := append([]byte{12: 8, 13: 0}, c.data...)
			_, took, err := c.program.Benchmark(frame, b.N, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/packet")
		})
	}
}

// BenchmarkProgramsWithPrefixes measures the programs on packets from outside the cluster while policies
// name 10,000 prefixes.
func BenchmarkProgramsWithPrefixes(b *testing.B) {
	_, p, u := newFixture(b, bpf.Options{}, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")})
	many := letIn("other", "absent")
	for i := range 10_000 {
		block := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(40 + i>>8), byte(i), 0}), 24).String()
		many.Spec.Ingress[0].From = append(many.Spec.Ingress[0].From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: block}})
	}
	u.store.SetPolicy(netpol.Read(many))
	u.commit(b)
	u.evaluate(redis(remote))
	benchmarkPrograms(b, []packetCase{
		{"allow, no policy", p.allow, packetOf(remote, web, filter.TCP, 80, 20)},
		{"deny, remembered", p.deny, redis(remote)},
	})
}

// If Publish gets more pod ranges than the map in the kernel can hold, it returns an error,
// and the programs match nothing until a Publish whose ranges fit.
func TestTooManyRanges(t *testing.T) {
	c, p, u := newFixture(t, bpf.Options{Prefixes: 5000}, nil)
	u.commit(t)
	open := packetOf(web, other, filter.TCP, 80, 20)
	many := make([]netip.Prefix, 7000)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	u.store.SetPodRanges(many)
	s, changes := u.store.Commit()
	if err := c.Publish(s, changes); err == nil || errors.Is(err, bpf.ErrStillAnswering) || !strings.Contains(err.Error(), "add prefix 172.") {
		t.Errorf("error %v", err)
	}
	if got := p.run(open); got != noMatch {
		t.Errorf("without some of the ranges: %s", got)
	}
	u.store.SetPodRanges(many[:10])
	u.commit(t)
	if got := p.run(open); got != allowed {
		t.Errorf("with all ranges: %s", got)
	}
	if err := c.SetStarting(many); err == nil || errors.Is(err, bpf.ErrStillAnswering) {
		t.Errorf("starting pods: error %v", err)
	}
	if got := p.run(open); got != noMatch {
		t.Errorf("without some of the starting pods: %s", got)
	}
	if err := c.SetStarting(nil); err != nil {
		t.Error(err)
	}
	u.commit(t)
	if got := p.run(open); got != allowed {
		t.Errorf("without starting pods: %s", got)
	}
}

// After Stop the programs match nothing, even after further publications and evaluations.
func TestStop(t *testing.T) {
	c, p, u := newFixture(t, bpf.Options{}, nil)
	u.commit(t)
	u.evaluate(redis(web))
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	u.commit(t)
	u.evaluate(redis(web))
	for _, data := range [][]byte{redis(web), packetOf(web, other, filter.TCP, 80, 20)} {
		if got := p.run(data); got != noMatch {
			t.Errorf("after Stop: %s", got)
		}
	}
	if _, err := os.Lstat(filepath.Dir(c.AllowPin())); err == nil {
		t.Error("the programs are still pinned")
	}
}

// BenchmarkPublish measures Publish for a change of one of 10,000 pods, and for a change of all of
// 100,000. Until the tables are swapped, the kernel decides by the old state; after that, Publish
// waits for packets that are still in the rules.
func BenchmarkPublish(b *testing.B) {
	for _, o := range []struct {
		pods int
		into map[string]string // labels of the pods that the changing policy selects
	}{{10_000, map[string]string{"name": "db"}}, {100_000, nil}} {
		b.Run(fmt.Sprintf("pods=%d/all=%v", o.pods, o.into == nil), func(b *testing.B) {
			_, _, u := newFixture(b, bpf.Options{}, nil)
			for i := range o.pods {
				u.store.SetPod(kubepod.Read(podOf(fmt.Sprint("many", i), netip.AddrFrom4([4]byte{10, byte(1 + i>>16), byte(i >> 8), byte(i)}))))
			}
			u.commit(b)
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				p := letIn("db", []string{"web", "other"}[i%2])
				p.Spec.PodSelector.MatchLabels = o.into
				u.store.SetPolicy(netpol.Read(p))
				s, changes := u.store.Commit()
				u.published.Publish(s)
				b.StartTimer()
				if err := u.cache.Publish(s, changes); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
