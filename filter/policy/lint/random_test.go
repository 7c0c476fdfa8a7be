package lint

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// dice makes small random clusters, in which rules often cover each other.
type dice struct{ *rand.Rand }

func pick[T any](d dice, from ...T) T { return from[d.IntN(len(from))] }

func (d dice) selector() labels.Selector {
	sel, _ := labels.Parse(pick(d, "", "", "role=a", "role in (a,b)", "role", "role!=c"))
	return sel
}

func (d dice) namespaces() labels.Selector {
	sel, _ := labels.Parse(pick(d, "", "", "team=x", "kubernetes.io/metadata.name=two"))
	return sel
}

func (d dice) rule(dir filter.Direction, ordered bool) (r policy.Rule) {
	r.Action = policy.Accept
	if ordered {
		r.Action = pick(d, policy.Accept, policy.Deny, policy.Pass)
	}
	for range 1 + d.IntN(2) {
		p := policy.Peer{Namespaces: d.namespaces(), Pods: d.selector()}
		switch n := d.IntN(4); {
		case n == 0 && ordered && dir == filter.Egress:
			p = policy.Peer{Networks: []netip.Prefix{netip.MustParsePrefix(pick(d, "0.0.0.0/0", "10.0.0.0/30")), netip.MustParsePrefix("::/0")}}
		case n == 0 && !ordered:
			p = policy.Peer{Block: &policy.Block{CIDR: netip.MustParsePrefix(pick(d, "10.0.0.0/29", "10.0.0.0/31"))}}
		case n == 1 && !ordered:
			p.Namespaces = nil
		}
		r.Peers = append(r.Peers, p)
	}
	for range d.IntN(2) {
		low := pick[uint16](d, 1, 80)
		r.Ports = append(r.Ports, policy.PortRange{Protocol: filter.TCP, Low: low, High: max(low, pick[uint16](d, 80, 90))})
	}
	return r
}

func (d dice) policy(name string) *policy.Policy {
	p := &policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: name}, Tier: pick(d, policy.Admin, policy.NetworkPolicy, policy.Baseline), Priority: int32(d.IntN(3)),
		Subject: policy.Subject{Namespaces: d.namespaces(), Pods: d.selector()},
	}
	ordered := p.Tier != policy.NetworkPolicy
	if !ordered {
		ns := pick(d, "one", "two")
		p.Ref, p.Priority = policy.Ref{Kind: "NetworkPolicy", Namespace: ns, Name: name}, 0
		p.Subject.Namespace, p.Subject.Namespaces = ns, nil
		p.Isolates = [2]bool{true, true}
	}
	for dir := range p.Rules {
		for range 1 + d.IntN(3) {
			p.Rules[dir] = append(p.Rules[dir], d.rule(filter.Direction(dir), ordered))
		}
	}
	return p
}

// A rule that is reported as shadowed or unreachable never decides.
func TestReportedRulesNeverDecide(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(400) {
		d := dice{rand.New(rand.NewPCG(seed, 3))}
		w := policy.NewStore()
		var namespaces []*corev1.Namespace
		for name, team := range map[string]string{"one": "x", "two": "y"} {
			namespaces = append(namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": team}}})
			w.SetNamespace(name, labels.Set{"team": team})
		}
		var pods []*policy.Pod
		for i := range 6 {
			p := &policy.Pod{Namespace: pick(d, "one", "two"), Name: fmt.Sprint("p", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}, Labels: labels.Set{}}
			if role := pick(d, "a", "b", "c", ""); role != "" {
				p.Labels["role"] = role
			}
			pods = append(pods, p)
			w.SetPod(p)
		}
		var policies []*policy.Policy
		for i := range 2 + d.IntN(5) {
			p := d.policy(fmt.Sprint("p", i))
			policies = append(policies, p)
			w.SetPolicy(p)
		}
		s, _ := w.Commit()
		deciding := decidingRules(s)
		for _, f := range Check(inventory.New(inventory.Objects{Namespaces: namespaces, Pods: pods, Policies: policies})) {
			if f.Check != Shadowed && f.Check != Unreachable {
				continue
			}
			seen[f.Check+" "+string(f.Object[0])]++
			for _, r := range deciding {
				if at := fmt.Sprintf("spec.%s", r.Direction); objectOf(r, policies) == f.Object && (f.Field == at || f.Field == fmt.Sprintf("%s[%d]", at, r.Index)) {
					t.Fatalf("seed %d: %v, but %v decides", seed, f, r)
				}
			}
		}
	}
	for _, what := range []string{Shadowed + " C", Shadowed + " N", Unreachable + " C"} {
		if seen[what] < 100 {
			t.Errorf("%q was reported only %d times", what, seen[what])
		}
	}
}

func objectOf(r filter.Rule, policies []*policy.Policy) string {
	for _, p := range policies {
		if p.Ref.String() == r.Policy {
			return p.Ref.Object()
		}
	}
	return ""
}

// decidingRules returns the rules that decide about a flow between two pods, or between a pod
// and an address outside, and the rules that pass such a flow on.
func decidingRules(s *policy.Snapshot) []filter.Rule {
	found := make(map[filter.Rule]bool)
	for i := range byte(8) {
		for j := range byte(8) {
			for _, port := range []uint16{1, 79, 80, 85, 90, 443} {
				v := s.Decide(filter.NewKey(netip.AddrFrom4([4]byte{10, 0, 0, i + 1}), netip.AddrFrom4([4]byte{10, 0, 0, j + 1}), filter.TCP, port))
				for _, r := range []*filter.Rule{v.Egress.Rule, v.Egress.Passed, v.Ingress.Rule, v.Ingress.Passed} {
					if r != nil {
						found[*r] = true
					}
				}
			}
		}
	}
	rules := make([]filter.Rule, 0, len(found))
	for r := range found {
		rules = append(rules, r)
	}
	return rules
}
