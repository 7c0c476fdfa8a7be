package inventory

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
)

// Class identifies ends that policies cannot tell apart: flows from and to them have the same
// verdicts. Two verdicts do not depend on policies alone and may differ: a pod always gets the
// packets of its own node, and reaches its own address. A Class is comparable, and has a meaning
// only within one inventory.
type Class struct {
	endpoint policy.Class
	node     bool
	places   [2]string // by family, IPv4 first: the ranges of policies that contain the address
}

// assumedPlace is the place of an assumed address. No text of ranges is equal to it.
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

// around returns what policies say about an address, as text: the ranges that contain it, and
// the selectors of nodes that match a Node with it.
func (v *Inventory) around(a netip.Addr) string {
	text := v.marks.around(a)
	if len(v.nodeSelectors) == 0 {
		return text
	}
	var b strings.Builder
	b.WriteString(text)
	for i, s := range v.nodeSelectors {
		for n := range v.Snapshot.Nodes() {
			if slices.Contains(n.Addrs, a) && s.Matches(n.Labels) {
				b.WriteString("nodes " + strconv.Itoa(i) + " ")
				break
			}
		}
	}
	return b.String()
}

// nodeSelectorsOf collects the selectors of nodes in all policies, each once.
func nodeSelectorsOf(policies []*policy.Policy) (all []labels.Selector) {
	seen := make(map[string]bool)
	for _, p := range policies {
		for d := range p.Rules {
			for _, r := range p.Rules[d] {
				for _, peer := range r.Peers {
					if peer.Nodes != nil && !seen[peer.Nodes.String()] {
						seen[peer.Nodes.String()] = true
						all = append(all, peer.Nodes)
					}
				}
			}
		}
	}
	return all
}
