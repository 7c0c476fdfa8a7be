package kube

import (
	"log/slog"
	"net/netip"

	"sluice/filter/event"
)

// nodes reads the pod ranges of the Nodes, and warns if this node has no Node object.
type nodes struct {
	self   string // name of this node's Node; empty if it has none
	log    *slog.Logger
	warned bool
}

// read parses the pod ranges of a Node into o.prefixes, which o.put passes to the policy store.
func (n *nodes) read(o *node) {
	for _, text := range o.ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			n.log.Warn("unreadable pod range of a Node skipped", event.NodeRangeUnreadable.Attr(), "node", o.Name, "field", "spec.podCIDRs", "range", text, "err", err)
			continue
		}
		o.prefixes = append(o.prefixes, p)
	}
}

// check warns if this node's Node is missing. While the Node stays missing, check does not repeat
// the warning.
func (n *nodes) check(exists bool) {
	if n.self == "" || exists != n.warned {
		return
	}
	if n.warned = !exists; n.warned {
		n.log.Warn("no Node object for this node: its pod ranges are not known", event.NodeUnknown.Attr(), "node", n.self,
			"hint", "give the name of this node's Node object, in most clusters spec.nodeName of the agent's pod")
	}
}
