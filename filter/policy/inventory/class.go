package inventory

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
)

// Class identifies ends that policies cannot tell apart. Flows from and to ends of one class have the
// same verdicts, with two exceptions: a pod always gets the packets of its own node, and always reaches
// its own address. A Class is comparable, and has a meaning only within one inventory.
type Class struct {
	endpoint policy.Class
	node     bool
	places   [2]string // by family, IPv4 first: the result of around for the address, or assumedPlace
}

// assumedPlace is in Class.places for an assumed address. It differs from the text of every other
// address, which begins with "in ".
const assumedPlace = "assumed"

// ClassOf returns the class of an end.
func (v *Inventory) ClassOf(e *End) Class {
	c := Class{endpoint: e.Endpoint.Class(), node: e.Endpoint.IsNode()}
	for _, a := range e.Addrs {
		i := 1
		if a.Is4() {
			i = 0
		}
		if c.places[i] = assumedPlace; !e.Assumed {
			c.places[i] = "in " + v.around(a)
		}
	}
	return c
}

// around returns, as text, how policies match an address: the ranges that contain it, and the node
// selectors that match a Node with this address.
func (v *Inventory) around(a netip.Addr) string {
	text := v.marks.around(a)
	for i, s := range v.nodeSelectors {
		if slices.ContainsFunc(v.nodesAt[a], func(n *policy.Node) bool { return s.Matches(n.Labels) }) {
			text += "node-selector-" + strconv.Itoa(i) + " "
		}
	}
	return text
}

// nodeSelectorsOf collects the selectors of nodes in all policies.
func nodeSelectorsOf(policies []*policy.Policy) (all []labels.Selector) {
	for _, p := range policies {
		for d := range p.Rules {
			for _, r := range p.Rules[d] {
				for _, peer := range r.Peers {
					if peer.Nodes != nil {
						all = append(all, peer.Nodes)
					}
				}
			}
		}
	}
	return distinct(all)
}

// distinct returns selectors in the order of their texts, each once.
func distinct(all []labels.Selector) []labels.Selector {
	slices.SortFunc(all, func(a, b labels.Selector) int { return strings.Compare(a.String(), b.String()) })
	return slices.CompactFunc(all, func(a, b labels.Selector) bool { return a.String() == b.String() })
}

// nodesByAddress returns the Nodes by the addresses in their status.
func nodesByAddress(nodes []*policy.Node) map[netip.Addr][]*policy.Node {
	at := make(map[netip.Addr][]*policy.Node)
	for _, n := range nodes {
		for _, a := range n.Addrs {
			a = a.Unmap().WithZone("")
			at[a] = append(at[a], n)
		}
	}
	return at
}

// NodesMissing reports whether policies select nodes although no Node has a known address. Such
// selectors match nothing.
func (v *Inventory) NodesMissing() bool { return len(v.nodeSelectors) > 0 && !v.NodesKnown() }

// NodesKnown reports whether there is a Node with an address.
func (v *Inventory) NodesKnown() bool { return len(v.nodesAt) > 0 }
