package kube

import (
	"log/slog"
	"net/netip"
	"slices"

	"sluice/filter/event"
	"sluice/watch"
)

// nodes holds the pod ranges of all Nodes.
type nodes struct {
	self   string // name of this node's Node
	ranges *watch.Ranges
	log    *slog.Logger
	known  map[string][]netip.Prefix
	dirty  bool // the ranges have changed since the last publish
	warned bool
}

func newNodes(self string, ranges *watch.Ranges, log *slog.Logger) *nodes {
	return &nodes{self: self, ranges: ranges, log: log, known: make(map[string][]netip.Prefix)}
}

// set records the ranges of a Node. Nodes send updates every few minutes, mostly without a
// change of their ranges.
func (n *nodes) set(o *node) {
	var list []netip.Prefix
	for _, text := range o.ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			n.log.Warn("unreadable pod range of a Node skipped", event.NodeRangeUnreadable.Attr(), "node", o.Name, "field", "spec.podCIDRs", "range", text, "err", err)
			continue
		}
		list = append(list, p)
	}
	old, known := n.known[o.Name]
	if known && slices.Equal(list, old) {
		return
	}
	n.known[o.Name] = list
	n.dirty = true
}

func (n *nodes) delete(name string) {
	delete(n.known, name)
	n.dirty = true
}

// publish puts the ranges in force if they have changed.
func (n *nodes) publish() {
	if !n.dirty {
		return
	}
	n.dirty = false
	var all []netip.Prefix
	for _, list := range n.known {
		all = append(all, list...)
	}
	n.ranges.Set(n.known[n.self], all)
	if _, there := n.known[n.self]; n.self != "" && there == n.warned {
		if n.warned = !there; n.warned {
			n.log.Warn("no Node object for this node: its pod ranges are not known", event.NodeUnknown.Attr(), "node", n.self,
				"hint", "give the name of this node's Node object, in most clusters spec.nodeName of the agent's pod")
		}
	}
}
