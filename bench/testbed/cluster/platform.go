package cluster

import (
	"fmt"
	"math/rand/v2"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
)

// Platform generates ClusterNetworkPolicies like those of a platform team, half of them in each
// tier. Their subjects overlap: all namespaces, those of a team or of an environment, or the
// pods of a tier of applications.
func Platform(policies, rules int) (all []*v1beta1.ClusterNetworkPolicy) {
	p := platform{rand.New(rand.NewPCG(1, 2))}
	for i := range policies {
		o := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("platform-%03d", i)}}
		o.Spec.Tier, o.Spec.Priority = pick(p.Rand, []v1beta1.Tier{v1beta1.AdminTier, v1beta1.BaselineTier}), int32(i)
		in := [4]metav1.LabelSelector{{}, p.team(), p.environment()}[i%4]
		if o.Spec.Subject.Namespaces = &in; i%4 == 3 {
			o.Spec.Subject = v1beta1.ClusterNetworkPolicySubject{Pods: p.pods()}
		}
		for n := range rules {
			p.rule(o, n)
		}
		all = append(all, o)
	}
	return all
}

// platform generates parts of ClusterNetworkPolicies.
type platform struct{ *rand.Rand }

// rule adds a rule for egress or, if n is even, for ingress. Only egress has rules for networks.
func (p platform) rule(o *v1beta1.ClusterNetworkPolicy, n int) {
	peer, ports := p.peer(), p.ports()
	if n%2 == 0 && peer.Networks == nil {
		o.Spec.Ingress = append(o.Spec.Ingress, v1beta1.ClusterNetworkPolicyIngressRule{
			Name: fmt.Sprint("rule ", n), Action: p.action(), From: []v1beta1.ClusterNetworkPolicyIngressPeer{{Namespaces: peer.Namespaces, Pods: peer.Pods}}, Protocols: ports,
		})
		return
	}
	o.Spec.Egress = append(o.Spec.Egress, v1beta1.ClusterNetworkPolicyEgressRule{
		Name: fmt.Sprint("rule ", n), Action: p.action(), To: []v1beta1.ClusterNetworkPolicyEgressPeer{peer}, Protocols: ports,
	})
}

func (p platform) peer() (peer v1beta1.ClusterNetworkPolicyEgressPeer) {
	in := p.team()
	switch p.IntN(3) {
	case 0:
		peer.Namespaces = &in
	case 1:
		peer.Pods = p.pods()
	default:
		for range 5 {
			peer.Networks = append(peer.Networks, v1beta1.CIDR(fmt.Sprintf("198.%d.%d.0/24", p.IntN(256), p.IntN(256))))
		}
	}
	return peer
}

func (p platform) ports() (ports []v1beta1.ClusterNetworkPolicyProtocol) {
	for range p.IntN(3) {
		port := &v1beta1.Port{Number: pick(p.Rand, []int32{80, 443, 5432, 9090})}
		ports = append(ports, v1beta1.ClusterNetworkPolicyProtocol{TCP: &v1beta1.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}})
	}
	return ports
}

// action returns the action of a rule. One in 150 is not valid.
func (p platform) action() v1beta1.ClusterNetworkPolicyRuleAction {
	if p.IntN(150) == 0 {
		return pick(p.Rand, []v1beta1.ClusterNetworkPolicyRuleAction{"", "Allow", "Log"})
	}
	return pick(p.Rand, []v1beta1.ClusterNetworkPolicyRuleAction{
		v1beta1.ClusterNetworkPolicyRuleActionAccept, v1beta1.ClusterNetworkPolicyRuleActionDeny, v1beta1.ClusterNetworkPolicyRuleActionPass,
	})
}

func (p platform) team() metav1.LabelSelector { return labeled("team", teamName(p.IntN(20))) }

func (p platform) environment() metav1.LabelSelector {
	return labeled("env", pick(p.Rand, environments))
}

func (p platform) pods() *v1beta1.NamespacedPod {
	return &v1beta1.NamespacedPod{NamespaceSelector: p.environment(), PodSelector: labeled("tier", pick(p.Rand, tiers))}
}

func labeled(key, value string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}
