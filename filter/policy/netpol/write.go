package netpol

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
	"sluice/filter/policy"
)

// WriteRule returns a rule in the form of the API: a NetworkPolicyEgressRule or a
// NetworkPolicyIngressRule.
func WriteRule(d filter.Direction, r policy.Rule) any {
	var peers []networkingv1.NetworkPolicyPeer
	for _, p := range r.Peers {
		peers = append(peers, writePeer(p))
	}
	var ports []networkingv1.NetworkPolicyPort
	for _, p := range r.Ports {
		ports = append(ports, writePort(p))
	}
	if d == filter.Egress {
		return networkingv1.NetworkPolicyEgressRule{To: peers, Ports: ports}
	}
	return networkingv1.NetworkPolicyIngressRule{From: peers, Ports: ports}
}

// WritePolicy returns a whole policy in the form of the API, a *NetworkPolicy.
func WritePolicy(p *policy.Policy) any {
	out := &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: networkingv1.SchemeGroupVersion.String(), Kind: Kind},
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Ref.Namespace, Name: p.Ref.Name},
		Spec:       networkingv1.NetworkPolicySpec{PodSelector: *writeSelector(p.Subject.Pods)},
	}
	if p.Isolates[filter.Ingress] {
		out.Spec.PolicyTypes = append(out.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	}
	if p.Isolates[filter.Egress] {
		out.Spec.PolicyTypes = append(out.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	}
	for _, r := range p.Rules[filter.Ingress] {
		out.Spec.Ingress = append(out.Spec.Ingress, WriteRule(filter.Ingress, r).(networkingv1.NetworkPolicyIngressRule))
	}
	for _, r := range p.Rules[filter.Egress] {
		out.Spec.Egress = append(out.Spec.Egress, WriteRule(filter.Egress, r).(networkingv1.NetworkPolicyEgressRule))
	}
	return out
}

// WritePeer returns a peer in the form of the API, a NetworkPolicyPeer.
func WritePeer(p policy.Peer) any { return writePeer(p) }

// WritePort returns a port in the form of the API, a NetworkPolicyPort.
func WritePort(p policy.PortRange) any { return writePort(p) }

func writePeer(p policy.Peer) (out networkingv1.NetworkPolicyPeer) {
	if p.Block != nil {
		out.IPBlock = &networkingv1.IPBlock{CIDR: p.Block.CIDR.String()}
		for _, e := range p.Block.Except {
			out.IPBlock.Except = append(out.IPBlock.Except, e.String())
		}
		return out
	}
	out.PodSelector, out.NamespaceSelector = writeSelector(p.Pods), writeSelector(p.Namespaces)
	return out
}

func writeSelector(sel labels.Selector) *metav1.LabelSelector {
	if sel == nil {
		return nil
	}
	out := new(metav1.LabelSelector)
	requirements, _ := sel.Requirements()
	for _, r := range requirements {
		values := r.ValuesUnsorted()
		if r.Operator() == selection.Equals {
			if out.MatchLabels == nil {
				out.MatchLabels = make(map[string]string)
			}
			out.MatchLabels[r.Key()] = values[0]
			continue
		}
		out.MatchExpressions = append(out.MatchExpressions, metav1.LabelSelectorRequirement{
			Key: r.Key(), Operator: operators[r.Operator()], Values: values,
		})
	}
	return out
}

var operators = map[selection.Operator]metav1.LabelSelectorOperator{
	selection.In: metav1.LabelSelectorOpIn, selection.NotIn: metav1.LabelSelectorOpNotIn,
	selection.Exists: metav1.LabelSelectorOpExists, selection.DoesNotExist: metav1.LabelSelectorOpDoesNotExist,
}

func writePort(p policy.PortRange) (out networkingv1.NetworkPolicyPort) {
	protocol := corev1.Protocol(p.Protocol.String())
	out.Protocol = &protocol
	switch {
	case p.All():
		return out
	case p.Name != "":
		name := intstr.FromString(p.Name)
		out.Port = &name
		return out
	}
	low, high := intstr.FromInt32(int32(p.Low)), int32(p.High)
	if out.Port = &low; p.High != p.Low {
		out.EndPort = &high
	}
	return out
}
