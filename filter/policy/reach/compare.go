package reach

import (
	"sluice/filter"
	"sluice/filter/policy/inventory"
)

// Diff is what changes in who reaches whom from one cluster to another.
type Diff struct {
	Old, New *Map
	// Matches are the parties of both clusters: those of the new one in its order, then those that
	// are gone.
	Matches []*Match
	// Changes are what opens and closes, in the order of the sources, then of the destinations in
	// Matches. Flows between parties of which one is new open, if they are allowed, and flows of
	// parties that are gone close. Flows of nodes, pods of the host network and addresses outside the
	// cluster among each other are not compared: policies do not decide about them.
	Changes []Change
	// Policies are the policies that were added, removed or changed, sorted by title.
	Policies []PolicyState
	// NodesUnknown reports that one of the clusters has no nodes, so that those of the other were
	// not compared.
	NodesUnknown bool
}

// Change is what opens or closes between two parties.
type Change struct {
	From, To *Match
	// OwnNode reports that this is about the pods of the one party that run on a node of the
	// other.
	OwnNode bool
	*Effect // shared by equal changes; must not be changed
}

// New reports whether one of the parties is new.
func (c *Change) New() bool { return c.From.Old == nil || c.To.Old == nil }

// Gone reports whether one of the parties is gone.
func (c *Change) Gone() bool { return c.From.New == nil || c.To.New == nil }

// Effect is what opens or closes.
type Effect struct {
	Opens bool   // it opens; otherwise it closes
	Spans []Span // the ports, without answers
	// Maybe reports that the change depends on addresses that are not known.
	Maybe bool
	// Family is the address family that changes, IPv4 or IPv6; empty if it is every one that the
	// parties have.
	Family string
	// Causes are the policies that do it. There is none if a party is gone, or if one is new and no
	// policy decides about it.
	Causes []Cause
}

// Compare returns what changes in who reaches whom. It divides the addresses outside the clusters
// where the policies of either one do.
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
			others = pods // policies decide about no other: ranges may be many
		}
		for _, to := range others {
			c.compare(from, to)
		}
	}
	return d
}

// hasPods reports whether policies decide about flows of the party, before or now.
func (m *Match) hasPods() bool {
	return m.Old != nil && m.Old.Kind == Pods || m.New != nil && m.New.Kind == Pods
}

// comparison makes a Diff.
type comparison struct {
	*Diff
	states map[string]State // of policies, by name
	known  map[pairsKey][]*Effect
}

// pairsKey identifies pairs whose effects are equal: the pairs of the old and the new cluster.
// The classes of a party that is missing are nil.
type pairsKey struct{ before, after pairKey }

// compare adds what changes between two parties.
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

// has reports whether there are flows between the parties with a relation that can be compared. A
// single pod has no flows to others of its kind, so there is nothing to compare them with.
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

// everything returns the answer for a pair about which policies do not decide; nil if the parties
// have no address family in common.
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

// anySpans returns a span for each protocol.
func anySpans() (all []Span) {
	for _, p := range protocols {
		all = append(all, Span{Protocol: p, Low: 1, High: 1<<16 - 1})
	}
	return append(all, Span{Protocol: filter.ICMP})
}
