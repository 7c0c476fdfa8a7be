package kubepod

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter/policy"
)

// ReadNode converts a Node, and sorts its internal addresses first. It ignores addresses that are names,
// and pod ranges that are not CIDRs.
func ReadNode(o *corev1.Node) *policy.Node {
	n := &policy.Node{Name: o.Name, Labels: o.Labels}
	for _, internal := range []bool{true, false} {
		for _, a := range o.Status.Addresses {
			if (a.Type == corev1.NodeInternalIP) == internal {
				n.Addrs = AppendAddr(n.Addrs, a.Address)
			}
		}
	}
	ranges := o.Spec.PodCIDRs
	if len(ranges) == 0 && o.Spec.PodCIDR != "" {
		ranges = []string{o.Spec.PodCIDR}
	}
	for _, text := range ranges {
		if p, err := netip.ParsePrefix(text); err == nil {
			n.Ranges = append(n.Ranges, p)
		}
	}
	return n
}
