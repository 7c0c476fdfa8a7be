package policy

import (
	"net/netip"
	"slices"

	"sluice/filter"
)

// ruleSet is what one set of policies allows in one direction, cut along the
// port axis. Finding the rule for a flow looks into at most three peer sets and
// the named ports of the destination, however many policies went into it; finding
// none, into one more. Where rules overlap so much along the axis that a set for
// each interval would outgrow the policies, a look-up walks a tree of sets instead.
//
// Sets hold numbers of 4 bytes where they can: a rule is its place in rules, an
// address range its places in bounds. What most look-ups read comes first, within one
// line of the processor's cache.
type ruleSet struct {
	portless *peerSet // rules without ports
	peers    *peerSet // all rules: every allowed peer; nil if there is none
	rules    []filter.Rule
	ports    [3]portTable
	bounds   []netip.Addr // where address ranges begin, or end one before; sorted
	named    map[portName]*peerSet
	anyNamed [3]bool // by protocol, as ports is
	extra    *extra  // nil for most
}

// extra is what few rule sets have: the forms of rules that would take too much as others
// are kept, and what ordered rules do.
type extra struct {
	// actions are those of rules, if they are ordered: a rule is looked for by its rank,
	// which is its place. Without any, all rules accept, and none comes before another.
	actions []Action
	trees   [3]portTree
	// parts are the rule sets of single policies. Where there are some, there is
	// nothing else.
	parts []*ruleSet
}

// none reports whether there is no rule.
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

// portTable is one protocol's ports, cut into intervals within which the same
// rules apply.
type portTable struct {
	all  *peerSet   // rules that name the protocol and no port
	flat []interval // sorted; none where there is a tree
}

// interval is the ports from one on to the next interval, and their set, nil where
// nothing is allowed.
type interval struct {
	set   *peerSet
	start uint16
}

// portTree is a segment tree over the intervals that ports are cut into: the set of
// interval i is spread over the nodes i+len(starts), half of that, and so on down to 1.
type portTree struct {
	starts []uint16 // sorted: where each interval begins
	sets   []*peerSet
}

// peerSet is the peers that are allowed at some ports. It fills one line of the
// processor's cache.
type peerSet struct {
	everyone uint32 // a rule that allows every peer, or noRule
	whole    uint32 // where in peers those of the second kind begin
	// peers are by the selectors that a pod carries, and then by those that its
	// namespace carries.
	peers  []peerRule
	blocks []blockRange // by address
	more   *peerSets    // of rules too large to be copied into every set that has them
}

type peerSets struct{ list []*peerSet }

// noRule is the number of no rule.
const noRule = ^uint32(0)

// peerRule is a selector's id and the rule that allows those it matches.
type peerRule struct{ selector, rule uint32 }

// blockRange is the addresses between two bounds, and the rule that allows them.
type blockRange struct{ low, end, rule uint32 }

// remote is the other end of a flow, as a rule set looks at it.
type remote struct {
	some, whole *idSet // nil for an address of no pod
	addr        netip.Addr
	rules       *ruleSet
	place       uint32 // of its address: how many bounds are not above it
	placed      bool   // place is known: most flows are decided without it
}

// find returns the rule that allows the flow k from or to peer, or nil. pair reports
// whether the result holds for all flows between the two. Named ports are looked up in
// dst, the destination, in both directions.
func (r *ruleSet) find(k *filter.Key, peer *Endpoint, peerAddr netip.Addr, dst *Endpoint, everyone []idSet) (rule *filter.Rule, pair bool) {
	if r.peers == nil {
		return r.inParts(k, peer, peerAddr, dst, everyone)
	}
	p := remote{addr: peerAddr, rules: r}
	if peer != nil && peer.class != nil {
		p.some, p.whole = &peer.class.peers, &everyone[peer.class.namespace]
	}
	if i := r.portless.find(&p); i != noRule {
		return &r.rules[i], true
	}
	if k.Transport == filter.Ported {
		if i := r.atPort(k, &p, dst); i != noRule {
			return &r.rules[i], false
		}
	}
	return nil, r.peers.find(&p) == noRule
}

// inParts is find where the rules are not merged, or there are none.
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

// atPort returns the rule that allows the flow for its port.
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

// at returns the set of the interval that holds port.
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

// find returns the rule that allows the peer at port.
func (t *portTree) find(port uint16, p *remote) uint32 {
	for node := t.leaf(port); node > 0; node /= 2 {
		if i := t.sets[node].find(p); i != noRule {
			return i
		}
	}
	return noRule
}

// leaf is the node of the interval that holds port, or 0.
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

// shared returns the rule of a selector that is in both. Of two sorted lists it
// walks the shorter and searches the longer, so that a pod with few selectors
// costs little against a rule set with thousands, and the other way round.
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

// searchRules is slices.BinarySearchFunc without the call through a function
// value, which is most of the cost on lists this short.
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

// sharedBits is shared for many ids.
func sharedBits(rules []peerRule, set *idWords) uint32 {
	for i := range rules {
		if set.has(rules[i].selector) {
			return rules[i].rule
		}
	}
	return noRule
}
