package policy

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"sluice/filter"
)

// ruleSet is what one set of policies allows in one direction, cut along the
// port axis. Finding the rule for a flow looks into at most three peer sets and
// the named ports of the destination, however many policies went into it; finding
// none, into one more.
type ruleSet struct {
	peers    *peerSet // all rules: whoever is allowed anything; nil if nobody is
	portless *peerSet // rules without ports
	ports    [3]portTable
	named    map[portName]*peerSet
}

type portName struct {
	name     string
	protocol filter.Protocol
}

// portTable is one protocol's ports, cut into intervals within which the same
// rules apply.
type portTable struct {
	all    *peerSet   // rules that name the protocol and no port
	starts []uint16   // sorted: where each interval begins
	sets   []*peerSet // for each interval, nil where nothing is allowed
}

// peerSet is who is allowed at some ports.
type peerSet struct {
	everyone *filter.Rule // a rule that allows every peer
	some     []peerRule   // by the selectors that a pod carries
	whole    []peerRule   // by the selectors that its namespace carries
	blocks   []addrRange  // by address
}

// peerRule is a selector's id and the rule that allows those it matches.
type peerRule struct {
	selector uint32
	rule     *filter.Rule
}

// find returns the rule that allows the flow k from or to peer, or nil, and whether
// it is the same, allowed or not, for all flows between the two. dst is the
// destination, which is where named ports are looked up in both directions.
func (r *ruleSet) find(k *filter.Key, peer *Endpoint, peerAddr netip.Addr, dst *Endpoint, everyone [][]uint32) (rule *filter.Rule, pair bool) {
	var some, whole []uint32
	if peer != nil && peer.class != nil {
		some, whole = peer.class.peers, everyone[peer.class.namespace]
	}
	if rule := r.portless.find(some, whole, peerAddr); rule != nil {
		return rule, true
	}
	if k.Transport == filter.Ported {
		if rule := r.atPort(k, some, whole, peerAddr, dst); rule != nil {
			return rule, false
		}
	}
	return nil, r.peers.find(some, whole, peerAddr) == nil
}

// atPort returns the rule that allows the flow for its port.
func (r *ruleSet) atPort(k *filter.Key, some, whole []uint32, peerAddr netip.Addr, dst *Endpoint) *filter.Rule {
	t := &r.ports[portTableOf(k.Protocol)]
	if rule := t.all.find(some, whole, peerAddr); rule != nil {
		return rule
	}
	if rule := t.at(k.Port).find(some, whole, peerAddr); rule != nil {
		return rule
	}
	if len(r.named) == 0 || dst == nil || dst.class == nil {
		return nil
	}
	for i := range dst.class.ports {
		np := &dst.class.ports[i]
		if np.number != k.Port || np.protocol != k.Protocol {
			continue
		}
		if rule := r.named[portName{np.name, np.protocol}].find(some, whole, peerAddr); rule != nil {
			return rule
		}
	}
	return nil
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

// at returns the peer set of the interval that holds port.
func (t *portTable) at(port uint16) *peerSet {
	low, high := 0, len(t.starts)
	for low < high {
		if mid := int(uint(low+high) >> 1); t.starts[mid] <= port {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == 0 {
		return nil
	}
	return t.sets[low-1]
}

func (s *peerSet) find(some, whole []uint32, addr netip.Addr) *filter.Rule {
	if s == nil {
		return nil
	}
	if s.everyone != nil {
		return s.everyone
	}
	if rule := shared(s.some, some); rule != nil {
		return rule
	}
	if rule := shared(s.whole, whole); rule != nil {
		return rule
	}
	if len(s.blocks) == 0 {
		return nil
	}
	return find(s.blocks, addr)
}

// shared returns the rule of a selector that stands in both sorted lists. It
// walks the shorter and searches the longer, so that a pod with few selectors
// costs little against a rule set with thousands, and the other way round.
func shared(rules []peerRule, ids []uint32) *filter.Rule {
	if len(rules) == 0 || len(ids) == 0 {
		return nil
	}
	if len(ids) <= len(rules) {
		for _, id := range ids {
			at := searchRules(rules, id)
			if at == len(rules) {
				return nil
			}
			if rules[at].selector == id {
				return rules[at].rule
			}
			rules = rules[at:]
		}
		return nil
	}
	for i := range rules {
		at, found := slices.BinarySearch(ids, rules[i].selector)
		if found {
			return rules[i].rule
		}
		if ids = ids[at:]; len(ids) == 0 {
			return nil
		}
	}
	return nil
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

// compiler builds a rule set from rules. Intervals with the same rules share one
// peer set.
type compiler struct {
	rules []*rule
	sets  map[string]*peerSet
}

// compile merges the rules of policies for one direction.
func compile(d filter.Direction, policies []*policy) *ruleSet {
	c := compiler{sets: make(map[string]*peerSet)}
	for _, p := range policies {
		for i := range p.rules[d] {
			c.rules = append(c.rules, &p.rules[d][i])
		}
	}
	out := &ruleSet{}
	every := make([]int, len(c.rules))
	var portless []int
	var all [3][]int
	var spans [3][]span
	named := make(map[portName][]int)
	for i, r := range c.rules {
		every[i] = i
		if r.portless {
			portless = append(portless, i)
		}
		for _, p := range r.ports {
			t := portTableOf(p.protocol)
			switch {
			case p.name != "":
				key := portName{p.name, p.protocol}
				named[key] = append(named[key], i)
			case p.all():
				all[t] = append(all[t], i)
			default:
				spans[t] = append(spans[t], span{p.low, p.high, i})
			}
		}
	}
	out.peers, out.portless = c.set(every), c.set(portless)
	for t := range out.ports {
		out.ports[t] = c.table(spans[t])
		out.ports[t].all = c.set(all[t])
	}
	if len(named) > 0 {
		out.named = make(map[portName]*peerSet, len(named))
		for key, rules := range named {
			out.named[key] = c.set(rules)
		}
	}
	return out
}

// span is a range of ports and the rule that names it.
type span struct {
	low, high uint16
	rule      int
}

// table cuts the ports where any span begins or ends.
func (c *compiler) table(spans []span) portTable {
	type edge struct {
		port  uint32 // 65536 is just past the last port
		rule  int
		begin bool
	}
	edges := make([]edge, 0, 2*len(spans))
	for _, s := range spans {
		edges = append(edges, edge{uint32(s.low), s.rule, true}, edge{uint32(s.high) + 1, s.rule, false})
	}
	slices.SortFunc(edges, func(a, b edge) int { return int(a.port) - int(b.port) })
	var t portTable
	active := make(map[int]int) // rule → spans of it that are open
	for i, e := range edges {
		if e.begin {
			active[e.rule]++
		} else if active[e.rule]--; active[e.rule] == 0 {
			delete(active, e.rule)
		}
		if last := i+1 == len(edges) || edges[i+1].port != e.port; !last || e.port > 65535 {
			continue
		}
		rules := make([]int, 0, len(active))
		for r := range active {
			rules = append(rules, r)
		}
		t.starts = append(t.starts, uint16(e.port))
		t.sets = append(t.sets, c.set(rules))
	}
	return t
}

// set builds the peer set of some rules, or returns the one that was built.
func (c *compiler) set(rules []int) *peerSet {
	if len(rules) == 0 {
		return nil
	}
	slices.Sort(rules)
	rules = slices.Compact(rules)
	key := make([]byte, 0, 4*len(rules))
	for _, i := range rules {
		key = binary.LittleEndian.AppendUint32(key, uint32(i))
	}
	if s, ok := c.sets[string(key)]; ok {
		return s
	}
	s := c.build(rules)
	c.sets[string(key)] = s
	return s
}

func (c *compiler) build(rules []int) *peerSet {
	s := &peerSet{}
	for _, i := range rules {
		r := c.rules[i]
		if r.anyone {
			return &peerSet{everyone: r.ref}
		}
		for _, sel := range r.some {
			s.some = append(s.some, peerRule{sel.id, r.ref})
		}
		for _, sel := range r.whole {
			s.whole = append(s.whole, peerRule{sel.id, r.ref})
		}
		for _, b := range r.blocks {
			s.blocks = append(s.blocks, addrRange{b.low, b.high, r.ref})
		}
	}
	s.some, s.whole, s.blocks = distinct(s.some), distinct(s.whole), disjoint(s.blocks)
	return s
}

// distinct sorts by selector and keeps the first rule of each.
func distinct(rules []peerRule) []peerRule {
	slices.SortStableFunc(rules, func(a, b peerRule) int {
		if a.selector < b.selector {
			return -1
		}
		if a.selector > b.selector {
			return 1
		}
		return 0
	})
	return slices.Clip(slices.CompactFunc(rules, func(a, b peerRule) bool { return a.selector == b.selector }))
}
