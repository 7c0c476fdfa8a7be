package clusterpolicy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
)

// A part that is not understood never allows a flow that was denied before: for random policies
// and flows, the test replaces each part in turn with one of a newer or broken API.
func TestUnknownPartsNeverAllow(t *testing.T) {
	rounds := 200
	if testing.Short() {
		rounds = 40
	}
	denied := 0
	for seed := range rounds {
		g := generator{rand.New(rand.NewPCG(uint64(seed), 7))}
		var all []*v1beta1.ClusterNetworkPolicy
		for i := range 1 + g.IntN(4) {
			all = append(all, g.policy(fmt.Sprintf("p%d", i)))
		}
		before := decideAll(all)
		for i, o := range all {
			for what, damage := range damages(o) {
				broken := o.DeepCopy()
				damage(broken)
				all[i] = broken
				for at, action := range decideAll(all) {
					if before[at] == filter.Deny {
						denied++
						if action != filter.Deny {
							t.Fatalf("seed %d, policy %d, %s: flow %d was denied and is allowed\nbefore %+v\nafter  %+v", seed, i, what, at, o.Spec, broken.Spec)
						}
					}
				}
				all[i] = o
			}
		}
	}
	if denied < 10*rounds {
		t.Errorf("only %d denied flows were compared", denied)
	}
}

// damages returns functions that each damage one part of a policy, by a description of the
// damage. The part then looks as if it came from a newer or broken API.
func damages(o *v1beta1.ClusterNetworkPolicy) map[string]func(*v1beta1.ClusterNetworkPolicy) {
	all := map[string]func(*v1beta1.ClusterNetworkPolicy){
		"tier":          func(o *v1beta1.ClusterNetworkPolicy) { o.Spec.Tier = "Emergency" },
		"no subject":    func(o *v1beta1.ClusterNetworkPolicy) { o.Spec.Subject = v1beta1.ClusterNetworkPolicySubject{} },
		"bad namespace": func(o *v1beta1.ClusterNetworkPolicy) { o.Spec.Subject.Namespaces = badSelector() },
		"two subjects": func(o *v1beta1.ClusterNetworkPolicy) {
			o.Spec.Subject.Namespaces, o.Spec.Subject.Pods = &metav1.LabelSelector{}, &v1beta1.NamespacedPod{}
		},
	}
	for i, r := range o.Spec.Ingress {
		name := func(part string) string { return fmt.Sprintf("ingress %d: %s", i, part) }
		all[name("action")] = func(o *v1beta1.ClusterNetworkPolicy) { o.Spec.Ingress[i].Action = "Log" }
		all[name("no peers")] = func(o *v1beta1.ClusterNetworkPolicy) { o.Spec.Ingress[i].From = nil }
		for j := range r.From {
			all[name(fmt.Sprintf("peer %d", j))] = func(o *v1beta1.ClusterNetworkPolicy) {
				o.Spec.Ingress[i].From[j] = v1beta1.ClusterNetworkPolicyIngressPeer{}
			}
			all[name(fmt.Sprintf("selector %d", j))] = func(o *v1beta1.ClusterNetworkPolicy) {
				o.Spec.Ingress[i].From[j] = v1beta1.ClusterNetworkPolicyIngressPeer{Namespaces: badSelector()}
			}
		}
		for j := range r.Protocols {
			all[name(fmt.Sprintf("protocol %d", j))] = func(o *v1beta1.ClusterNetworkPolicy) {
				o.Spec.Ingress[i].Protocols[j] = v1beta1.ClusterNetworkPolicyProtocol{}
			}
		}
	}
	for i, r := range o.Spec.Egress {
		name := func(part string) string { return fmt.Sprintf("egress %d: %s", i, part) }
		all[name("action")] = func(o *v1beta1.ClusterNetworkPolicy) { o.Spec.Egress[i].Action = "" }
		all[name("no peers")] = func(o *v1beta1.ClusterNetworkPolicy) { o.Spec.Egress[i].To = nil }
		for j := range r.To {
			all[name(fmt.Sprintf("peer %d", j))] = func(o *v1beta1.ClusterNetworkPolicy) {
				o.Spec.Egress[i].To[j] = v1beta1.ClusterNetworkPolicyEgressPeer{}
			}
			all[name(fmt.Sprintf("names %d", j))] = func(o *v1beta1.ClusterNetworkPolicy) {
				o.Spec.Egress[i].To[j] = v1beta1.ClusterNetworkPolicyEgressPeer{DomainNames: []v1beta1.DomainName{"a.example"}}
			}
			all[name(fmt.Sprintf("networks %d", j))] = func(o *v1beta1.ClusterNetworkPolicy) {
				o.Spec.Egress[i].To[j] = v1beta1.ClusterNetworkPolicyEgressPeer{Networks: []v1beta1.CIDR{"10.0.0.0/8", "10.0.0.1/8"}}
			}
		}
		for j := range r.Protocols {
			all[name(fmt.Sprintf("protocol %d", j))] = func(o *v1beta1.ClusterNetworkPolicy) {
				o.Spec.Egress[i].Protocols[j] = v1beta1.ClusterNetworkPolicyProtocol{TCP: &v1beta1.ClusterNetworkPolicyProtocolTCP{}}
			}
		}
	}
	return all
}

func badSelector() *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}
}

// decideAll returns the verdicts about all flows between four pods and an address outside.
func decideAll(objects []*v1beta1.ClusterNetworkPolicy) (all []filter.Action) {
	w := policy.NewStore()
	var addrs []netip.Addr
	for _, ns := range []string{"a", "b"} {
		w.SetNamespace(ns, map[string]string{"ns": ns})
		for _, name := range []string{"x", "y"} {
			addr := netip.AddrFrom4([4]byte{10, 0, ns[0], name[0]})
			w.SetPod(&policy.Pod{Namespace: ns, Name: name, Labels: map[string]string{"pod": name}, Addrs: []netip.Addr{addr},
				Ports: []policy.NamedPort{{Name: "web", Protocol: filter.TCP, Number: 80}}})
			addrs = append(addrs, addr)
		}
	}
	addrs = append(addrs, netip.MustParseAddr("192.0.2.1"))
	for _, o := range objects {
		w.SetPolicy(clusterpolicy.Read(o))
	}
	s, _ := w.Commit()
	for _, src := range addrs {
		for _, dst := range addrs {
			for _, port := range []uint16{80, 53} {
				for _, protocol := range []filter.Protocol{filter.TCP, filter.UDP} {
					k := filter.Key{Src: src.As16(), Dst: dst.As16(), Protocol: protocol, Transport: filter.Ported, Port: port}
					all = append(all, s.Decide(k).Action)
				}
			}
		}
	}
	return all
}

// generator makes random policies.
type generator struct{ *rand.Rand }

func (g generator) policy(name string) *v1beta1.ClusterNetworkPolicy {
	o := new(v1beta1.ClusterNetworkPolicy)
	o.Name = name
	o.Spec.Priority = int32(g.IntN(3))
	if o.Spec.Tier = v1beta1.AdminTier; g.IntN(2) == 0 {
		o.Spec.Tier = v1beta1.BaselineTier
	}
	if o.Spec.Subject.Namespaces = g.selector("ns", "a", "b"); g.IntN(2) == 0 {
		o.Spec.Subject = v1beta1.ClusterNetworkPolicySubject{Pods: g.pods()}
	}
	for range g.IntN(3) {
		r := v1beta1.ClusterNetworkPolicyIngressRule{Action: g.action(), Protocols: g.protocols()}
		for range 1 + g.IntN(2) {
			p := g.peer(2)
			r.From = append(r.From, v1beta1.ClusterNetworkPolicyIngressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		o.Spec.Ingress = append(o.Spec.Ingress, r)
	}
	for range g.IntN(3) {
		r := v1beta1.ClusterNetworkPolicyEgressRule{Action: g.action(), Protocols: g.protocols()}
		for range 1 + g.IntN(2) {
			r.To = append(r.To, g.peer(3))
		}
		o.Spec.Egress = append(o.Spec.Egress, r)
	}
	return o
}

func (g generator) action() v1beta1.ClusterNetworkPolicyRuleAction {
	return []v1beta1.ClusterNetworkPolicyRuleAction{"Accept", "Deny", "Pass"}[g.IntN(3)]
}

// selector returns a selector of one of the values, or of everything.
func (g generator) selector(label string, values ...string) *metav1.LabelSelector {
	if i := g.IntN(len(values) + 1); i < len(values) {
		return &metav1.LabelSelector{MatchLabels: map[string]string{label: values[i]}}
	}
	return &metav1.LabelSelector{}
}

func (g generator) pods() *v1beta1.NamespacedPod {
	return &v1beta1.NamespacedPod{NamespaceSelector: *g.selector("ns", "a", "b"), PodSelector: *g.selector("pod", "x", "y")}
}

// peer returns a peer of one of the first n kinds.
func (g generator) peer(n int) (p v1beta1.ClusterNetworkPolicyEgressPeer) {
	switch g.IntN(n) {
	case 0:
		p.Namespaces = g.selector("ns", "a", "b")
	case 1:
		p.Pods = g.pods()
	default:
		p.Networks = []v1beta1.CIDR{[]v1beta1.CIDR{"0.0.0.0/0", "10.0.97.0/24", "192.0.2.0/24"}[g.IntN(3)]}
	}
	return p
}

func (g generator) protocols() (all []v1beta1.ClusterNetworkPolicyProtocol) {
	for range g.IntN(3) {
		port := &v1beta1.Port{Number: []int32{80, 53}[g.IntN(2)]}
		switch g.IntN(3) {
		case 0:
			all = append(all, v1beta1.ClusterNetworkPolicyProtocol{TCP: &v1beta1.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}})
		case 1:
			all = append(all, v1beta1.ClusterNetworkPolicyProtocol{UDP: &v1beta1.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}})
		default:
			all = append(all, v1beta1.ClusterNetworkPolicyProtocol{DestinationNamedPort: "web"})
		}
	}
	return all
}
