package explain

import (
	"fmt"
	"net/netip"
	"slices"
)

// serviceRanges are the ranges from which common installers assign addresses to Services: kubeadm and
// EKS (the first), EKS (the second), k3s and MicroK8s.
var serviceRanges = []string{"10.96.0.0/12", "172.20.0.0/16", "10.43.0.0/16", "10.152.183.0/24"}

// beside4 and beside6 are lengths of prefixes. An address in the same prefix as the address of a
// Service probably belongs to another Service, because the range for Services is at least this large in
// each cluster.
const (
	beside4 = 24
	beside6 = 112
)

// maybeService returns a note if no known object has the destination's address, and it is probably the
// address of a Service. Policies never see such an address.
func (c *Cluster) maybeService(f Flow) []string {
	e := f.To
	if f.Via != nil || e.Pod != nil || e.Node || e.Range != nil {
		return nil
	}
	a := f.Key.DstAddr()
	why := c.serviceRange(a)
	if why == "" || slices.ContainsFunc(c.inventory.PodRanges, func(p netip.Prefix) bool { return p.Contains(a) }) {
		return nil
	}
	return []string{fmt.Sprintf("%s may be the address of a Service (%s). If so, policies decide about the pods behind it, "+
		"and no ipBlock with this address matches: ask for these pods, or add the Service to what is read", a, why)}
}

// serviceRange tells why a may be the address of a Service. It returns "" if nothing suggests it.
func (c *Cluster) serviceRange(a netip.Addr) string {
	bits := beside4
	if a.Is6() {
		bits = beside6
	}
	near := netip.PrefixFrom(a, bits)
	for _, s := range c.inventory.Services {
		for _, text := range append([]string{s.Spec.ClusterIP}, s.Spec.ClusterIPs...) {
			if known, err := netip.ParseAddr(text); err == nil && near.Contains(known) {
				return fmt.Sprintf("%s/%s has %s", s.Namespace, s.Name, known)
			}
		}
	}
	for _, text := range serviceRanges {
		if p := netip.MustParsePrefix(text); p.Contains(a) {
			return text + " is a usual range for them"
		}
	}
	return ""
}
