package policy

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// Node holds the fields of a Node object that decisions and their explanations need. A Node
// must not be changed after it was passed to a store.
type Node struct {
	Name   string
	Labels labels.Set
	Addrs  []netip.Addr   // addresses of all types in its status, internal ones first
	Ranges []netip.Prefix // of its pods; see SetNodeRanges
}

// nodes holds the Node objects. A peer that selects nodes is compiled as the addresses of these
// nodes, so a decision costs the same as for other addresses. When a change of a Node alters
// these addresses, the next Commit reads the policies with such peers again.
type nodes struct {
	byName    map[string]*Node
	selectors map[string]*nodeSelector // by the text of the selector
	users     map[*policy]struct{}     // policies with peers that select nodes
	moved     map[string]struct{}      // names of Nodes whose addresses changed since the last Commit
	assumed   bool                     // AssumeNodeAddrs was called
	stale     bool                     // a selector is stale
	changed   bool                     // byName has changed since the last Commit
	table     nodeTable                // the Node objects as of the last Commit
}

// nodeTable holds the Node objects of a snapshot by name. It never changes.
type nodeTable map[string]*Node

// nodeSelector is the label selector of a peer that selects nodes, with the addresses of these
// nodes. Peers with the same text of the selector share it.
type nodeSelector struct {
	text   string
	labels labels.Selector
	ranges []addrRange // sorted and disjoint; replaced when they change
	uses   int         // the number of uses by policies; Commit removes selectors without a use
	stale  bool        // ranges may have changed
}

func newNodes() nodes {
	return nodes{byName: make(map[string]*Node), selectors: make(map[string]*nodeSelector), users: make(map[*policy]struct{}), moved: make(map[string]struct{})}
}

// AssumeNodeAddrs makes the addresses in the status of a Node object count as addresses of
// the node that its pods run on, in addition to those in the status of the pods. It must be
// called before the first object is set.
//
// It is for explanations. An agent must not assume this: it knows the addresses that its node
// has, from SetNode. The status may list addresses that only a NAT outside of the cluster
// has. Packets with such a source may come from anywhere, and must not count as the node's.
func (w *Store) AssumeNodeAddrs() { w.nodes.assumed = true }

// SetNodeObject adds or updates a Node object, including the address ranges of its pods.
func (w *Store) SetNodeObject(n *Node) {
	w.SetNodeRanges(n.Name, n.Ranges)
	now := *n
	now.Addrs = make([]netip.Addr, len(n.Addrs))
	for i, a := range n.Addrs {
		now.Addrs[i] = a.Unmap().WithZone("")
	}
	w.changeNode(n.Name, &now)
}

// DeleteNodeObject removes a Node object, and the address ranges of its pods.
func (w *Store) DeleteNodeObject(name string) {
	w.SetNodeRanges(name, nil)
	w.changeNode(name, nil)
}

// changeNode adds or replaces the Node object with the given name. If now is nil, it deletes
// the object.
func (w *Store) changeNode(name string, now *Node) {
	x := &w.nodes
	old := x.byName[name]
	if old == now || old != nil && now != nil && labels.Equals(old.Labels, now.Labels) && slices.Equal(old.Addrs, now.Addrs) {
		return
	}
	if x.changed = true; now == nil {
		delete(x.byName, name)
	} else {
		x.byName[name] = now
	}
	if x.assumed && !slices.Equal(old.addrs(), now.addrs()) {
		x.moved[name] = struct{}{}
	}
	for _, s := range x.selectors {
		if !slices.Equal(s.addrsOf(old), s.addrsOf(now)) {
			s.stale, x.stale = true, true
		}
	}
}

func (n *Node) addrs() []netip.Addr {
	if n == nil {
		return nil
	}
	return n.Addrs
}

// addrsOf returns the addresses of a node if the selector matches it.
func (s *nodeSelector) addrsOf(n *Node) []netip.Addr {
	if n == nil || !s.labels.Matches(n.Labels) {
		return nil
	}
	return n.Addrs
}

// selector returns the shared nodeSelector for sel. It does not increment uses.
func (x *nodes) selector(sel labels.Selector) *nodeSelector {
	text := sel.String()
	s := x.selectors[text]
	if s == nil {
		s = &nodeSelector{text: text, labels: sel}
		s.ranges = x.rangesOf(s)
		x.selectors[text] = s
	}
	return s
}

// rangesOf returns the addresses of the nodes that a selector matches now.
func (x *nodes) rangesOf(s *nodeSelector) []addrRange {
	var all []netip.Addr
	for _, n := range x.byName {
		all = append(all, s.addrsOf(n)...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	var ranges []addrRange
	for _, a := range all {
		last := len(ranges) - 1
		if last >= 0 && (ranges[last].high == a || ranges[last].high.Next() == a) {
			ranges[last].high = a
			continue
		}
		ranges = append(ranges, addrRange{a, a})
	}
	return slices.Clip(ranges)
}

// useNodes interns the selector of a peer that selects nodes, and counts a use.
func (w *Store) useNodes(sel labels.Selector) *nodeSelector {
	s := w.nodes.selector(sel)
	s.uses++
	return s
}

// renewNodes reads policies again if the addresses of the nodes that their peers select have
// changed since the last Commit. It also changes the costs of these policies, so it must be
// called before balance.
func (w *Store) renewNodes() {
	x := &w.nodes
	renewed := make(map[*nodeSelector]bool)
	if x.stale {
		for _, s := range x.selectors {
			if !s.stale {
				continue
			}
			s.stale = false
			if now := x.rangesOf(s); !slices.Equal(now, s.ranges) {
				s.ranges, renewed[s] = now, true
			}
		}
		x.stale = false
	}
	if len(renewed) > 0 {
		w.readAgain(func(p *policy) bool {
			return slices.ContainsFunc(p.nodes, func(s *nodeSelector) bool { return renewed[s] })
		})
	}
	maps.DeleteFunc(x.selectors, func(_ string, s *nodeSelector) bool { return s.uses == 0 })
}

// useNodesOf counts the uses of node selectors by a refused policy. The rules of such a policy
// are not read, but its cost depends on the Nodes that its peers select.
func (w *Store) useNodesOf(p *policy, form *Policy) {
	for _, rules := range form.Rules {
		for i := range rules {
			for _, peer := range rules[i].Peers {
				if peer.Nodes != nil {
					p.nodes = append(p.nodes, w.useNodes(peer.Nodes))
				}
			}
		}
	}
}

// readAgain reads the policies again that have peers that are nodes and for which f returns true.
// It skips policies whose source was not kept.
func (w *Store) readAgain(f func(*policy) bool) {
	var again []*policy
	for p := range w.nodes.users {
		if p.kept.Read != nil && f(p) {
			again = append(again, p)
		}
	}
	slices.SortFunc(again, byText) // admit refuses the last ones if a limit is reached
	for _, p := range again {
		w.replace(p, func(form *Policy, _ int64) *policy { return w.admit(form) })
	}
}

// releaseNodes ends the uses of node selectors by a policy that was removed.
func (w *Store) releaseNodes(p *policy) {
	delete(w.nodes.users, p)
	for _, s := range p.nodes {
		s.uses--
	}
}

// commit returns the Node objects of the next snapshot.
func (x *nodes) commit() nodeTable {
	if x.changed {
		x.changed, x.table = false, maps.Clone(x.byName)
	}
	return x.table
}

// Node returns the Node object of a name, or nil.
func (s *Snapshot) Node(name string) *Node { return s.nodes[name] }

// Nodes yields all Node objects, in no particular order.
func (s *Snapshot) Nodes() iter.Seq[*Node] { return maps.Values(s.nodes) }

// NodeAt returns the Node whose status has an address, or nil. If several Nodes have it, NodeAt
// returns the one whose name sorts first. It searches all Nodes, which is fast enough for
// explanations.
func (s *Snapshot) NodeAt(addr netip.Addr) *Node {
	var found *Node
	for _, n := range s.nodes {
		if slices.Contains(n.Addrs, addr) && (found == nil || n.Name < found.Name) {
			found = n
		}
	}
	return found
}
