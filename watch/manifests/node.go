package manifests

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// checkNode checks the addresses and pod ranges of a Node.
func checkNode(o *corev1.Node, c *checker) {
	for i, a := range o.Status.Addresses {
		if isIP(a.Type) {
			c.addr(fmt.Sprintf("status.addresses[%d].address", i), a.Address)
		}
	}
	if len(o.Spec.PodCIDRs) == 0 && o.Spec.PodCIDR != "" {
		c.podRange("spec.podCIDR", o.Spec.PodCIDR)
	}
	for i, text := range o.Spec.PodCIDRs {
		c.podRange(fmt.Sprintf("spec.podCIDRs[%d]", i), text)
	}
}

func (c *checker) podRange(field, text string) {
	if _, err := netip.ParsePrefix(text); err != nil {
		c.problem(field, fmt.Sprintf("%q is not a CIDR", text), "write an address and a prefix length, such as 10.0.1.0/24")
	}
}

// dropRanges removes the pod ranges of the Nodes.
func (d *Delta) dropRanges() {
	for i, n := range d.Set.Nodes {
		now := *n // change a copy, because the store may hold n
		now.Ranges = nil
		d.Set.Nodes[i] = &now
	}
}

// isIP reports whether addresses of this type are IP addresses. Others are names.
func isIP(t corev1.NodeAddressType) bool {
	return t == corev1.NodeInternalIP || t == corev1.NodeExternalIP
}
