// Package reach finds who reaches whom in a cluster, at which ports, and by which rules.
//
// The ends are parties: groups of pods of a workload that policies cannot tell apart, nodes, and
// ranges of addresses outside the cluster. For each pair of parties, all ports are divided into
// spans with the same answer, so that the answer holds for every packet between them. The
// verdicts are those of [inventory.Inventory.Decide].
package reach

import (
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// Map knows who reaches whom. It must not be used concurrently.
type Map struct {
	// Parties are the parties of the cluster: pods, sorted by name; then nodes; then addresses
	// outside the cluster, [inventory.World] first.
	Parties []*Party
	// LeftOut are the pods that are in no party, sorted by name.
	LeftOut []LeftOut

	inventory *inventory.Inventory
	classes   map[inventory.Class]*class
	cuts      map[string][2]cuts // by policy and direction
	pairs     map[pairKey][]Span
	answers   map[answerKey]*Answer
	last      *Answer // the last answer, and its key: neighboring spans often have the same one
	lastKey   answerKey
	spans     map[string][]Span
	scratch   []Span // reused, as are starts and key
	starts    []int
	key       []byte
	places    map[netip.Prefix]*inventory.Range // by prefix: where the ends of an Elsewhere are
}

// LeftOut is a pod that is in no party.
type LeftOut struct {
	Pod *policy.Pod
	Why error // why it has no address
}

// maxPairs bounds the memory of the answers that Between remembers: some 50 MB.
const maxPairs = 500_000

// New returns the map of an inventory. It finds the parties; the answers about pairs are computed
// when they are asked for, once for parties that policies cannot tell apart.
func New(v *inventory.Inventory) *Map {
	m := &Map{
		inventory: v,
		classes:   make(map[inventory.Class]*class),
		cuts:      cutsOf(v.Policies),
		pairs:     make(map[pairKey][]Span),
		answers:   make(map[answerKey]*Answer),
		spans:     make(map[string][]Span),
		places:    make(map[netip.Prefix]*inventory.Range),
	}
	m.addPods()
	m.addNodes()
	m.addOutside()
	return m
}

// Inventory returns the inventory of the map.
func (m *Map) Inventory() *inventory.Inventory { return m.inventory }

// Pair is the answer for a pair of parties. Parties that policies cannot tell apart have answers
// with the same Spans: slices that are equal are the same slice. They must not be changed.
type Pair struct {
	// Spans has every port of every protocol once: TCP, UDP, SCTP, then ICMP, by number. It is nil
	// if no packet can pass, because the parties have no address family in common, or because
	// all flows between the parties are in OwnNode.
	Spans []Span
	// OwnNode is the answer for those pods of the one party that run on a node of the other. It
	// is nil if there are none, and if neither party is a node or of the host network.
	OwnNode []Span
	// Self reports that both parties are the same single pod, which always reaches itself.
	Self bool
}

// Span is a range of ports of one protocol, with one answer.
type Span struct {
	Protocol  filter.Protocol // TCP, UDP, SCTP, or ICMP for ICMP and ICMPv6
	Low, High uint16          // from 1 to 65535; both 0 for ICMP
	*Answer                   // shared by equal spans; must not be changed
}

// Answer is the verdict about a span, with what decides.
type Answer struct {
	Verdict Verdict
	// IPv4 and IPv6 are the outcomes of the address families; nil if one of the parties has no
	// address of the family. At least one of them is set.
	IPv4, IPv6 *Outcome

	number int // identifies it in the map
}

// Outcome is the verdict for one address family. Its sides name the policies and the rules that
// decide in both directions.
type Outcome struct {
	filter.Verdict
	// Elsewhere is set if the verdict depends on addresses that are assumed.
	Elsewhere *Elsewhere
}

// Elsewhere is the other verdict of an outcome that depends on assumed addresses.
type Elsewhere struct {
	filter.Verdict
	// From and To are where the ends get this verdict; nil for an end whose address does not
	// matter.
	From, To *inventory.Range
}

// Verdict is the answer about all addresses of a pair of parties.
type Verdict uint8

// The verdicts.
const (
	Deny Verdict = iota
	Allow
	// Mixed: one address family is allowed, and the other is denied.
	Mixed
	// Depends: the verdict depends on an address that is not known, such as that of a pod of
	// a workload in Git.
	Depends
)

// String returns the verdict as in text and JSON.
func (v Verdict) String() string {
	return [...]string{Deny: "deny", Allow: "allow", Mixed: "mixed", Depends: "depends"}[v]
}

// Outcomes returns the outcomes of the address families that there are, IPv4 first.
func (a *Answer) Outcomes() (all []*Outcome) {
	for _, o := range []*Outcome{a.IPv4, a.IPv6} {
		if o != nil {
			all = append(all, o)
		}
	}
	return all
}

// Between returns the answer for flows from a party to another, or to other pods of the
// same. It returns nil if neither has pods with addresses of their own: no policy decides about
// such flows.
func (m *Map) Between(from, to *Party) *Pair {
	switch {
	case from.Kind != Pods && to.Kind != Pods:
		return nil
	case from == to && from.Single():
		return &Pair{Self: true, Spans: m.between(from, to, self)}
	}
	return &Pair{Spans: m.between(from, to, apart), OwnNode: m.between(from, to, ownNode)}
}

// ends returns two ends of the parties with a relation. They are nil if there are no such two.
func ends(from, to *Party, rel relation) (src, dst *inventory.End) {
	fromNode, toNode := from.hasNodes(), to.hasNodes()
	switch {
	case fromNode && to.Kind == Pods:
		dst, src = to.pairWith(from, rel == ownNode)
	case toNode && from.Kind == Pods:
		src, dst = from.pairWith(to, rel == ownNode)
	case rel == ownNode:
	case rel == self:
		src, dst = from.ends[0], from.ends[0]
	case from == to:
		src, dst = from.ends[0], from.ends[len(from.ends)-1]
	default:
		src, dst = from.ends[0], to.ends[0]
	}
	return src, dst
}

// relation is what the verdict of a flow depends on, in addition to the classes of its ends.
type relation uint8

const (
	apart   relation = iota
	ownNode          // the one end is the node that the other runs on
	self             // both ends are the same pod
)

type pairKey struct {
	from, to *class
	relation relation
}

// between returns the spans of flows between two ends of the parties with a relation; nil if
// there are none. It remembers them for all parties of the same classes.
func (m *Map) between(from, to *Party, rel relation) []Span {
	src, dst := ends(from, to, rel)
	if src == nil {
		return nil
	}
	key := pairKey{from.class, to.class, rel}
	spans, known := m.pairs[key]
	if !known {
		if len(m.pairs) >= maxPairs {
			clear(m.pairs)
		}
		spans = m.intern(m.decide(from, to, m.routes(src, dst, to, rel)))
		m.pairs[key] = spans
	}
	return spans
}

// Overall returns the verdict that all spans have, and true. If they differ, it returns
// Mixed and false.
func Overall(spans []Span) (Verdict, bool) {
	if len(spans) == 0 {
		return Deny, true
	}
	first := spans[0].Verdict
	if slices.ContainsFunc(spans, func(s Span) bool { return s.Verdict != first }) {
		return Mixed, false
	}
	return first, true
}
