package kube

import (
	"log/slog"
	"net/netip"
	"slices"

	"sluice/filter/event"
	"sluice/watch"
)

// nodes are the pod ranges of the Nodes.
type nodes struct {
	self   string // the Node that the agent runs on
	ranges *watch.Ranges
	log    *slog.Logger
	known  map[string][]netip.Prefix
	dirty  bool // something has changed since the last publish
	warned bool
}

func newNodes(self string, ranges *watch.Ranges, log *slog.Logger) *nodes {
	return &nodes{self: self, ranges: ranges, log: log, known: make(map[string][]netip.Prefix)}
}

// set takes a Node's ranges. A Node says every few minutes that it lives, in most
// cases with nothing new.
func (n *nodes) set(o *node) {
	var list []netip.Prefix
	for _, text := range o.ranges {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			n.log.Warn("a pod range of a node cannot be read and is left out", event.NodeRangeUnreadable.Attr(), "node", o.Name, "field", "spec.podCIDRs", "range", text, "err", err)
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
			n.log.Warn("there is no Node of this node's name: its pod ranges are not known", event.NodeUnknown.Attr(), "node", n.self,
				"hint", "give the name of this node's Node object, in most clusters spec.nodeName of the agent's pod")
		}
	}
}
