package policy

import (
	"net/netip"
	"slices"

	"sluice/filter"
)

// ruleSet is the compiled rules of some policies in one direction. The ports of each protocol
// are cut into intervals, and each interval has a peer set (see portTable). For any number of
// policies, a lookup searches at most three peer sets: those for rules without ports, for all
// ports of the protocol, and for the interval of the port. It also searches one peer set for
// each name of the destination's port. If no rule matches, it searches the set of all rules, to
// find whether a rule allows the peer at other ports. If many rules overlap, a peer set for each
// interval could take far more memory than the policies. In that case a portTree replaces the
// intervals.
//
// Peer sets refer to rules and bounds by indexes of 4 bytes. The fields that most lookups
// read come first, within one cache line.
type ruleSet struct {
	portless *peerSet // rules without ports
	peers    *peerSet // the rules for all ports together; nil if there are no rules
	rules    []*filter.Rule
	ports    [3]portTable
	bounds   []netip.Addr // sorted addresses: the first address of each range, and the address after its end
	named    map[portName]*peerSet
	anyNamed [3]bool // whether a rule has a named port of the protocol; indexed by protocol, like the field "ports"
	extra    *extra  // nil for most rule sets
}

// extra holds fields that few rule sets need: the actions of ordered rules, and forms for
// rules that would take too much memory in the usual form.
type extra struct {
	// ranks describes the rules, if they are ordered: the matching rule with the lowest
	// index, its rank, decides. Without ranks, all rules accept and have no order.
	ranks  []rank
	table  *rankTable
	closed bool     // the first rule denies everything
	near   nearBits // of the blocks of ordered rules
	trees  [3]portTree
	// parts are rule sets that are not merged; most of them hold the rules of a single
	// policy. If a rule set has parts, its other fields are empty.
	parts []*ruleSet
}

// rank is what a lookup needs of an ordered rule.
type rank struct {
	rule     *filter.Rule
	action   Action
	portless bool // the rule is for every port
}

// none reports whether there are no rules.
func (r *ruleSet) none() bool { return r.peers == nil && len(r.parts()) == 0 }

func (r *ruleSet) parts() []*ruleSet {
	if r.extra == nil {
		return nil
	}
	return r.extra.parts
}

type portName struct {
	name     string
	protocol filter.Protocol
}

// portTable finds the peer sets for a port of one protocol. It cuts the ports into intervals:
// the same rules apply to all ports of an interval.
type portTable struct {
	all  *peerSet   // rules that name the protocol and no port
	flat []interval // sorted; empty if there is a tree
}

// interval is the ports from start up to the start of the next interval, and the rules for
// these ports. The peer set is nil if there are no rules.
type interval struct {
	set   *peerSet
	start uint16
}

// portTree is a segment tree over intervals of ports. Interval i begins at port starts[i], and
// its leaf is node i+len(starts). The parent of node n is node n/2, and the root is node 1. The
// rules for an interval are in the sets of its leaf and of all ancestors of this leaf.
type portTree struct {
	starts []uint16 // first ports of the intervals, sorted
	sets   []*peerSet
}

// peerSet finds the rule for a peer at some ports. It fills one cache line.
type peerSet struct {
	everyone uint32 // index of a rule that matches every peer, or noRule
	whole    uint32 // index in the list "peers" of the first selector that matches all pods of a namespace
	// peers[:whole] are selectors that test the labels of pods. peers[whole:] are selectors
	// that match all pods of a namespace. Each part is sorted by the ids of its selectors.
	peers  []peerRule
	blocks []blockRange // sorted and disjoint
	more   *peerSets    // one set for each rule that is too large to be copied into this set; may be nil
}

type peerSets struct{ list []*peerSet }

// noRule is used instead of the index of a rule if there is no rule. It is greater than all
// indexes.
const noRule = ^uint32(0)

// peerRule is the id of a selector, and the index of the rule for the pods that it matches.
type peerRule struct{ selector, rule uint32 }

// blockRange is a range of addresses, and the index of the rule for them. An address is in the
// range if its place among the bounds (see placeOf) is at least low and less than end.
type blockRange struct{ low, end, rule uint32 }

// remote is the peer of a flow, prepared for lookups in a rule set.
type remote struct {
	// The set "some" has the selectors that match the peer by its labels. The set "whole" has
	// the selectors that match all pods of the peer's namespace. Both are nil if the peer is
	// not a pod.
	some, whole *idSet
	addr        netip.Addr
	rules       *ruleSet
	place       uint32 // the place of addr among the bounds; valid if placed is set
	placed      bool   // place has been computed; most lookups do not need it
	far         bool   // no block of ordered rules contains addr; valid if placed is set
}

// find returns a rule that allows the flow k, or nil. The rules are those of one end of the
// flow; "peer" is the endpoint at the other end, and peerAddr its address. The second result
// reports whether the first is the same for all flows between the two addresses of k. dst is
// the endpoint at the destination of k: rules for egress and for ingress both find named ports
// there.
func (r *ruleSet) find(k *filter.Key, peer *Endpoint, peerAddr netip.Addr, dst *Endpoint, everyone []idSet) (rule *filter.Rule, pair bool) {
	if r.peers == nil {
		return r.inParts(k, peer, peerAddr, dst, everyone)
	}
	p := remote{addr: peerAddr, rules: r}
	if peer != nil && peer.class != nil {
		p.some, p.whole = &peer.class.peers, &everyone[peer.class.namespace]
	}
	if i := r.portless.find(&p); i != noRule {
		return r.rules[i], true
	}
	if k.Transport == filter.Ported {
		if i := r.atPort(k, &p, dst); i != noRule {
			return r.rules[i], false
		}
	}
	return nil, r.peers.find(&p) == noRule
}

// inParts is like find, for a rule set that has parts or no rules.
func (r *ruleSet) inParts(k *filter.Key, peer *Endpoint, peerAddr netip.Addr, dst *Endpoint, everyone []idSet) (rule *filter.Rule, pair bool) {
	pair = true
	for _, part := range r.parts() {
		rule, same := part.find(k, peer, peerAddr, dst, everyone)
		if rule != nil {
			return rule, same
		}
		pair = pair && same
	}
	return nil, pair
}

// atPort returns a rule that is for the port of the flow and allows the flow, or noRule.
func (r *ruleSet) atPort(k *filter.Key, p *remote, dst *Endpoint) uint32 {
	t := &r.ports[portTableOf(k.Protocol)]
	if i := t.all.find(p); i != noRule {
		return i
	}
	if i := t.at(k.Port).find(p); i != noRule {
		return i
	}
	if r.extra != nil {
		if i := r.extra.trees[portTableOf(k.Protocol)].find(k.Port, p); i != noRule {
			return i
		}
	}
	if len(r.named) == 0 || dst == nil || dst.class == nil {
		return noRule
	}
	for i := range dst.class.ports {
		np := &dst.class.ports[i]
		if np.number != k.Port || np.protocol != k.Protocol {
			continue
		}
		if i := r.named[portName{np.name, np.protocol}].find(p); i != noRule {
			return i
		}
	}
	return noRule
}

func portTableOf(p filter.Protocol) int {
	switch p {
	case filter.UDP:
		return 1
	case filter.SCTP:
		return 2
	}
	return 0
}

// at returns the set of the interval that contains port; nil if there is none.
func (t *portTable) at(port uint16) *peerSet {
	low, high := 0, len(t.flat)
	for low < high {
		if mid := int(uint(low+high) >> 1); t.flat[mid].start <= port {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 {
		return nil
	}
	return t.flat[low-1].set
}

// find returns a rule that allows the peer at port, or noRule.
func (t *portTree) find(port uint16, p *remote) uint32 {
	for node := t.leaf(port); node > 0; node /= 2 {
		if i := t.sets[node].find(p); i != noRule {
			return i
		}
	}
	return noRule
}

// leaf returns the node of the interval that contains port, or 0 if there is none.
func (t *portTree) leaf(port uint16) int {
	at, found := slices.BinarySearch(t.starts, port)
	if found {
		at++
	}
	if at == 0 {
		return 0
	}
	return at - 1 + len(t.starts)
}

func (s *peerSet) find(p *remote) uint32 {
	if s == nil {
		return noRule
	}
	if s.everyone != noRule {
		return s.everyone
	}
	if p.some != nil {
		if i := shared(s.peers[:s.whole], p.some); i != noRule {
			return i
		}
		if i := shared(s.peers[s.whole:], p.whole); i != noRule {
			return i
		}
	}
	if len(s.blocks) > 0 {
		if !p.placed {
			p.place, p.placed = placeOf(p.rules.bounds, p.addr), true
		}
		if i := blockAt(s.blocks, p.place); i != noRule {
			return i
		}
	}
	if s.more != nil {
		for _, o := range s.more.list {
			if i := o.find(p); i != noRule {
				return i
			}
		}
	}
	return noRule
}

// shared returns the rule of a selector that is in both lists, or noRule. It walks the
// shorter list and searches the longer one, so that a lookup is fast if either the pod or
// the rule set has few selectors, even if the other has thousands.
func shared(rules []peerRule, set *idSet) uint32 {
	if len(rules) == 0 {
		return noRule
	}
	if set.dense != nil {
		return sharedBits(rules, set.dense)
	}
	ids := set.list
	if len(ids) == 0 {
		return noRule
	}
	if len(ids) <= len(rules) {
		for _, id := range ids {
			at := searchRules(rules, id)
			if at == len(rules) {
				return noRule
			}
			if rules[at].selector == id {
				return rules[at].rule
			}
			rules = rules[at:]
		}
		return noRule
	}
	for i := range rules {
		at, found := slices.BinarySearch(ids, rules[i].selector)
		if found {
			return rules[i].rule
		}
		if ids = ids[at:]; len(ids) == 0 {
			return noRule
		}
	}
	return noRule
}

// searchRules is slices.BinarySearchFunc without the calls of a function value, which would
// take most of the time on lists this short.
func searchRules(rules []peerRule, id uint32) int {
	low, high := 0, len(rules)
	for low < high {
		if mid := int(uint(low+high) >> 1); rules[mid].selector < id {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}

// sharedBits is like shared, for a set that is a bitmap.
func sharedBits(rules []peerRule, set *idWords) uint32 {
	for i := range rules {
		if set.has(rules[i].selector) {
			return rules[i].rule
		}
	}
	return noRule
}
