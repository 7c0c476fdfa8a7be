package clusterpolicy

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
)

// MaxRules is the number of rules that the API allows in each direction of a policy.
const MaxRules = 25

// WriteRule returns a rule in the form of the API: a ClusterNetworkPolicyEgressRule or a
// ClusterNetworkPolicyIngressRule. It is for rules whose peers are pods or networks, and
// whose ports are numbers.
func WriteRule(d filter.Direction, r policy.Rule) any {
	action := map[policy.Action]v1beta1.ClusterNetworkPolicyRuleAction{
		policy.Accept: v1beta1.ClusterNetworkPolicyRuleActionAccept,
		policy.Deny:   v1beta1.ClusterNetworkPolicyRuleActionDeny,
		policy.Pass:   v1beta1.ClusterNetworkPolicyRuleActionPass,
	}[r.Action]
	var protocols []v1beta1.ClusterNetworkPolicyProtocol
	for _, p := range r.Ports {
		protocols = append(protocols, writePort(p))
	}
	if d == filter.Egress {
		out := v1beta1.ClusterNetworkPolicyEgressRule{Name: r.Name, Action: action, Protocols: protocols}
		for _, p := range r.Peers {
			out.To = append(out.To, writePeer(p))
		}
		return out
	}
	out := v1beta1.ClusterNetworkPolicyIngressRule{Name: r.Name, Action: action, Protocols: protocols}
	for _, p := range r.Peers {
		out.From = append(out.From, v1beta1.ClusterNetworkPolicyIngressPeer{Pods: writePods(p)})
	}
	return out
}

func writePeer(p policy.Peer) (out v1beta1.ClusterNetworkPolicyEgressPeer) {
	if len(p.Networks) == 0 {
		out.Pods = writePods(p)
	}
	for _, n := range p.Networks {
		out.Networks = append(out.Networks, v1beta1.CIDR(n.String()))
	}
	return out
}

func writePods(p policy.Peer) *v1beta1.NamespacedPod {
	return &v1beta1.NamespacedPod{NamespaceSelector: writeSelector(p.Namespaces), PodSelector: writeSelector(p.Pods)}
}

func writeSelector(sel labels.Selector) metav1.LabelSelector {
	if sel == nil {
		return metav1.LabelSelector{}
	}
	out, err := metav1.ParseToLabelSelector(sel.String())
	if err != nil {
		return metav1.LabelSelector{} // cannot happen: it is the text of a selector
	}
	return *out
}

func writePort(p policy.PortRange) (out v1beta1.ClusterNetworkPolicyProtocol) {
	port := &v1beta1.Port{Number: int32(p.Low)}
	if p.High > p.Low {
		port = &v1beta1.Port{Range: &v1beta1.PortRange{Start: int32(p.Low), End: int32(p.High)}}
	}
	switch p.Protocol {
	case filter.UDP:
		out.UDP = &v1beta1.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
	case filter.SCTP:
		out.SCTP = &v1beta1.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
	default:
		out.TCP = &v1beta1.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
	}
	return out
}
