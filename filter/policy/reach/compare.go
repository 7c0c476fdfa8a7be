package reach

import (
	"sluice/filter"
	"sluice/filter/policy/inventory"
)

// Diff is the difference in who reaches whom between an old and a new cluster.
type Diff struct {
	Old, New *Map
	// Matches are the parties of both clusters: first those of the new cluster, in its order, then
	// those that only the old one has.
	Matches []*Match
	// Changes are what opens and closes, in the order in which Matches has the sources, then the
	// destinations. Allowed flows of a new party count as opened, and those of a party that is gone as
	// closed. Flows without a party of kind Pods are not compared: policies do not decide about them.
	Changes []Change
	// Policies are the policies that were added, removed or changed, sorted by title.
	Policies []PolicyState
	// NodesUnknown reports that only one of the clusters has nodes, so that nodes were not compared.
	NodesUnknown bool
}

// Change is an effect on the flows between two parties.
type Change struct {
	From, To *Match
	// OwnNode reports that the change is about the pods of one party that run on a node of the
	// other, and their node.
	OwnNode bool
	*Effect // shared by equal changes; must not be changed
}

// New reports whether one of the parties is new.
func (c *Change) New() bool { return c.From.Old == nil || c.To.Old == nil }

// Gone reports whether one of the parties is gone.
func (c *Change) Gone() bool { return c.From.New == nil || c.To.New == nil }

// Effect is a set of ports that open or close, with the causes.
type Effect struct {
	Opens bool   // the ports open; otherwise they close
	Spans []Span // the ports, without answers
	// Maybe reports that the change depends on addresses that are not known.
	Maybe bool
	// Family is the address family that changes, IPv4 or IPv6. It is empty if the change applies to
	// all families that the parties have.
	Family string
	// Causes are the policies that cause the change. There is none if a party is gone, or if a
	// party is new and no policy decides about the flows.
	Causes []Cause
}

// Compare returns the difference in who reaches whom. It divides the addresses outside the clusters
// into ranges that the policies of both clusters do not tell apart.
func Compare(before, after *inventory.Inventory) *Diff {
	d := &Diff{Old: New(before.Beside(after)), New: New(after.Beside(before))}
	d.Matches = matchParties(d.Old, d.New)
	d.NodesUnknown = (len(d.Old.of(Nodes)) == 0) != (len(d.New.of(Nodes)) == 0)
	c := &comparison{Diff: d, known: make(map[pairsKey][]*Effect)}
	c.states, d.Policies = statesOf(before.Policies, after.Policies)
	var pods []*Match
	for _, m := range d.Matches {
		if m.hasPods() {
			pods = append(pods, m)
		}
	}
	for _, from := range d.Matches {
		others := d.Matches
		if !from.hasPods() {
			others = pods // policies decide about no other pairs; skip them, because there may be many ranges
		}
		for _, to := range others {
			c.compare(from, to)
		}
	}
	return d
}

// hasPods reports whether the party is of kind Pods in one of the clusters, so that policies may
// decide about its flows.
func (m *Match) hasPods() bool {
	return m.Old != nil && m.Old.Kind == Pods || m.New != nil && m.New.Kind == Pods
}

// comparison makes a Diff.
type comparison struct {
	*Diff
	states map[string]State // of policies, by name
	known  map[pairsKey][]*Effect
}

// pairsKey identifies pairs with equal effects by their keys in the old and in the new cluster. If a
// party is missing in a cluster, both classes of that key are nil.
type pairsKey struct{ before, after pairKey }

// compare adds the changes between two parties.
func (c *comparison) compare(from, to *Match) {
	before, after := c.Old.side(from.Old, to.Old), c.New.side(from.New, to.New)
	if before.state == missing && after.state == missing {
		return // one party is new, and the other is gone
	}
	for _, rel := range []relation{apart, ownNode} {
		if !before.has(rel) || !after.has(rel) {
			continue
		}
		key := pairsKey{before.key(rel), after.key(rel)}
		effects, known := c.known[key]
		if !known {
			effects = c.effects(before.at(rel), after.at(rel))
			if len(c.known) >= maxPairs {
				clear(c.known)
			}
			c.known[key] = effects
		}
		for _, e := range effects {
			c.Changes = append(c.Changes, Change{from, to, rel == ownNode, e})
		}
	}
}

// side is a pair of parties in one of the clusters.
type side struct {
	m        *Map
	from, to *Party
	state    sideState
	pair     *Pair
}

type sideState uint8

const (
	judged   sideState = iota
	missing            // one of the parties is not in the cluster: nothing passes
	unjudged           // policies do not decide about the pair: everything passes
)

func (m *Map) side(from, to *Party) side {
	s := side{m: m, from: from, to: to}
	if from == nil || to == nil {
		s.state = missing
		return s
	}
	if s.pair = m.Between(from, to); s.pair == nil {
		s.state = unjudged
	}
	return s
}

// has reports whether the parties have flows with a relation that can be compared. A party that is a
// single pod has none to itself.
func (s *side) has(rel relation) bool {
	switch {
	case s.state != judged:
		return rel == apart
	case s.pair.Self:
		return false
	case rel == ownNode:
		return s.pair.OwnNode != nil
	}
	return s.pair.Spans != nil || s.pair.OwnNode == nil
}

func (s *side) key(rel relation) pairKey {
	k := pairKey{relation: rel}
	if s.state != missing {
		k.from, k.to = s.from.class, s.to.class
	}
	return k
}

// flows are the flows between two parties with a relation, in one cluster.
type flows struct {
	side
	relation relation
	spans    []Span // nil if nothing passes
}

func (s side) at(rel relation) *flows {
	f := &flows{s, rel, nil}
	switch {
	case s.state == unjudged:
		f.spans = everything(s.from, s.to)
	case s.state == judged && rel == ownNode:
		f.spans = s.pair.OwnNode
	case s.state == judged:
		f.spans = s.pair.Spans
	}
	return f
}

// everything returns the spans of a pair about which policies do not decide: all ports are allowed.
// It returns nil if the parties have no address family in common.
func everything(from, to *Party) (all []Span) {
	a := &Answer{Verdict: Allow}
	pass := &Outcome{Verdict: filter.Verdict{Action: filter.Allow, Reason: filter.NotIsolated}}
	for _, r := range between(from.ends[0], to.ends[0]) {
		if r.family() == 0 {
			a.IPv4 = pass
		} else {
			a.IPv6 = pass
		}
	}
	if len(a.Outcomes()) == 0 {
		return nil
	}
	for _, s := range anySpans() {
		s.Answer = a
		all = append(all, s)
	}
	return all
}

// anySpans returns a span with all ports for each protocol.
func anySpans() (all []Span) {
	for _, p := range protocols {
		all = append(all, Span{Protocol: p, Low: 1, High: 1<<16 - 1})
	}
	return append(all, Span{Protocol: filter.ICMP})
}
