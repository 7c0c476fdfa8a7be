package conntrack_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

const (
	allowed = 0x10
	revoked = 0x20
	foreign = 0x4001 // bits of other programs
)

// The pods web, db and idle are in namespace default, on the node with the address node.
var (
	web     = netip.MustParseAddr("10.1.0.1")
	web6    = netip.MustParseAddr("fd00::1")
	db      = netip.MustParseAddr("10.1.0.2")
	db6     = netip.MustParseAddr("fd00::2")
	idle    = netip.MustParseAddr("10.1.0.3")
	node    = netip.MustParseAddr("192.168.0.1")
	outside = netip.MustParseAddr("203.0.113.9")
	service = netip.MustParseAddrPort("10.96.0.1:80")
)

// newStore returns a store with the node and the pods, and no policy.
func newStore() *policy.Store {
	w := policy.NewStore()
	w.SetNode([]netip.Addr{node})
	w.SetPod(kubepod.Read(pod("web", web, web6)))
	w.SetPod(kubepod.Read(pod("db", db, db6)))
	w.SetPod(kubepod.Read(pod("idle", idle)))
	return w
}

func pod(name string, addrs ...netip.Addr) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}}}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	p.Status.HostIPs = []corev1.HostIP{{IP: node.String()}}
	return p
}

// guard returns a policy that allows only TCP to the given ports of the app's pod.
func guard(app string, ports ...int32) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "guard-" + app},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": app}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}
	for _, n := range ports {
		tcp, number := corev1.ProtocolTCP, intstr.FromInt32(n)
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			Ports: []networkingv1.NetworkPolicyPort{{Protocol: &tcp, Port: &number}},
		})
	}
	return p
}

// observed is an Observer that records what it observes.
type observed []string

func (o *observed) Marked(c *conntrack.Marked) {
	text := c.Key.String() + " " + c.Verdict.Action.String()
	if c.Closed {
		text += ", closed"
	}
	if c.WasRevoked {
		text += ", revoked before"
	}
	*o = append(*o, text)
}

// fixture is a sweeper of a fake table.
type fixture struct {
	t     *testing.T
	store *policy.Store
	table *conntrack.Fake
	seen  observed
	*conntrack.Sweeper
}

func newFixture(t *testing.T) *fixture {
	r := &fixture{t: t, store: newStore(), table: new(conntrack.Fake)}
	r.Sweeper = conntrack.New(r.table, conntrack.DefaultMarks, nil, &r.seen)
	r.Local = func() ([]netip.Addr, error) { return []netip.Addr{node}, nil }
	r.store.Commit()
	return r
}

// track adds a connection without translation.
func (r *fixture) track(src, dst netip.Addr, proto filter.Protocol, port uint16, mark uint32) conntrack.Ref {
	return r.table.Add(filter.NewKey(src, dst, proto, port), 40000, netip.AddrPortFrom(dst, port), mark)
}

// commit commits the store and sweeps.
func (r *fixture) commit(scope conntrack.Scope) conntrack.Result {
	r.t.Helper()
	snapshot, changes := r.store.Commit()
	res, err := r.Sweep(context.Background(), snapshot, changes, scope)
	if err != nil {
		r.t.Fatal(err)
	}
	return res
}

func (r *fixture) want(ref conntrack.Ref, mark uint32) {
	r.t.Helper()
	if got, ok := r.table.Mark(ref); !ok || got != mark {
		r.t.Errorf("mark is %#x (entry exists: %v), want %#x", got, ok, mark)
	}
}

func TestRevokedAndRestored(t *testing.T) {
	for _, tc := range []struct {
		name     string
		src, dst netip.Addr
		proto    filter.Protocol
		port     uint16
	}{
		{"TCP", web, db, filter.TCP, 6379},
		{"TCP over IPv6", web6, db6, filter.TCP, 6379},
		{"UDP", web, db, filter.UDP, 53},
		{"SCTP", web6, db6, filter.SCTP, 7},
		{"ICMP", web, db, filter.ICMP, 0},
		{"from outside", outside, db, filter.TCP, 6379},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newFixture(t)
			ref := r.track(tc.src, tc.dst, tc.proto, tc.port, foreign|allowed)
			r.store.SetPolicy(netpol.Read(guard("db", 1)))
			if res := r.commit(conntrack.ScopeAddresses); res.Revoked != 1 || res.Allowed+res.Restored != 0 {
				t.Errorf("after the policy: %+v", res)
			}
			r.want(ref, foreign|revoked)
			r.store.DeletePolicy(netpol.Ref("default", "guard-db"))
			if res := r.commit(conntrack.ScopeAddresses); res.Restored != 1 || res.Allowed+res.Revoked != 0 {
				t.Errorf("without the policy: %+v", res)
			}
			r.want(ref, foreign|allowed)
			key := filter.NewKey(tc.src, tc.dst, tc.proto, tc.port).String()
			if got := strings.Join(r.seen, ", "); got != key+" deny, "+key+" allow, revoked before" {
				t.Errorf("observed: %s", got)
			}
		})
	}
}

// The mark of a closed connection is rewritten, too. The observer learns that the connection is closed.
func TestClosedConnectionIsReportedAsSuch(t *testing.T) {
	r := newFixture(t)
	ref := r.track(web, db, filter.TCP, 6379, allowed)
	r.table.SetClosed(ref)
	r.store.SetPolicy(netpol.Read(guard("db", 1)))
	r.commit(conntrack.ScopeAddresses)
	r.want(ref, revoked)
	if got := strings.Join(r.seen, ", "); !strings.HasSuffix(got, " deny, closed") {
		t.Errorf("observed: %s", got)
	}
}

func TestOnlyChangedEndpointsAreEvaluated(t *testing.T) {
	r := newFixture(t)
	// The policies allow both connections, so both marks are wrong. The test checks that the
	// sweep rewrites only one of them.
	changed := r.track(web, db, filter.TCP, 80, revoked)
	other := r.track(web, idle, filter.TCP, 80, revoked)
	r.store.SetPolicy(netpol.Read(guard("db", 80)))
	if res := r.commit(conntrack.ScopeAddresses); res.Evaluated != 1 {
		t.Errorf("evaluated %d connections, want 1", res.Evaluated)
	}
	r.want(changed, allowed)
	r.want(other, revoked)
}

func TestFirstSweepMarksEarlierConnections(t *testing.T) {
	r := newFixture(t)
	r.store.SetPolicy(netpol.Read(guard("db", 80)))
	toAllowed := r.track(web, db, filter.TCP, 80, foreign)
	toDenied := r.track(web, db, filter.TCP, 81, foreign)
	between := r.track(outside, netip.MustParseAddr("198.51.100.1"), filter.TCP, 80, foreign)
	own := r.track(node, db, filter.TCP, 81, foreign)
	toNode := r.track(db, node, filter.TCP, 81, foreign)
	res := r.commit(conntrack.ScopeAll)
	if res.Allowed != 2 || res.Revoked != 1 {
		t.Errorf("%+v, want 2 allowed and 1 revoked", res)
	}
	r.want(toAllowed, foreign|allowed)
	r.want(toDenied, foreign|revoked)
	r.want(between, foreign)
	r.want(own, foreign)
	r.want(toNode, foreign|allowed)
}

func TestKeyAfterTranslation(t *testing.T) {
	r := newFixture(t)
	pass := r.table.Add(filter.NewKey(web, db, filter.TCP, 6379), 1, service, allowed)
	stop := r.table.Add(filter.NewKey(web, db, filter.TCP, 80), 2, service, allowed)
	hairpin := r.table.Add(filter.NewKey(db, db, filter.TCP, 80), 3, service, allowed)
	r.store.SetPolicy(netpol.Read(guard("db", 6379)))
	r.commit(conntrack.ScopeAddresses)
	r.want(pass, allowed)
	r.want(stop, revoked)
	r.want(hairpin, allowed)
}

func TestLocalAddressesOutsideTheSnapshot(t *testing.T) {
	bridge := netip.MustParseAddr("10.1.0.254")
	r := newFixture(t)
	from := r.track(bridge, db, filter.TCP, 80, 0)
	r.Local = func() ([]netip.Addr, error) { return []netip.Addr{bridge}, nil }
	r.store.SetPolicy(netpol.Read(guard("db", 1)))
	r.commit(conntrack.ScopeAddresses)
	r.want(from, 0)
	r.Local = func() ([]netip.Addr, error) { return nil, errors.New("unknown") }
	r.commit(conntrack.ScopeAll)
	r.want(from, revoked)
}

func TestDeletedPodRestoresConnections(t *testing.T) {
	r := newFixture(t)
	gone := r.track(outside, db, filter.TCP, 80, revoked)
	r.store.SetPolicy(netpol.Read(guard("db", 1)))
	r.commit(conntrack.ScopeAddresses)
	r.want(gone, revoked)
	r.store.DeletePod("default", "db")
	r.commit(conntrack.ScopeAddresses)
	r.want(gone, allowed)
}

func TestSweepIsIdempotent(t *testing.T) {
	r := newFixture(t)
	r.track(web, db, filter.TCP, 80, allowed)
	r.store.SetPolicy(netpol.Read(guard("db", 1)))
	if res := r.commit(conntrack.ScopeAddresses); res.Passes != 2 {
		t.Errorf("%d passes, want one that writes and one that finds nothing", res.Passes)
	}
	_, before := r.table.Uses()
	if res := r.commit(conntrack.ScopeAll); res.Written() != 0 || res.Passes != 1 {
		t.Errorf("a second sweep: %+v", res)
	}
	if _, after := r.table.Uses(); after != before {
		t.Errorf("a second sweep made %d updates", after-before)
	}
}

func TestNothingToSweep(t *testing.T) {
	r := newFixture(t)
	snapshot, _ := r.store.Commit()
	if res, err := r.Sweep(context.Background(), snapshot, nil, conntrack.ScopeAddresses); err != nil || res.Passes != 0 {
		t.Errorf("no changes: %+v, %v", res, err)
	}
	if res, err := r.Sweep(context.Background(), nil, nil, conntrack.ScopeAll); err != nil || res.Passes != 0 {
		t.Errorf("no snapshot: %+v, %v", res, err)
	}
	if dumps, _ := r.table.Uses(); dumps != 0 {
		t.Errorf("%d dumps for nothing", dumps)
	}
}

func TestInterruptedDumpIsRepeated(t *testing.T) {
	r := newFixture(t)
	first := r.track(web, db, filter.TCP, 80, allowed)
	second := r.track(web, db, filter.TCP, 81, allowed)
	left := 2
	r.table.Interrupt = func() bool { left--; return left >= 0 }
	r.store.SetPolicy(netpol.Read(guard("db", 1)))
	if res := r.commit(conntrack.ScopeAddresses); res.Revoked != 2 {
		t.Errorf("%+v, want 2 revoked", res)
	}
	r.want(first, revoked)
	r.want(second, revoked)

	r.table.Interrupt = func() bool { return true }
	snapshot, _ := r.store.Commit()
	if _, err := r.Sweep(context.Background(), snapshot, nil, conntrack.ScopeAll); !errors.Is(err, conntrack.ErrInterrupted) {
		t.Errorf("every dump is interrupted: %v", err)
	}
}

// A sweep dumps the connections, and then updates their marks. Between these steps, a
// connection ends, and a new one begins with the same five-tuple. The Service translates the
// new one to another port, so its verdict differs. The sweep must not leave the new connection
// with the mark for the old one.
func TestReplacedConnection(t *testing.T) {
	for _, tc := range []struct {
		name            string
		oldPort, port   uint16
		newMark, wanted uint32
	}{
		{"a denied one by an allowed one", 80, 6379, allowed, allowed},
		{"an allowed one by a denied one", 6379, 80, revoked, revoked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newFixture(t)
			ref := r.table.Add(filter.NewKey(web, db, filter.TCP, tc.oldPort), 40000, service, 0)
			r.table.BeforeSet = func() {
				r.table.BeforeSet = nil
				r.table.Add(filter.NewKey(web, db, filter.TCP, tc.port), 40000, service, tc.newMark)
			}
			r.store.SetPolicy(netpol.Read(guard("db", 6379)))
			r.commit(conntrack.ScopeAddresses)
			r.want(ref, tc.wanted)
		})
	}
}

func TestUpdateOfEndedConnection(t *testing.T) {
	r := newFixture(t)
	ref := r.track(web, db, filter.TCP, 80, allowed)
	stays := r.track(web, db, filter.TCP, 81, allowed)
	r.table.BeforeSet = func() { r.table.Remove(ref) }
	r.store.SetPolicy(netpol.Read(guard("db", 1)))
	r.commit(conntrack.ScopeAddresses)
	if _, ok := r.table.Mark(ref); ok {
		t.Error("the update created the connection again")
	}
	r.want(stays, revoked)
}

func TestManyConnectionsInBatches(t *testing.T) {
	r := newFixture(t)
	var refs []conntrack.Ref
	for i := range 1200 {
		refs = append(refs, r.track(web, db, filter.UDP, uint16(1+i), foreign|allowed))
	}
	r.store.SetPolicy(netpol.Read(guard("db", 1)))
	if res := r.commit(conntrack.ScopeAddresses); res.Revoked != len(refs) || res.Evaluated != len(refs) {
		t.Errorf("%+v, want %d revoked", res, len(refs))
	}
	for _, ref := range refs {
		r.want(ref, foreign|revoked)
	}
}

func TestClearMarks(t *testing.T) {
	r := newFixture(t)
	a := r.track(web, db, filter.TCP, 80, foreign|allowed)
	b := r.track(web, db, filter.TCP, 81, revoked)
	c := r.track(web, db, filter.TCP, 82, foreign)
	if n, err := r.ClearMarks(context.Background(), allowed|revoked); err != nil || n != 2 {
		t.Errorf("cleared %d, %v; want 2", n, err)
	}
	r.want(a, foreign)
	r.want(b, 0)
	r.want(c, foreign)
	if _, updates := r.table.Uses(); updates != 2 {
		t.Errorf("%d updates, want 2: entries without our bits are left alone", updates)
	}
}

func TestCancelled(t *testing.T) {
	r := newFixture(t)
	r.track(web, db, filter.TCP, 80, allowed)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	snapshot, _ := r.store.Commit()
	if _, err := r.Sweep(ctx, snapshot, nil, conntrack.ScopeAll); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestInvalidMarks(t *testing.T) {
	w := newStore()
	snapshot, _ := w.Commit()
	for _, m := range []conntrack.Marks{{}, {Allowed: 1}, {Allowed: 3, Revoked: 2}} {
		s := conntrack.New(new(conntrack.Fake), m, nil, nil)
		if _, err := s.Sweep(context.Background(), snapshot, nil, conntrack.ScopeAll); err == nil {
			t.Errorf("%+v was accepted", m)
		}
	}
}

// When a pod of this node is deleted, its address becomes pending. Without FailOpen, the sweep
// then revokes all connections of the address except those with the node. With FailOpen, all of
// them stay allowed. When another pod with this address becomes known, the sweep evaluates the
// connections as those of that pod.
func TestPendingAddress(t *testing.T) {
	for _, failOpen := range []bool{true, false} {
		r := newFixture(t)
		r.store.SetPodRanges([]netip.Prefix{netip.PrefixFrom(db, 32), netip.PrefixFrom(db6, 128)})
		r.FailOpen = failOpen
		refs := []conntrack.Ref{
			r.track(web, db, filter.UDP, 53, allowed),
			r.track(outside, db, filter.UDP, 53, allowed),
			r.track(db, outside, filter.TCP, 80, allowed),
			r.track(web6, db6, filter.TCP, 80, allowed),
		}
		fromNode, other := r.track(node, db, filter.TCP, 80, allowed), r.track(web, idle, filter.TCP, 80, allowed)
		r.store.DeletePod("default", "db")
		r.commit(conntrack.ScopeAddresses)
		want := uint32(allowed)
		if !failOpen {
			want = revoked
		}
		for _, ref := range refs {
			r.want(ref, want)
		}
		r.store.SetPod(kubepod.Read(pod("next", db, db6)))
		r.commit(conntrack.ScopeAddresses)
		for _, ref := range append(refs, fromNode, other) {
			r.want(ref, allowed)
		}
	}
}

// While the Namespace of a pod is not known and a policy depends on its labels, the pod's
// connections are revoked, except those with its node. With FailOpen, all stay allowed.
func TestUnknownNamespace(t *testing.T) {
	for _, failOpen := range []bool{true, false} {
		r := newFixture(t)
		r.FailOpen = failOpen
		toPod, fromPod := r.track(web, db, filter.UDP, 53, allowed), r.track(db, outside, filter.TCP, 80, allowed)
		fromNode := r.track(node, db, filter.TCP, 80, allowed)
		r.store.RequireNamespaces()
		r.store.SetPolicy(&policy.Policy{
			Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "p"}, Tier: policy.Admin,
			Subject: policy.Subject{Namespaces: labels.SelectorFromSet(labels.Set{"env": "test"}), Pods: labels.Everything()},
			Rules:   [2][]policy.Rule{filter.Ingress: {{Action: policy.Deny}}},
		})
		r.commit(conntrack.ScopeAddresses)
		want := uint32(allowed)
		if !failOpen {
			want = revoked
		}
		r.want(toPod, want)
		r.want(fromPod, want)
		r.want(fromNode, allowed)
		r.store.SetNamespace("default", nil)
		r.commit(conntrack.ScopeAddresses)
		for _, ref := range []conntrack.Ref{toPod, fromPod, fromNode} {
			r.want(ref, allowed)
		}
	}
}

// Conntrack did not see the beginning of these connections, so either end may have opened them.
// Such a connection stays allowed only while the policies allow both a connection from its source
// to its destination and one in the opposite direction.
func TestPickedUpInTheMiddle(t *testing.T) {
	for _, tc := range []struct {
		name   string
		guards []*networkingv1.NetworkPolicy
		want   uint32
	}{
		{"no policy", nil, allowed},
		{"the destination is guarded", []*networkingv1.NetworkPolicy{guard("db")}, revoked},
		{"the source is guarded", []*networkingv1.NetworkPolicy{guard("web")}, revoked},
		{"the source allows its own port", []*networkingv1.NetworkPolicy{guard("web", 40000)}, allowed},
		{"both allow", []*networkingv1.NetworkPolicy{guard("web", 40000), guard("db", 80)}, allowed},
		{"the source allows the other port", []*networkingv1.NetworkPolicy{guard("web", 80)}, revoked},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newFixture(t)
			v4, v6 := r.track(web, db, filter.TCP, 80, 0), r.track(web6, db6, filter.TCP, 80, foreign)
			r.table.SetMidStream(v4)
			r.table.SetMidStream(v6)
			r.commit(conntrack.ScopeAll)
			r.want(v4, allowed)
			for _, p := range tc.guards {
				r.store.SetPolicy(netpol.Read(p))
			}
			r.commit(conntrack.ScopeAddresses)
			r.want(v4, tc.want)
			r.want(v6, tc.want|foreign)
			for _, p := range tc.guards {
				r.store.DeletePolicy(netpol.Ref("default", p.Name))
			}
			r.commit(conntrack.ScopeAddresses)
			r.want(v4, allowed)
		})
	}
}
