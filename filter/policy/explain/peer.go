package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"sluice/filter/policy"
	"sluice/filter/policy/near"
)

// A mismatch between the flow and a peer of a rule has a score, and the peer with the lowest
// score is shown as the nearest. A mismatch of labels has one point for each missing or wrong
// label. The constants are the scores of mismatches that no change of labels can remove.
const (
	otherAddress = 50  // the flow's peer is a pod, and outside of the rule's block
	otherKind    = 100 // the flow's peer is not a pod, and the rule selects pods
)

// peers matches the peers of a rule against the peer of the flow. It returns the description
// of a peer that matches, and nil. If none matches, it returns the description and the
// mismatch of the nearest one.
func (h *matcher) peers(items []policy.Peer, field string) (string, *Mismatch) {
	if len(items) == 0 {
		return "every peer", nil
	}
	var nearest *Mismatch
	for i := range items {
		says, lack := h.peerItem(&items[i], fmt.Sprintf("%s[%d]", field, i))
		if lack == nil {
			return says, nil
		}
		if nearest == nil || lack.score < nearest.score {
			nearest = lack
		}
	}
	if n := len(items) - 1; n > 0 && nearest.field == "" {
		nearest.Flow += " (the other peer of the rule does not match either)"
		if n > 1 {
			nearest.Flow = strings.Replace(nearest.Flow, "the other peer of the rule does", fmt.Sprintf("the %d other peers of the rule do", n), 1)
		}
	}
	return nearest.Allows, nearest
}

func (h *matcher) peerItem(p *policy.Peer, field string) (string, *Mismatch) {
	switch {
	case p.Malformed != "":
		return "", unreadable("peer", strings.TrimSuffix(field+p.Malformed, "."))
	case p.Block != nil:
		return h.block(p.Block)
	case len(p.Networks) > 0:
		return h.networks(p.Networks)
	case p.Nodes != nil:
		return h.nodes(p.Nodes)
	case len(p.Names) > 0:
		says := "the names " + near.List(p.Names, 5, ", ")
		return says, &Mismatch{Part: "peer", Allows: says, Flow: "names are not supported and match nothing", score: otherKind}
	}
	return h.pods(p)
}

// networks matches the address of the peer against a list of networks.
func (h *matcher) networks(list []netip.Prefix) (string, *Mismatch) {
	texts := make([]string, len(list))
	for i, n := range list {
		texts[i] = n.Masked().String()
		if n.Contains(h.addr) {
			return "addresses in " + texts[i], nil
		}
	}
	says := "addresses in " + near.List(texts, 5, ", ")
	lack := &Mismatch{Part: "peer", Allows: says, Flow: h.outside("it"), score: 2}
	if len(list) > 1 {
		lack.Flow = h.outside("all of them")
	}
	if h.peer.Pod != nil {
		lack.score = otherAddress
	}
	return says, lack
}

// pods matches a peer that selects pods by labels.
func (h *matcher) pods(p *policy.Peer) (string, *Mismatch) {
	pods, namespaces := p.Pods, p.Namespaces
	if pods == nil {
		pods = labels.Everything()
	}
	says := h.podWords(pods, namespaces)
	lack := &Mismatch{Part: "peer", Allows: says, keys: keysOf(pods)}
	switch {
	case h.peer.Node && !h.peer.ByAddress():
		lack.Flow, lack.score = fmt.Sprintf("%s is in the host network and has its node's address, which no selector matches", h.peer.Name), otherKind
		return says, lack
	case h.peer.Pod == nil:
		lack.Flow, lack.score = h.peer.Name+" is not the address of a pod", otherKind
		if h.peer.Range != nil {
			lack.Flow = "these are not addresses of pods"
		}
		return says, lack
	}
	var flaws []string
	ns, name := h.peer.Pod.Namespace, podName(h.peer)
	switch {
	case namespaces != nil:
		if missing := missing(namespaces, h.c.inventory.NamespaceLabels(ns)); len(missing) > 0 {
			flaws = append(flaws, "namespace "+ns+" has "+strings.Join(missing, " and "))
			lack.score += len(missing)
		}
	case ns != h.namespace:
		flaws = append(flaws, name+" is in namespace "+ns)
		lack.score++
	}
	if missing := missing(pods, h.peer.Pod.Labels); len(missing) > 0 {
		flaws = append(flaws, name+" has "+strings.Join(missing, " and "))
		lack.score += len(missing)
	}
	if len(flaws) == 0 {
		return says, nil
	}
	lack.Flow = strings.Join(flaws, ", and ")
	return says, lack
}

// podWords describes a peer's selectors. namespaces is nil for the policy's own namespace.
func (h *matcher) podWords(pods, namespaces labels.Selector) string {
	where := "namespace " + h.namespace
	switch {
	case namespaces == nil:
	case namespaces.Empty():
		where = "every namespace"
	default:
		where = "namespaces with " + words(namespaces)
	}
	if pods.Empty() {
		return "every pod in " + where
	}
	return "pods with " + words(pods) + " in " + where
}

// block matches a block of addresses.
func (h *matcher) block(b *policy.Block) (string, *Mismatch) {
	cidr := b.CIDR.Masked()
	says := "addresses in " + cidr.String()
	if len(b.Except) > 0 {
		texts := make([]string, len(b.Except))
		for i, e := range b.Except {
			texts[i] = e.String()
		}
		says += " except " + near.List(texts, 5, ", ")
	}
	lack := &Mismatch{Part: "peer", Allows: says}
	for _, e := range b.Except {
		if e.Contains(h.addr) && lack.score == 0 {
			lack.Flow, lack.score = h.inside(e.Masked()), 1
		}
	}
	if !cidr.Contains(h.addr) {
		lack.Flow, lack.score = h.outside("it"), 2
		if h.peer.Pod != nil {
			lack.score = otherAddress
		}
	}
	if lack.score == 0 {
		return says, nil
	}
	return says, lack
}

// outside records that the peer's address is outside of the addresses that the rule names.
func (h *matcher) outside(of string) string {
	switch {
	case h.peer.Range != nil:
		return "these addresses are outside " + of
	case h.peer.Assumed:
		return fmt.Sprintf("%s has no known address, and is taken to be outside %s", h.peer.Name, of)
	}
	return fmt.Sprintf("%s is outside %s", h.addr, of)
}

// inside records that the peer's address is in the exception e.
func (h *matcher) inside(e netip.Prefix) string {
	switch {
	case h.peer.Range != nil:
		return fmt.Sprintf("these addresses are in %s, which is excluded", e)
	case h.peer.Assumed:
		return fmt.Sprintf("%s has no known address, and is taken to be in %s, which is excluded", h.peer.Name, e)
	}
	return fmt.Sprintf("%s is in %s, which is excluded", h.addr, e)
}

// nodes matches the address of the peer against those of the nodes that a selector matches.
func (h *matcher) nodes(sel labels.Selector) (string, *Mismatch) {
	says := "every node"
	if !sel.Empty() {
		says = "nodes with " + words(sel)
	}
	for n := range h.c.snapshot.Nodes() {
		if slices.Contains(n.Addrs, h.addr) && sel.Matches(n.Labels) {
			return says, nil
		}
	}
	lack := &Mismatch{Part: "peer", Allows: says, Flow: h.addr.String() + " is not the address of a known node", score: otherAddress}
	switch {
	case h.peer.Range != nil:
		lack.Flow = "these are not addresses of a known node"
	case h.peer.Assumed:
		lack.Flow = h.peer.Name + " has no known address"
	}
	if n := h.c.snapshot.NodeAt(h.addr); n != nil {
		missing := missing(sel, n.Labels)
		lack.Flow, lack.score = "node "+n.Name+" has "+strings.Join(missing, " and "), len(missing)
	}
	return says, lack
}

// missing returns, for each requirement that set does not satisfy, the label that set has
// instead: "role=backend", "no label project".
func missing(sel labels.Selector, set labels.Set) []string {
	var found []string
	requirements, _ := sel.Requirements()
	for _, r := range requirements {
		if r.Matches(set) {
			continue
		}
		text := "no label " + r.Key()
		if value, ok := set[r.Key()]; ok {
			text = r.Key() + "=" + value
		}
		if !slices.Contains(found, text) {
			found = append(found, text)
		}
	}
	return found
}

// words describes a selector: "role=frontend and tier one of a, b".
func words(sel labels.Selector) string {
	var parts []string
	requirements, _ := sel.Requirements()
	for _, r := range requirements {
		values := slices.Sorted(slices.Values(r.ValuesUnsorted()))
		switch r.Operator() {
		case selection.Exists:
			parts = append(parts, "a label "+r.Key())
		case selection.DoesNotExist:
			parts = append(parts, "no label "+r.Key())
		case selection.NotIn:
			parts = append(parts, r.Key()+" not "+strings.Join(values, " or "))
		default:
			parts = append(parts, r.Key()+"="+strings.Join(values, " or "))
		}
	}
	return strings.Join(parts, " and ")
}

func keysOf(sel labels.Selector) []string {
	var keys []string
	requirements, _ := sel.Requirements()
	for _, r := range requirements {
		keys = append(keys, r.Key())
	}
	return keys
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
