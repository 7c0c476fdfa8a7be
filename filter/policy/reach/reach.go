// Package reach finds who reaches whom in a cluster, at which ports, and by which rules.
//
// The ends are parties: groups of pods of a workload that policies cannot tell apart, nodes, and
// ranges of addresses outside the cluster. For each pair of parties, a Map divides all ports into
// spans. All packets of a span have the same answer, and its verdict is that of
// [inventory.Inventory.Decide].
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
	last      *Answer // the last answer, with lastKey: neighboring spans often have the same answer
	lastKey   answerKey
	spans     map[string][]Span
	scratch   []Span // scratch, starts and key are reused
	starts    []int
	key       []byte
	places    map[netip.Prefix]*inventory.Range // by prefix: the ranges of alternatives, for Elsewhere
}

// LeftOut is a pod that is in no party.
type LeftOut struct {
	Pod *policy.Pod
	Why error // why it has no address
}

// maxPairs bounds the number of pairs whose spans Between remembers, in some 50 MB.
const maxPairs = 500_000

// New returns the map of an inventory. It finds the parties. Between computes the answers on demand,
// once for all pairs that policies cannot tell apart.
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

// Pair is the answer for a pair of parties. Equal lists of spans are the same slice in all pairs of a
// map, so they must not be changed.
type Pair struct {
	// Spans has every port of every protocol once: TCP, UDP, SCTP, then ICMP, by number. It is nil
	// if the parties have no address family in common, so that no packet can pass, or if all flows
	// between the parties are in OwnNode.
	Spans []Span
	// OwnNode is the answer for the pods of one party that run on a node of the other. It is nil
	// if there are no such pods, as between two parties without nodes.
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

// Answer is the verdict about a span, with the outcome for each address family.
type Answer struct {
	Verdict Verdict
	// IPv4 and IPv6 are the outcomes of the address families; nil if one of the parties has no
	// address of the family. At least one of them is set.
	IPv4, IPv6 *Outcome

	number int // identifies the answer in the map
}

// Outcome is the verdict for one address family. Its Egress and Ingress sides name the policies and
// the rules that decide.
type Outcome struct {
	filter.Verdict
	// Elsewhere is set if the verdict depends on assumed addresses: it is different at other
	// addresses that the ends may have.
	Elsewhere *Elsewhere
}

// Elsewhere is the verdict that an outcome has if the ends have other addresses than the assumed ones.
type Elsewhere struct {
	filter.Verdict
	// From and To are ranges of the source and the destination in which they get this verdict; nil
	// for an end whose address does not matter.
	From, To *inventory.Range
}

// Verdict combines the verdicts about all addresses of a pair of parties.
type Verdict uint8

// The verdicts.
const (
	Deny Verdict = iota
	Allow
	// Mixed means that one address family is allowed, and the other is denied.
	Mixed
	// Depends means that the verdict depends on an address that is not known, such as that of a
	// pod of a workload in Git.
	Depends
)

// String returns the verdict as in text and JSON.
func (v Verdict) String() string {
	return [...]string{Deny: "deny", Allow: "allow", Mixed: "mixed", Depends: "depends"}[v]
}

// Outcomes returns the outcomes that are not nil, IPv4 first.
func (a *Answer) Outcomes() (all []*Outcome) {
	for _, o := range []*Outcome{a.IPv4, a.IPv6} {
		if o != nil {
			all = append(all, o)
		}
	}
	return all
}

// Between returns the answer for flows from one party to another, or between the pods of one party. It
// returns nil if neither party is of kind Pods: policies do not decide about such flows.
func (m *Map) Between(from, to *Party) *Pair {
	switch {
	case from.Kind != Pods && to.Kind != Pods:
		return nil
	case from == to && from.Single():
		return &Pair{Self: true, Spans: m.between(from, to, self)}
	}
	return &Pair{Spans: m.between(from, to, apart), OwnNode: m.between(from, to, ownNode)}
}

// ends returns two ends of the parties that have the relation. They are nil if no ends have it.
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

// relation is the relation between the ends of a flow. The verdict depends on it and on the classes of
// the ends.
type relation uint8

const (
	apart   relation = iota
	ownNode          // one end is the node on which the other runs
	self             // both ends are the same pod
)

type pairKey struct {
	from, to *class
	relation relation
}

// between returns the spans of flows between ends of the parties that have the relation; nil if there
// are none. It remembers the spans for all parties of the same classes.
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

// Overall returns the verdict of all spans, and true. If their verdicts differ, it returns Mixed and
// false.
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
