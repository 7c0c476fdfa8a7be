package explain_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/explain"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// dice makes small random clusters. Labels, names, addresses and ports are often equal, and
// some parts are malformed.
type dice struct{ *rand.Rand }

func pick[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

func (d dice) one(in int) bool { return d.IntN(in) == 0 }

func (d dice) labels() map[string]string {
	set := map[string]string{}
	for _, k := range []string{"role", "tier", "pod-template-hash"} {
		if !d.one(3) {
			set[k] = pick(d, "a", "b", "c")
		}
	}
	return set
}

func (d dice) selector() *metav1.LabelSelector {
	switch d.IntN(7) {
	case 0:
		return &metav1.LabelSelector{}
	case 1, 2, 3:
		return &metav1.LabelSelector{MatchLabels: map[string]string{pick(d, "role", "tier"): pick(d, "a", "b", "c")}}
	}
	r := metav1.LabelSelectorRequirement{Key: pick(d, "role", "tier"), Operator: pick(d,
		metav1.LabelSelectorOpIn, metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
	if r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpNotIn {
		r.Values = []string{"a", pick(d, "b", "c")}
	}
	if d.one(15) {
		r.Operator = "Is"
	}
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{r}}
}

func (d dice) peer() networkingv1.NetworkPolicyPeer {
	var p networkingv1.NetworkPolicyPeer
	switch d.IntN(8) {
	case 0, 1:
		p.PodSelector = d.selector()
	case 2, 3:
		p.NamespaceSelector = d.selector()
	case 4:
		p.PodSelector, p.NamespaceSelector = d.selector(), d.selector()
	case 5, 6:
		p.IPBlock = &networkingv1.IPBlock{CIDR: pick(d, "10.0.0.0/29", "10.0.0.4/30", "0.0.0.0/0", "fd00::/125", "::/0", "192.0.2.0/24", "010.0.0.0/8")}
		for range d.IntN(3) {
			p.IPBlock.Except = append(p.IPBlock.Except, pick(d, "10.0.0.2/32", "10.0.0.4/31", "fd00::4/126", "192.0.2.7/32", "oops", "::ffff:10.0.0.2/128"))
		}
	}
	if d.one(30) {
		p.PodSelector = d.selector() // together with a block, this makes the peer malformed
	}
	return p
}

func (d dice) port() networkingv1.NetworkPolicyPort {
	var p networkingv1.NetworkPolicyPort
	if !d.one(4) {
		proto := pick(d, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP, "tcp")
		p.Protocol = &proto
	}
	if !d.one(6) {
		port := pick(d, intstr.FromInt32(80), intstr.FromInt32(81), intstr.FromInt32(0), intstr.FromString("web"), intstr.FromString("alt"))
		p.Port = &port
	}
	if d.one(4) {
		end := pick[int32](d, 79, 82, 90)
		p.EndPort = &end
	}
	return p
}

func (d dice) policy(name string) *networkingv1.NetworkPolicy {
	o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: pick(d, "one", "two"), Name: name}}
	o.Spec.PodSelector = *d.selector()
	o.Spec.PolicyTypes = pick(d, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Ingress", "Egress"}, []networkingv1.PolicyType{"Egress"})
	for range d.IntN(3) {
		var peers []networkingv1.NetworkPolicyPeer
		var ports []networkingv1.NetworkPolicyPort
		for range d.IntN(3) {
			peers = append(peers, d.peer())
		}
		for range d.IntN(3) {
			ports = append(ports, d.port())
		}
		if d.one(2) {
			o.Spec.Ingress = append(o.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports})
		} else {
			o.Spec.Egress = append(o.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports})
		}
	}
	return o
}

func (d dice) cluster() objects {
	var o objects
	for _, name := range []string{"one", "two"} {
		if !d.one(4) {
			o.Namespaces = append(o.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: d.labels()}})
		}
	}
	for i := range 6 {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pick(d, "one", "two"), Name: fmt.Sprint("p", i), Labels: d.labels()}}
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.0.0.%d", i+1)}, {IP: fmt.Sprintf("fd00::%d", i+1)}}
		p.Status.HostIP = pick(d, "", "192.0.2.7")
		p.Spec.NodeName = pick(d, "", "node0", "node1")
		for range d.IntN(3) {
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Ports: []corev1.ContainerPort{{
				Name: pick(d, "web", "alt", "other"), Protocol: pick(d, corev1.ProtocolTCP, corev1.ProtocolUDP), ContainerPort: pick[int32](d, 80, 81, 8080),
			}}})
		}
		p.Spec.HostNetwork = d.one(10)
		o.Pods = append(o.Pods, p)
	}
	for i := range d.IntN(3) {
		n := &policy.Node{Name: fmt.Sprint("node", i), Labels: d.labels()}
		for range 1 + d.IntN(2) {
			n.Addrs = append(n.Addrs, netip.MustParseAddr(pick(d, "192.0.2.7", "192.0.2.8", "fd00::9")))
		}
		o.Nodes = append(o.Nodes, n)
	}
	for i := range 1 + d.IntN(4) {
		o.Policies = append(o.Policies, d.policy(fmt.Sprint("policy", i)))
	}
	for i := range 2 + d.IntN(6) {
		o.Ordered = append(o.Ordered, d.ordered(fmt.Sprint("ordered", i)))
	}
	return o
}

// ordered returns a policy of the tier Admin or Baseline, made of a random NetworkPolicy.
func (d dice) ordered(name string) *policy.Policy {
	from := d.policy(name)
	from.Spec.PolicyTypes = []networkingv1.PolicyType{"Ingress", "Egress"}
	p := netpol.Read(from)
	p.Ref = policy.Ref{Kind: "ClusterNetworkPolicy", Name: name}
	if !d.one(3) {
		p.Subject.Namespaces = pick(d, labels.Everything(), labels.SelectorFromSet(labels.Set{pick(d, "role", "tier"): pick(d, "a", "b")}))
		p.Subject.Namespace = ""
	}
	p.Tier, p.Priority, p.Isolates = pick(d, policy.Admin, policy.Baseline), int32(d.IntN(3)), [2]bool{}
	p.Digest, p.Source = [32]byte{}, policy.Source{}
	for i := range p.Problems {
		p.Problems[i].Policy = p.Ref
	}
	for dir := range p.Rules {
		for i := range p.Rules[dir] {
			r := &p.Rules[dir][i]
			r.Action, r.Name = pick(d, policy.Accept, policy.Deny, policy.Pass), pick(d, "", "x")
			for j := range r.Peers {
				switch x := &r.Peers[j]; {
				case x.Malformed != "":
				case x.Block != nil && d.one(2):
					*x = policy.Peer{Networks: []netip.Prefix{x.Block.CIDR.Masked(), netip.MustParsePrefix(pick(d, "10.0.0.1/32", "192.0.2.8/32"))}}
				case d.one(6):
					*x = policy.Peer{Nodes: pick(d, labels.Everything(), labels.SelectorFromSet(labels.Set{"role": "a"}))}
				case d.one(6):
					*x = policy.Peer{Names: []string{"a.example"}}
				case x.Block == nil && x.Namespaces == nil:
					x.Namespaces = labels.Everything() // an ordered policy has no namespace
				}
			}
		}
	}
	return p
}

// objects are the API objects of a cluster.
type objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
	Ordered    []*policy.Policy // of the tiers Admin and Baseline
	Nodes      []*policy.Node
}

// clusterOf compiles the objects.
func clusterOf(from objects) (*explain.Cluster, *policy.Snapshot) {
	v := inventoryOf(from)
	return explain.New(v, v.Problems), v.Snapshot
}

func inventoryOf(from objects) *inventory.Inventory {
	return inventory.New(inventory.Objects{
		Namespaces: from.Namespaces, Pods: kubepod.ReadAll(from.Pods), Nodes: from.Nodes, Policies: append(netpol.ReadAll(from.Policies), from.Ordered...),
	})
}

// An explanation must agree with the decision: if a side denies, every rule has a mismatch,
// and if it allows, the named rule has none. The suggested change must allow the flow.
func TestExplanationsAgreeWithDecide(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(800) {
		d := dice{rand.New(rand.NewPCG(seed, 1))}
		o := d.cluster()
		c, snapshot := clusterOf(o)
		for range 20 {
			q := explain.Question{
				From: d.end(o), To: d.end(o), Port: pick(d, "80", "81", "8080", "90"),
				Protocol: pick(d, "tcp", "TCP", "UDP", "sctp", "icmp", ""),
			}
			if q.Protocol == "icmp" {
				q.Port = ""
			}
			flows, err := c.Flows(q)
			if err != nil && strings.Contains(err.Error(), "no packet can pass") {
				continue // the ends have no address family in common
			}
			if err != nil {
				t.Fatalf("seed %d, %+v: %v", seed, q, err)
			}
			for _, f := range flows {
				e := c.Explain(f)
				if v := snapshot.Decide(f.Key); e.Verdict != v {
					t.Fatalf("seed %d, %s: explained %v, decided %v", seed, f.Key, e.Verdict, v)
				}
				for _, s := range []explain.Side{e.Egress, e.Ingress} {
					if err := agrees(c, f, s, sideOf(e.Verdict, s.Direction)); err != nil {
						t.Fatalf("seed %d, %s, %s: %v\n%s", seed, f.Key, s.Direction, err, explain.Text([]explain.Explanation{e}))
					}
					seen[fmt.Sprint(s.Direction, " ", len(s.Policies) > 0, " ", s.Allows())]++
					for _, t := range s.Tiers {
						seen[fmt.Sprint(t.Tier, " ", t.Result)]++
					}
					if s.Change.Written() {
						changed := inventoryOf(apply(o, s))
						if again := explain.New(changed, changed.Problems).Explain(changed.Move(f)); !sideOf(again.Verdict, s.Direction).Allows() {
							t.Fatalf("seed %d, %s: the change does not allow the %s\n%s", seed, f.Key, s.Direction, explain.Text([]explain.Explanation{e}))
						}
						seen["changed"]++
					}
				}
			}
		}
	}
	for _, what := range []string{"Admin accept", "Admin deny", "Admin pass", "Admin no-match", "NetworkPolicy not-evaluated", "Baseline accept", "Baseline deny", "Baseline pass",
		"egress true true", "egress true false", "ingress true true", "ingress true false", "ingress false true", "changed"} {
		if seen[what] < 200 {
			t.Errorf("%q occurred only %d times: the random clusters cover too little", what, seen[what])
		}
	}
}

func (d dice) end(o objects) string {
	if d.one(5) {
		return pick(d, "192.0.2.7", "192.0.2.8", "10.0.0.9", "fd00::9", "10.0.0.1")
	}
	p := pick(d, o.Pods...)
	return p.Namespace + "/" + p.Name
}

func sideOf(v filter.Verdict, d filter.Direction) filter.Side {
	if d == filter.Egress {
		return v.Egress
	}
	return v.Ingress
}

func agrees(c *explain.Cluster, f explain.Flow, s explain.Side, v filter.Side) error {
	allowing := c.Allowing(f, s.Direction)
	if s.Allows() != v.Allows() {
		return fmt.Errorf("allows %t, decided %t", s.Allows(), v.Allows())
	}
	if err := tiersAgree(s, v); err != nil {
		return err
	}
	switch {
	case v.Rule == nil && v.Isolation == nil:
		if len(s.Policies) > 0 || len(allowing) > 0 || s.Change != nil {
			return fmt.Errorf("it is not isolated")
		}
	case v.Allows() && v.Rule.Action == policy.Accept:
		if s.Allowed == nil || s.Allowed.Rule != *v.Rule || len(s.Allowed.Mismatches) > 0 || !slices.Contains(allowing, *v.Rule) {
			return fmt.Errorf("%v allows it", *v.Rule)
		}
	case !v.Allows():
		if s.Allowed != nil || len(allowing) > 0 || s.Change == nil {
			return fmt.Errorf("it denies; allowing %v, change %v", allowing, s.Change)
		}
		for _, r := range s.Nearest {
			if len(r.Mismatches) == 0 {
				return fmt.Errorf("the nearest rule %v has no mismatch", r.Rule)
			}
		}
	}
	return nil
}

// tiersAgree checks that the tiers name exactly the rules of the verdict, that none of these
// rules has a mismatch, and that at most one tier decides.
func tiersAgree(s explain.Side, v filter.Side) error {
	decided := 0
	var named []filter.Rule
	for _, t := range s.Tiers {
		if t.Result == explain.Accepted || t.Result == explain.Denied {
			decided++
		}
		if t.Rule == nil {
			continue
		}
		if len(t.Rule.Mismatches) > 0 {
			return fmt.Errorf("the rule %v of the tier %s has the mismatches %v", t.Rule.Rule, t.Tier, t.Rule.Mismatches)
		}
		if !slices.Contains(t.Policies, t.Rule.Rule.Policy) {
			return fmt.Errorf("%v is not of one of the policies %v", t.Rule.Rule, t.Policies)
		}
		named = append(named, t.Rule.Rule)
	}
	var want []filter.Rule
	for _, r := range []*filter.Rule{v.Passed, v.Rule} {
		if r != nil {
			want = append(want, *r)
		}
	}
	if !slices.Equal(named, want) || decided > 1 {
		return fmt.Errorf("the tiers name %v, and %d decide; want %v", named, decided, want)
	}
	return nil
}

// apply makes the suggested change in a copy of the policy.
func apply(o objects, s explain.Side) objects {
	o.Policies, o.Ordered = slices.Clone(o.Policies), slices.Clone(o.Ordered)
	for i, p := range o.Ordered {
		if p.Ref == s.Change.Policy {
			changed := *p
			changed.Rules[s.Direction] = slices.Insert(slices.Clone(p.Rules[s.Direction]), s.Change.Before.Index, s.Change.Rule)
			o.Ordered[i] = &changed
		}
	}
	if s.Change.New != nil {
		o.Policies = append(o.Policies, s.Change.Add()[0].(*networkingv1.NetworkPolicy))
		return o
	}
	for i, p := range o.Policies {
		if netpol.Ref(p.Namespace, p.Name) != s.Change.Policy {
			continue
		}
		p = p.DeepCopy()
		o.Policies[i] = p
		for _, item := range s.Change.Add() {
			addItem(p, s, item)
		}
	}
	return o
}

// addItem adds an item in the form of the API to a list of a policy.
func addItem(p *networkingv1.NetworkPolicy, s explain.Side, item any) {
	switch add := item.(type) {
	case networkingv1.NetworkPolicyIngressRule:
		p.Spec.Ingress = append(p.Spec.Ingress, add)
	case networkingv1.NetworkPolicyEgressRule:
		p.Spec.Egress = append(p.Spec.Egress, add)
	case networkingv1.NetworkPolicyPeer:
		if at := s.Change.To.Index; s.Direction == filter.Egress {
			p.Spec.Egress[at].To = append(p.Spec.Egress[at].To, add)
		} else {
			p.Spec.Ingress[at].From = append(p.Spec.Ingress[at].From, add)
		}
	case networkingv1.NetworkPolicyPort:
		if at := s.Change.To.Index; s.Direction == filter.Egress {
			p.Spec.Egress[at].Ports = append(p.Spec.Egress[at].Ports, add)
		} else {
			p.Spec.Ingress[at].Ports = append(p.Spec.Ingress[at].Ports, add)
		}
	}
}
