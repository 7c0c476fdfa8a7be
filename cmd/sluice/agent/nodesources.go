package agent

import (
	"cmp"
	"net/netip"
	"slices"

	"sluice/filter/policy"
)

// nodeSources computes the sources: the addresses of pods whose packets to this node need a
// verdict (see iptables.Options.NodeSources). It is for use by one goroutine.
//
// If no policy may deny such a packet, there are no sources. Otherwise the sources are the
// ranges of this node's pods, so that the first packet of a new pod gets a verdict, and the
// iptables rules rarely change when a pod starts. In addition, they are the addresses outside
// these ranges of pods whose packets to this node a policy may deny.
type nodeSources struct {
	last *policy.Snapshot
	pods map[netip.Addr]struct{} // addresses of this node's pods whose packets to the node a policy may deny
}

// update returns the sources for a snapshot. changed lists the addresses that differ from the
// snapshot of the last call, and starting lists the addresses of pods that are starting.
func (n *nodeSources) update(s *policy.Snapshot, changed []netip.Addr, starting []netip.Prefix) []netip.Prefix {
	switch {
	case !s.JudgesOwnNode():
		n.pods, n.last = nil, s
		return nil
	case n.pods == nil || n.movedNode(s, changed):
		n.pods = make(map[netip.Addr]struct{})
		for a, e := range s.Endpoints() {
			n.put(s, a, e)
		}
	default:
		for _, a := range changed {
			delete(n.pods, a)
			n.put(s, a, s.Endpoint(a))
		}
	}
	n.last = s
	return n.list(s, starting)
}

// movedNode reports whether one of the changed addresses is or was an address of this node. If
// so, a different set of pods may count as pods of this node.
func (n *nodeSources) movedNode(s *policy.Snapshot, changed []netip.Addr) bool {
	return slices.ContainsFunc(changed, func(a netip.Addr) bool { return s.Endpoint(a).IsNode() || n.last.Endpoint(a).IsNode() })
}

// put adds an address if its pod runs on this node and a policy may deny what the pod sends to
// the node. A pod whose node is not known counts as one of this node.
func (n *nodeSources) put(s *policy.Snapshot, a netip.Addr, e *policy.Endpoint) {
	if e.EffectToNode() == policy.Open {
		return
	}
	hosts := e.Hosts()
	if len(hosts) == 0 || slices.ContainsFunc(hosts, func(host netip.Addr) bool { return s.Endpoint(host).IsNode() }) {
		n.pods[a] = struct{}{}
	}
}

// list returns the sources of both families, sorted. A range of a single address is left out if
// a pod has the address and no policy may deny what this pod sends to the node.
func (n *nodeSources) list(s *policy.Snapshot, starting []netip.Prefix) []netip.Prefix {
	var all [2][]netip.Prefix // by family
	add := func(p netip.Prefix) {
		family := &all[0]
		if p.Addr().Is6() {
			family = &all[1]
		}
		*family = append(*family, p)
	}
	for _, p := range slices.Concat(s.LocalRanges(), starting) {
		if e := s.Endpoint(p.Addr()); !p.IsSingleIP() || e == nil || e.EffectToNode() != policy.Open {
			add(p.Masked())
		}
	}
	for a := range n.pods {
		add(netip.PrefixFrom(a, a.BitLen()))
	}
	return slices.Concat(fewer(all[0]), fewer(all[1]))
}

// maxNodeSources bounds the sources of a family. All packets that the node receives, such as
// those of an overlay network, are compared with each of them, which costs some 10 ns.
const maxNodeSources = 16

// fewer sorts ranges of one family and omits those within others. If more than maxNodeSources
// remain, it widens the smallest ones as far as necessary. A wider range also sends packets of
// other sources to the queue, which costs time. These packets are allowed as before.
func fewer(ranges []netip.Prefix) []netip.Prefix {
	for bits := 128; ; bits -= 2 {
		var kept []netip.Prefix
		sorted := make([]netip.Prefix, len(ranges))
		for i, p := range ranges {
			sorted[i] = netip.PrefixFrom(p.Addr(), min(bits, p.Bits())).Masked()
		}
		slices.SortFunc(sorted, func(a, b netip.Prefix) int {
			return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
		})
		for _, p := range sorted {
			if last := len(kept) - 1; last < 0 || !kept[last].Contains(p.Addr()) {
				kept = append(kept, p)
			}
		}
		if len(kept) <= maxNodeSources {
			return kept
		}
	}
}
