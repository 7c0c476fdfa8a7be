package policy_test

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
)

var (
	nodeNames      = []string{localNode, "elsewhere", "third"}
	maskedNetworks = []v1beta1.CIDR{
		"10.0.0.0/29", "10.0.0.4/30", "10.0.0.3/32", "10.0.0.0/8", "0.0.0.0/0", "192.0.2.0/24", "10.9.0.0/16", "10.9.0.1/32",
		"fd00::/125", "fd00::4/126", "fd00::/16", "::/0", "2001:db8::/32", "fd09::/16",
	}
	badNetworks = []v1beta1.CIDR{"10.0.0.1/8", "10.0.0.0", "", "::ffff:10.0.0.0/104"}
)

// addClusterPolicies adds up to eight ClusterNetworkPolicies and some Node objects. It keeps
// at most five NetworkPolicies, because more would isolate most pods.
func (r chance) addClusterPolicies(c *cluster) {
	c.assumed = r.oneIn(2)
	c.Policies = c.Policies[:min(len(c.Policies), r.IntN(6))]
	for i := range r.IntN(9) {
		c.Cluster = append(c.Cluster, r.clusterPolicy(fmt.Sprintf("c%d", i)))
	}
	for _, name := range nodeNames {
		if !r.oneIn(3) {
			c.Nodes = append(c.Nodes, r.nodeObject(name))
		}
	}
}

func (r chance) nodeObject(name string) *corev1.Node {
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: r.labels()}}
	for range r.IntN(4) {
		a := oneOf(r, slices.Concat(nodeAddrs, outsideAddrs[:3])...)
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{
			Type: oneOf(r, corev1.NodeInternalIP, corev1.NodeExternalIP, corev1.NodeHostName), Address: a.String(),
		})
	}
	if r.oneIn(4) {
		o.Status.Addresses = append(o.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	}
	return o
}

func (r chance) clusterPolicy(name string) *v1beta1.ClusterNetworkPolicy {
	o := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}}
	o.Spec.Tier = oneOf(r, v1beta1.AdminTier, v1beta1.BaselineTier)
	o.Spec.Priority = oneOf[int32](r, 0, 1, 1, 2, 1000)
	if r.oneIn(150) {
		o.Spec.Tier = "Sideways"
	}
	if r.oneIn(2) {
		o.Spec.Subject.Namespaces = r.namespaceSelectorOr(150)
	} else {
		o.Spec.Subject.Pods = r.namespacedPod()
	}
	if r.oneIn(150) {
		o.Spec.Subject = oneOf(r, v1beta1.ClusterNetworkPolicySubject{}, v1beta1.ClusterNetworkPolicySubject{Namespaces: r.namespaceSelectorOr(150), Pods: r.namespacedPod()})
	}
	for i := range r.IntN(5) {
		rule := v1beta1.ClusterNetworkPolicyIngressRule{Name: r.ruleName(i), Action: r.action(), Protocols: r.protocols()}
		for range r.fewPeers() {
			p := r.clusterPeer(2)
			rule.From = append(rule.From, v1beta1.ClusterNetworkPolicyIngressPeer{Namespaces: p.Namespaces, Pods: p.Pods})
		}
		o.Spec.Ingress = append(o.Spec.Ingress, rule)
	}
	for i := range r.IntN(5) {
		rule := v1beta1.ClusterNetworkPolicyEgressRule{Name: r.ruleName(i), Action: r.action(), Protocols: r.protocols()}
		for range r.fewPeers() {
			rule.To = append(rule.To, r.clusterPeer(6))
		}
		o.Spec.Egress = append(o.Spec.Egress, rule)
	}
	return o
}

func (r chance) ruleName(i int) string { return oneOf(r, "", fmt.Sprintf("rule %d", i)) }

// fewPeers returns the number of peers of a rule. The API wants at least one.
func (r chance) fewPeers() int {
	if r.oneIn(120) {
		return 0
	}
	return 1 + r.IntN(2)
}

func (r chance) action() v1beta1.ClusterNetworkPolicyRuleAction {
	if r.oneIn(150) {
		return oneOf[v1beta1.ClusterNetworkPolicyRuleAction](r, "", "Allow", "Log")
	}
	return oneOf(r, v1beta1.ClusterNetworkPolicyRuleActionAccept, v1beta1.ClusterNetworkPolicyRuleActionDeny, v1beta1.ClusterNetworkPolicyRuleActionPass)
}

func (r chance) namespacedPod() *v1beta1.NamespacedPod {
	return &v1beta1.NamespacedPod{NamespaceSelector: *r.namespaceSelectorOr(150), PodSelector: *r.selector(150)}
}

// clusterPeer returns a peer of one kind. It chooses among the first items of this list; the
// parameter is their number: namespaces, pods, networks, nodes, domain names.
func (r chance) clusterPeer(kinds int) (p v1beta1.ClusterNetworkPolicyEgressPeer) {
	if r.oneIn(150) {
		return p
	}
	if r.oneIn(150) {
		p.Namespaces, p.Pods = r.namespaceSelectorOr(150), r.namespacedPod()
		return p
	}
	switch r.IntN(kinds) {
	case 0:
		p.Namespaces = r.namespaceSelectorOr(150)
	case 1:
		p.Pods = r.namespacedPod()
	case 2, 3:
		for range 1 + r.IntN(3) {
			p.Networks = append(p.Networks, oneOf(r, maskedNetworks...))
		}
		if r.oneIn(120) {
			p.Networks = append(p.Networks, oneOf(r, badNetworks...))
		}
	case 4:
		p.Nodes = r.selector(150)
	case 5:
		if p.DomainNames = []v1beta1.DomainName{"example.com"}; !r.oneIn(4) {
			p = v1beta1.ClusterNetworkPolicyEgressPeer{Nodes: r.selector(150)}
		}
	}
	return p
}

func (r chance) protocols() (list []v1beta1.ClusterNetworkPolicyProtocol) {
	for range oneOf(r, 0, 0, 1, 1, 2, 3) {
		var p v1beta1.ClusterNetworkPolicyProtocol
		switch port := r.destination(); r.IntN(5) {
		case 0, 1:
			p.TCP = &v1beta1.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		case 2:
			p.UDP = &v1beta1.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case 3:
			p.SCTP = &v1beta1.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		case 4:
			p.DestinationNamedPort = oneOf(r, portNames...)
		}
		if r.oneIn(150) {
			p = oneOf(r, v1beta1.ClusterNetworkPolicyProtocol{}, v1beta1.ClusterNetworkPolicyProtocol{DestinationNamedPort: "HTTP"},
				v1beta1.ClusterNetworkPolicyProtocol{TCP: &v1beta1.ClusterNetworkPolicyProtocolTCP{}, DestinationNamedPort: "http"})
		}
		list = append(list, p)
	}
	return list
}

func (r chance) destination() *v1beta1.Port {
	number := oneOf(r, portNumbers...)
	switch {
	case r.oneIn(150):
		return oneOf(r, nil, &v1beta1.Port{}, &v1beta1.Port{Number: 65536}, &v1beta1.Port{Number: -1}, &v1beta1.Port{Range: &v1beta1.PortRange{Start: 81, End: 80}})
	case r.oneIn(3) && number < 65535:
		return &v1beta1.Port{Range: &v1beta1.PortRange{Start: number, End: min(65535, number+oneOf[int32](r, 1, 100, 65535))}}
	}
	return &v1beta1.Port{Number: number}
}
