package kube

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/bench/testbed/apiserver"
	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/policy"
)

func nodeObject(name string, ranges ...string) *node {
	return slimNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDRs: ranges}})
}

// The first snapshot after a change of a Node has the new pod ranges. So the publication of this
// snapshot starts the sweep that new ranges require; otherwise, the sweep would wait for another
// change.
func TestRangesComeWithTheirChange(t *testing.T) {
	q := newQueue(nodeKind)
	table := newTable(nodeKind, q, newHealth("test", quietSlog))
	table.nodes = newNodes("here", true, quietSlog)
	w := policy.NewStore()
	w.SetLocalNode("here")
	last, _ := w.Commit()
	for _, step := range []struct {
		name string
		do   func() error
		addr string
		want policy.Pending
	}{
		{"list", func() error { return table.Replace([]any{nodeObject("here", "10.1.0.0/24")}, "1") }, "10.1.0.1", policy.PendingLocal},
		{"add", func() error { return table.Add(nodeObject("there", "10.2.0.0/24")) }, "10.2.0.1", policy.PendingRemote},
		{"update", func() error { return table.Update(nodeObject("there", "10.3.0.0/24")) }, "10.2.0.1", policy.Known},
		{"update again", func() error { return table.Update(nodeObject("there", "10.3.0.0/24", "nonsense", "10.4.0.0/24")) }, "10.4.0.1", policy.PendingRemote},
		{"delete", func() error { return table.Delete(nodeObject("there", "10.3.0.0/24")) }, "10.3.0.1", policy.Known},
		{"last known", func() error {
			return table.Delete(cache.DeletedFinalStateUnknown{Obj: nodeObject("here", "10.1.0.0/24")})
		}, "10.1.0.1", policy.Known},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		changes, _ := q.take(false)
		for _, c := range changes {
			c.apply(w)
		}
		now, _ := w.Commit()
		if got := now.Pending(netip.MustParseAddr(step.addr)); got != step.want || now.SameRanges(last) {
			t.Errorf("%s: %s is %d, want %d; the same ranges as before: %t", step.name, step.addr, got, step.want, now.SameRanges(last))
		}
		last = now
	}
}

// makeNode returns a Node with 20 labels, 50 images and the addresses.
func makeNode(name string, labels map[string]string, addrs ...string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	for i := range 20 {
		n.Labels["example.org/label-"+string(rune('a'+i))] = name
	}
	for k, v := range labels {
		n.Labels[k] = v
	}
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	for range 50 {
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{Names: []string{strings.Repeat("registry.invalid/image/", 5)}, SizeBytes: 1e8})
	}
	return n
}

// beat returns the Node as a heartbeat of its kubelet writes it: only times differ.
func beat(n *corev1.Node, at int64) *corev1.Node {
	n = n.DeepCopy()
	n.ResourceVersion = time.Unix(at, 0).String()
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Unix(at, 0)}}
	return n
}

// An update of a Node that changes only times in its status is not passed to the policy store.
// Reading it costs few allocations, and none of them is for one label or one address.
func TestHeartbeatsCostNothing(t *testing.T) {
	q := newQueue(nodeKind)
	table := newTable(nodeKind, q, newHealth("test", quietSlog))
	table.nodes = newNodes("here", true, quietSlog)
	n, d := makeNode("here", role("worker"), "192.0.2.1", "2001:db8::1"), testDecoder(t)
	decode := func(n *corev1.Node) any { return d.decodeProtobuf(encode(t, n)) }
	if err := table.Replace([]any{decode(n)}, "1"); err != nil {
		t.Fatal(err)
	}
	take := func() int {
		changes, _ := q.take(false)
		return len(changes)
	}
	if got := take(); got != 1 {
		t.Fatalf("the list has %d changes", got)
	}
	raw := encode(t, beat(n, 1))
	allocs := testing.AllocsPerRun(100, func() {
		if err := table.Update(d.decodeProtobuf(raw)); err != nil {
			t.Fatal(err)
		}
	})
	if got := take(); got != 0 || allocs > 8 {
		t.Errorf("heartbeats are %d changes, with %v allocations each", got, allocs)
	}
	if err := table.Replace([]any{decode(beat(n, 2))}, "2"); err != nil || take() != 0 {
		t.Errorf("an unchanged Node in a new list is a change; error %v", err)
	}
	for name, change := range map[string]func(*corev1.Node){
		"a label":     func(n *corev1.Node) { n.Labels["new"] = "" },
		"no label":    func(n *corev1.Node) { delete(n.Labels, "role") },
		"an address":  func(n *corev1.Node) { n.Status.Addresses[0].Address = "192.0.2.9" },
		"no address":  func(n *corev1.Node) { n.Status.Addresses = n.Status.Addresses[1:] },
		"a pod range": func(n *corev1.Node) { n.Spec.PodCIDRs = []string{"10.1.0.0/24"} },
	} {
		changed := beat(n, 3)
		change(changed)
		if err := table.Update(decode(changed)); err != nil || take() != 1 {
			t.Errorf("%s is not a change; error %v", name, err)
		}
		if err := table.Update(decode(n)); err != nil || take() != 1 {
			t.Errorf("%s that changes back is not a change; error %v", name, err)
		}
	}
	if err := table.Delete(decode(n)); err != nil || take() != 1 {
		t.Errorf("the deletion is not a change; error %v", err)
	}
	if err := table.Add(decode(n)); err != nil || take() != 1 {
		t.Errorf("the same Node after its deletion is not a change; error %v", err)
	}
}

// Peers that are nodes follow the labels and addresses of the Nodes of the API, also with
// --pod-cidrs, which replaces only the pod ranges.
func TestPeersFollowNodes(t *testing.T) {
	for name, ranges := range map[string]bool{"pod ranges of Nodes": true, "--pod-cidrs": false} {
		t.Run(name, func(t *testing.T) {
			s, config := serve(t, apiserver.Options{})
			small(s)
			pods := v1beta1.NamespacedPod{PodSelector: metav1.LabelSelector{MatchLabels: role("frontend")}}
			nodes := metav1.LabelSelector{MatchLabels: role("control-plane")}
			s.Set(&v1beta1.ClusterNetworkPolicy{
				ObjectMeta: metav1.ObjectMeta{Name: "no-api"},
				Spec: v1beta1.ClusterNetworkPolicySpec{
					Tier: v1beta1.AdminTier, Subject: v1beta1.ClusterNetworkPolicySubject{Pods: &pods},
					Egress: []v1beta1.ClusterNetworkPolicyEgressRule{{Action: v1beta1.ClusterNetworkPolicyRuleActionDeny, To: []v1beta1.ClusterNetworkPolicyEgressPeer{{Nodes: &nodes}}}},
				},
			}, makeNode("one", role("control-plane"), "192.0.2.1", "2001:db8::1", "wrong"), makeNode("two", nil, "192.0.2.2"))
			f := follow(t, config, Options{NodeName: "two", NodeRanges: ranges})
			f.verdict("10.1.0.2", "192.0.2.1", 6443, filter.Deny)
			f.verdict("10.1.0.2", "192.0.2.2", 6443, filter.Allow)
			if n := f.log.count(event.NodeAddressUnreadable); n != 1 {
				t.Errorf("the malformed address was logged %d times, want once", n)
			}
			s.Set(makeNode("one", role("control-plane"), "192.0.2.3"))
			f.verdict("10.1.0.2", "192.0.2.3", 6443, filter.Deny)
			f.verdict("10.1.0.2", "192.0.2.1", 6443, filter.Allow)
			s.Set(makeNode("two", role("control-plane"), "192.0.2.2"))
			f.verdict("10.1.0.2", "192.0.2.2", 6443, filter.Deny)
			s.Delete(makeNode("one", nil))
			f.verdict("10.1.0.2", "192.0.2.3", 6443, filter.Allow)
		})
	}
}

// BenchmarkDecodeNode measures the cost of a heartbeat.
func BenchmarkDecodeNode(b *testing.B) {
	d, table := testDecoder(b), newTable(nodeKind, newQueue(nodeKind), newHealth("test", quietSlog))
	table.nodes = newNodes("here", true, quietSlog)
	raw := encode(b, beat(makeNode("here", nil, "192.0.2.1"), 1))
	b.ReportAllocs()
	for b.Loop() {
		if err := table.Update(d.decodeProtobuf(raw)); err != nil {
			b.Fatal(err)
		}
	}
}
