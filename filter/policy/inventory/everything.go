package inventory

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// Knows reports whether text, "namespace/name", names a pod or a workload, or whether the name of
// a pod begins with text and a dash.
func (v *Inventory) Knows(text string) bool {
	namespace, name, ok := strings.Cut(text, "/")
	return ok && (v.pods[text] != nil || len(v.podsOf(namespace, name)) > 0)
}

// SelectorOf returns the labels by which the workload of a pod finds its pods. It returns nil if
// they are not known, or if the pod does not have them.
func (v *Inventory) SelectorOf(p *policy.Pod) labels.Set {
	of := v.workloadOf[p]
	for _, w := range v.Workloads {
		if w.Ref == of && len(w.Selector) > 0 && labels.SelectorFromSet(w.Selector).Matches(p.Labels) {
			return w.Selector
		}
	}
	return nil
}

// KnownPodRanges returns the ranges from which pods get their addresses: those in PodRanges and
// those of the Nodes.
func (v *Inventory) KnownPodRanges() []netip.Prefix {
	ranges := slices.Clone(v.PodRanges)
	for _, n := range v.Nodes {
		ranges = append(ranges, n.Ranges...)
	}
	return ranges
}

// Everything returns all ends that a flow may have: each pod by itself, the nodes, and
// all addresses outside the cluster, as ranges in which all addresses get the same verdicts. It
// leaves out pods that have ended, and pods whose addresses belong to others. The ends are
// destinations if to is true, and sources otherwise.
func (v *Inventory) Everything(to bool) []*End {
	var ends []*End
	seen := make(map[netip.Addr]bool)
	for _, p := range v.AllPods() {
		e, err := v.pod(p, to)
		if err != nil || e.Node && !e.Assumed && seen[e.Addrs[0]] {
			continue
		}
		if e.Node && !e.Assumed {
			for _, a := range e.Addrs {
				seen[a] = true
			}
		}
		ends = append(ends, e)
	}
	for _, e := range v.NodeEnds() {
		if !slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return seen[a] }) {
			ends = append(ends, e)
		}
	}
	return append(ends, v.Outside()...)
}

// FlowsBetween returns the flows between two ends: one for each address family that both have.
func FlowsBetween(from, to *End, proto filter.Protocol, port uint16) (flows []Flow) {
	for _, src := range from.Addrs {
		for _, dst := range to.Addrs {
			if src.Is4() == dst.Is4() {
				flows = append(flows, Flow{From: from, To: to, Key: keyOf(src, dst, proto, port)})
			}
		}
	}
	return flows
}
