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
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// The pods of most tests: db is isolated and lets web in at port 6379.
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

// letIn is a policy that lets one pod into another at port 6379, and no other pod.
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

// newStage is a cache, its programs, and a user space that knows the pods.
func newStage(t testing.TB, opts bpf.Options, ranges []netip.Prefix) (*bpf.Cache, *programs, *user) {
	t.Helper()
	c := newCache(t, opts)
	p, u := load(t, c), newUser(t, c, ranges)
	for name, addr := range map[string]netip.Addr{"db": db, "web": web, "other": other} {
		u.world.SetPod(kubepod.Read(podOf(name, addr)))
	}
	u.world.SetPolicy(netpol.Read(letIn("db", "web")))
	return c, p, u
}

func redis(from netip.Addr) []byte { return packetOf(from, db, filter.TCP, 6379, 20) }

// Before anything is published, and after nothing was remembered, the programs
// are silent; then they say what was decided.
func TestRemembers(t *testing.T) {
	c, p, u := newStage(t, bpf.Options{}, nil)
	if said := p.say(redis(web)); said != silent {
		t.Errorf("before anything was published: %s", said)
	}
	u.commit(t)
	for from, want := range map[netip.Addr]verdict{web: allowed, other: denied, remote: denied} {
		if said := p.say(redis(from)); said != silent {
			t.Errorf("%s before it was judged: %s", from, said)
		}
		u.judges(redis(from))
		if said := p.say(redis(from)); said != want {
			t.Errorf("%s after it was judged: %s, want %s", from, said, want)
		}
	}
	if said := p.say(packetOf(web, db, filter.TCP, 6380, 20)); said != silent {
		t.Errorf("another port: %s", said)
	}
	if said := p.say(packetOf(db, other, filter.UDP, 9, 20)); said != allowed {
		t.Errorf("a pair that no policy concerns: %s", said)
	}
	stats, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if stats.Open != 1 || stats.Allowed != 1 || stats.Denied != 2 || stats.Failed != 0 || stats.Published <= 0 {
		t.Errorf("stats: %+v", stats)
	}
}

// everything are packets from one to another that policies can tell apart.
func everything(src, dst netip.Addr) (all [][]byte) {
	for _, port := range []uint16{0, 80, 6378, 6379, 65535} {
		for _, protocol := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
			all = append(all, packetOf(src, dst, protocol, port, 20))
		}
	}
	return append(all, packetOf(src, dst, filter.ICMP, 0, 20))
}

// One verdict that holds for all packets between two addresses answers for all, and
// no longer than others do. The first of a scan of ports is all that user space
// sees.
func TestPairs(t *testing.T) {
	_, p, u := newStage(t, bpf.Options{}, nil)
	all := letIn("db", "web")
	all.Spec.Ingress[0].Ports = nil
	u.world.SetPolicy(netpol.Read(all))
	u.commit(t)
	says := func(from netip.Addr, want verdict) {
		t.Helper()
		for _, data := range everything(from, db) {
			if said := p.say(data); said != want {
				t.Errorf("%x: %s, want %s", data, said, want)
			}
		}
	}
	for from, want := range map[netip.Addr]verdict{web: allowed, other: denied, remote: denied} {
		says(from, silent)
		u.judges(packetOf(from, db, filter.UDP, 53, 20))
		says(from, want)
	}
	// Now ports matter, and the rule names one.
	u.world.SetPolicy(netpol.Read(letIn("db", "web")))
	u.commit(t)
	says(web, silent)
	for _, data := range everything(web, db) {
		want := denied
		if u.judges(data) == filter.Allow {
			want = allowed
		}
		if said := p.say(data); said != want {
			t.Errorf("%x: %s, want %s", data, said, want)
		}
	}
	if p.say(redis(web)) != allowed {
		t.Error("the port that is allowed is not")
	}
}

// A pod with policies and no rule is closed to other pods, without a trip to user space.
// A stranger may be its node, which user space knows, and it reaches itself.
func TestClosed(t *testing.T) {
	_, p, u := newStage(t, bpf.Options{}, nil)
	u.world.SetNode([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	none := letIn("db", "web")
	none.Spec.Ingress = nil
	none.Spec.PolicyTypes = append(none.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	u.world.SetPolicy(netpol.Read(none))
	u.commit(t)
	for _, one := range []struct {
		src, dst     netip.Addr
		first, later verdict
	}{
		{web, db, denied, denied},
		{db, web, denied, denied},
		{db, db, silent, allowed},
		{remote, db, silent, denied},
		{db, remote, silent, denied},
		{netip.MustParseAddr("192.0.2.1"), db, allowed, allowed},
		{web, other, allowed, allowed},
	} {
		for i, data := range everything(one.src, one.dst) {
			if said := p.say(data); i == 0 && said != one.first || i > 0 && said != one.later {
				t.Errorf("packet %d from %s to %s: %s, want %s, then %s", i, one.src, one.dst, said, one.first, one.later)
			}
			u.judges(data)
		}
	}
	fragment := packetOf(web, db, filter.TCP, 80, 20)
	fragment[6] = 0x20
	if said := p.say(fragment); said != denied {
		t.Errorf("a fragment: %s", said)
	}
}

// The kernel lets no packet pass that is in the middle of a connection if policies
// isolate an end against the opposite direction: user space knows whether they deny
// it. What the kernel denies to the first packet of a connection, it denies to all.
func TestMidStreamIsLeftToUserSpace(t *testing.T) {
	_, p, u := newStage(t, bpf.Options{}, nil)
	u.commit(t)
	u.judges(redis(web))
	u.judges(redis(other))
	v6 := netip.MustParseAddr("fd00::2")
	pod := podOf("db", db)
	pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: v6.String()})
	u.world.SetPod(kubepod.Read(pod))
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
		{"ACK", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x10), silent},
		{"SYN+ACK", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x12), silent},
		{"RST", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x04), silent},
		{"FIN+ACK", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x11), silent},
		{"SYN+FIN", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0x03), silent},
		{"no flags", edit(packetOf(db, remote, filter.TCP, 80, 20), 13, 0), silent},
		{"SYN behind IP options", options, silent},
		{"IPv6, SYN", packetOf(v6, remote6, filter.TCP, 80, 20), allowed},
		{"IPv6, ACK", edit(packetOf(v6, remote6, filter.TCP, 80, 20), 13, 0x10), silent},
		{"IPv6, extension header", packetOf(v6, remote6, 60, 80, 20), silent},
		{"SCTP INIT", packetOf(db, remote, filter.SCTP, 80, 20), allowed},
		{"SCTP HEARTBEAT", edit(packetOf(db, remote, filter.SCTP, 80, 20), 12, 4), silent},
		{"UDP", packetOf(db, remote, filter.UDP, 80, 20), allowed},
		{"ICMP", packetOf(db, remote, filter.ICMP, 0, 20), allowed},
		{"ACK that is denied", edit(redis(other), 13, 0x10), denied},
		{"ACK with no isolated end", edit(packetOf(web, other, filter.TCP, 80, 20), 13, 0x10), allowed},
		{"ACK into an isolated pod", edit(redis(web), 13, 0x10), allowed},
	} {
		if said := p.say(one.data); said != one.want {
			t.Errorf("%s: %s, want %s", one.name, said, one.want)
		}
	}
}

// A change of either end makes what was remembered void; a change elsewhere does
// not.
func TestForgets(t *testing.T) {
	_, p, u := newStage(t, bpf.Options{}, nil)
	u.commit(t)
	u.judges(redis(web))
	u.world.SetPod(kubepod.Read(podOf("new", remote)))
	u.commit(t)
	if said := p.say(redis(web)); said != allowed {
		t.Errorf("after a change elsewhere: %s", said)
	}
	relabeled := podOf("web", web)
	relabeled.Labels["name"] = "other"
	u.world.SetPod(kubepod.Read(relabeled))
	u.commit(t)
	if said := p.say(redis(web)); said != silent {
		t.Errorf("after the source's labels changed: %s", said)
	}
	u.judges(redis(web))
	if said := p.say(redis(web)); said != denied {
		t.Errorf("evaluated again: %s", said)
	}
	u.world.DeletePolicy(netpol.Ref("default", "db"))
	u.commit(t)
	if said := p.say(redis(web)); said != allowed {
		t.Errorf("after the policy is gone: %s", said)
	}
}

// A verdict that is remembered too late, when its epochs are past, never answers.
func TestLateVerdict(t *testing.T) {
	c, p, u := newStage(t, bpf.Options{}, nil)
	u.commit(t)
	s := u.published.Snapshot()
	k := filter.NewKey(web, db, filter.TCP, 6379)
	src, dst := s.Endpoint(web).Epoch(), s.Endpoint(db).Epoch()
	u.world.SetPolicy(netpol.Read(letIn("db", "other")))
	u.commit(t)
	c.NewWriter().Remember(k, src, dst, filter.Allow)
	if said := p.say(redis(web)); said != silent {
		t.Errorf("a verdict from before: %s", said)
	}
}

// Unknown addresses in pod ranges are left to user space, whatever is remembered.
func TestUnknownPodsAreLeftToUserSpace(t *testing.T) {
	c, p, u := newStage(t, bpf.Options{}, nil)
	u.commit(t)
	u.judges(redis(remote))
	out := packetOf(web, remote, filter.TCP, 443, 20)
	testUnknownPods(t, p, out, func(ranges []netip.Prefix) { u.world.SetPodRanges(ranges); u.commit(t) })
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
				one.want = silent
			}
			if said := p.say(one.data); said != one.want {
				t.Errorf("in a range %v: %s, want %s", in, said, one.want)
			}
		}
	}
}

// Two strangers are left to user space, though it lets them pass: when it is gone,
// they may be pods.
func TestStrangersAreLeftToUserSpace(t *testing.T) {
	_, p, u := newStage(t, bpf.Options{}, nil)
	u.commit(t)
	data := packetOf(remote, netip.MustParseAddr("198.51.100.8"), filter.TCP, 80, 20)
	if action := u.judges(data); action != filter.Allow {
		t.Fatalf("user space says %s", action)
	}
	if said := p.say(data); said != silent {
		t.Errorf("the kernel says %s", said)
	}
}

// With denials left to user space there is no program that denies.
func TestAllowedOnly(t *testing.T) {
	c, p, u := newStage(t, bpf.Options{AllowedOnly: true}, nil)
	u.commit(t)
	u.judges(redis(web))
	u.judges(redis(other))
	if said := p.say(redis(web)); said != allowed {
		t.Errorf("allowed: %s", said)
	}
	if said := p.say(redis(other)); said != silent || c.DenyPin() != "" {
		t.Errorf("denied: %s, pinned at %q", said, c.DenyPin())
	}
}

// More endpoints than the tables have room for get larger ones.
func TestGrows(t *testing.T) {
	if testing.Short() {
		t.Skip("makes 70000 pods")
	}
	_, p, u := newStage(t, bpf.Options{}, nil)
	u.commit(t)
	u.judges(redis(web))
	for i := range 70000 {
		u.world.SetPod(kubepod.Read(podOf(fmt.Sprint("many", i), netip.AddrFrom4([4]byte{10, 1 + byte(i>>16), byte(i >> 8), byte(i)}))))
	}
	u.commit(t)
	if said := p.say(redis(web)); said != allowed {
		t.Errorf("what was remembered before: %s", said)
	}
	if said := p.say(packetOf(netip.MustParseAddr("10.2.0.5"), web, filter.TCP, 1, 20)); said != allowed {
		t.Errorf("a pod that came last: %s", said)
	}
}

// What an agent has pinned stays as long as it lives, and goes when others start.
func TestStalePins(t *testing.T) {
	dir := bpffs(t)
	lives, err := bpf.Open(bpf.Options{BPFFS: dir})
	if err != nil {
		t.Fatal(err)
	}
	dead, err := bpf.Open(bpf.Options{BPFFS: dir})
	if err != nil {
		t.Fatal(err)
	}
	stranger := filepath.Join(dir, "sluice-1-1") // of another network namespace
	if err := os.Mkdir(stranger, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := dead.Close(); err != nil { // as the end of its process does
		t.Fatal(err)
	}
	removed, err := bpf.RemoveStale(dir)
	if err != nil || len(removed) != 1 || removed[0] != filepath.Dir(dead.AllowPin()) {
		t.Errorf("removed %v, %v", removed, err)
	}
	for path, want := range map[string]bool{lives.AllowPin(): true, lives.DenyPin(): true, dead.AllowPin(): false, stranger: true} {
		if _, err := os.Lstat(path); (err == nil) != want {
			t.Errorf("%s is there %v, want %v", path, err == nil, want)
		}
	}
	if err := lives.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Dir(lives.AllowPin())); err == nil {
		t.Error("an agent that removes its pins leaves them")
	}
}

// Where there is no BPF file system, there is nothing to remove, and nothing is
// mounted for that.
func TestNoStalePins(t *testing.T) {
	if removed, err := bpf.RemoveStale(t.TempDir()); err != nil || len(removed) > 0 {
		t.Errorf("removed %v, %v", removed, err)
	}
}

// Errors say what to do.
func TestOpenWhereItCannotBe(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("as another user than root, the first step fails already")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bpf.Open(bpf.Options{BPFFS: file}); err == nil || !strings.Contains(err.Error(), "mount the BPF file system") {
		t.Errorf("error %v", err)
	}
}

// The way of a packet allocates nothing for what the kernel is to remember.
func TestRememberAllocatesNothing(t *testing.T) {
	w := newCache(t, bpf.Options{}).NewWriter()
	k := filter.NewKey(web, db, filter.TCP, 80)
	if n := testing.AllocsPerRun(100, func() { w.Remember(k, 1, 2, filter.Allow) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRemember(b *testing.B) {
	w := newCache(b, bpf.Options{}).NewWriter()
	k := filter.NewKey(web, db, filter.TCP, 80)
	b.ReportAllocs()
	for b.Loop() {
		k.Port++
		w.Remember(k, 1, 2, filter.Allow)
	}
}

// BenchmarkPrograms is what the programs cost a packet, by what they say.
func BenchmarkPrograms(b *testing.B) {
	_, p, u := newStage(b, bpf.Options{}, []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")})
	closed := letIn("other", "nobody")
	closed.Spec.Ingress = nil
	u.world.SetPolicy(netpol.Read(closed))
	u.commit(b)
	u.judges(redis(web))
	u.judges(redis(remote))
	for _, bench := range []struct {
		name    string
		program *ebpf.Program
		data    []byte
	}{
		{"allow, remembered", p.allow, redis(web)},
		{"allow, not remembered", p.allow, redis(other)},
		{"deny, not remembered", p.deny, redis(other)},
		{"allow, no policy", p.allow, packetOf(db, web, filter.TCP, 80, 20)},
		{"allow, from outside", p.allow, packetOf(remote, web, filter.TCP, 80, 20)},
		{"deny, closed", p.deny, packetOf(db, other, filter.TCP, 80, 20)},
		{"deny, remembered for the pair", p.deny, redis(remote)},
	} {
		b.Run(bench.name, func(b *testing.B) {
			frame := append([]byte{12: 8, 13: 0}, bench.data...)
			_, took, err := bench.program.Benchmark(frame, b.N, nil)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/packet")
		})
	}
}

// A range that the kernel cannot take closes the cache, until all are there.
func TestRangesThatCannotBe(t *testing.T) {
	c, p, u := newStage(t, bpf.Options{}, nil)
	u.commit(t)
	open := packetOf(web, other, filter.TCP, 80, 20)
	many := make([]netip.Prefix, 70000) // the kernel takes 65536
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
	}
	u.world.SetPodRanges(many)
	s, changes := u.world.Commit()
	if err := c.Publish(s, changes); err == nil || errors.Is(err, bpf.ErrStillAnswering) || !strings.Contains(err.Error(), "add pod range 172.1.") {
		t.Errorf("error %v", err)
	}
	if said := p.say(open); said != silent {
		t.Errorf("with ranges that the kernel does not know: %s", said)
	}
	if err := c.SetStarting(many); err == nil || errors.Is(err, bpf.ErrStillAnswering) {
		t.Errorf("starting pods: error %v", err)
	}
	if err := c.SetStarting(nil); err != nil {
		t.Error(err)
	}
	u.world.SetPodRanges(many[:10])
	u.commit(t)
	if said := p.say(open); said != allowed {
		t.Errorf("with all ranges: %s", said)
	}
}

// A cache that was stopped says nothing, whatever it is told.
func TestStop(t *testing.T) {
	c, p, u := newStage(t, bpf.Options{}, nil)
	u.commit(t)
	u.judges(redis(web))
	if err := c.Stop(); err != nil {
		t.Fatal(err)
	}
	u.commit(t)
	u.judges(redis(web))
	for _, data := range [][]byte{redis(web), packetOf(web, other, filter.TCP, 80, 20)} {
		if said := p.say(data); said != silent {
			t.Errorf("%s", said)
		}
	}
	if _, err := os.Lstat(filepath.Dir(c.AllowPin())); err == nil {
		t.Error("the programs are still pinned")
	}
}

// BenchmarkPublish is how long one change takes to be in force among 10,000 pods:
// up to the exchange of the tables the kernel judges by the state before, and then
// it waits for what is in the rules.
func BenchmarkPublish(b *testing.B) {
	_, _, u := newStage(b, bpf.Options{}, nil)
	for i := range 10000 {
		u.world.SetPod(kubepod.Read(podOf(fmt.Sprint("many", i), netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}))))
	}
	u.commit(b)
	for i := 0; b.Loop(); i++ {
		u.world.SetPolicy(netpol.Read(letIn("db", []string{"web", "other"}[i%2])))
		u.commit(b)
	}
}
