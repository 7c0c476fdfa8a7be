package engine

import (
	"slices"
	"sync"

	"sluice/filter"
)

const (
	// maxCauses bounds the causes that a counter keeps by pointer.
	maxCauses = 500
	// MaxPolicies bounds the policies that have series of their own, and maxSeries the series of all these
	// policies. Most policies have one or two series; a ClusterNetworkPolicy may have one for each rule.
	MaxPolicies = 1000
	maxSeries   = 4 * MaxPolicies
)

// OtherPolicies is Denial.Policy of the series that count all denials by policies that have no
// series of their own, one for each tier and direction.
const OtherPolicies = "(other)"

// Series decides which policies have series of their own: the first MaxPolicies that deny something. A
// policy keeps its series until Free. All counters of an agent share a Series, so that the bounds hold for
// all of them together. The zero value is ready for use. Its methods may be called concurrently.
type Series struct {
	mu       sync.Mutex
	policies map[string]bool
	all      map[Denial]bool
}

// has reports whether the series d exists. If it does not and there is room for it, has adds it first.
func (s *Series) has(d Denial) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all[d] {
		return true
	}
	if len(s.all) >= maxSeries || !s.policies[d.Policy] && len(s.policies) >= MaxPolicies {
		return false
	}
	if s.all == nil {
		s.policies, s.all = make(map[string]bool), make(map[Denial]bool)
	}
	s.policies[d.Policy], s.all[d] = true, true
	return true
}

// Free removes the series of the given policies, so that other policies can have series. It must be called
// after all counters have forgotten these policies.
func (s *Series) Free(policies []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range policies {
		delete(s.policies, name)
	}
	for d := range s.all {
		if !s.policies[d.Policy] {
			delete(s.all, d)
		}
	}
}

// Denial identifies a series of denials. Rule is empty if NetworkPolicies isolate the pod and none
// of their rules allowed the flow.
type Denial struct {
	Tier      filter.Tier
	Direction filter.Direction
	Policy    string // as in verdicts
	Rule      string // field of the rule, as in "ingress[0]"
	Name      string // of the rule; empty if it has none
}

// Denials counts the denied packets that policies denied.
type Denials struct {
	// ByTier counts each packet once.
	ByTier [filter.NumTiers]uint64
	// ByPolicy counts a packet once for the policy whose rule denied it. If no rule allowed the
	// packet, ByPolicy counts it once for each NetworkPolicy that isolates the pod.
	ByPolicy map[Denial]uint64
}

// add adds o, the denials of another evaluator.
func (d *Denials) add(o *Denials) {
	for t := range d.ByTier {
		d.ByTier[t] += o.ByTier[t]
	}
	if d.ByPolicy == nil {
		d.ByPolicy = make(map[Denial]uint64, len(o.ByPolicy))
	}
	for series, n := range o.ByPolicy {
		d.ByPolicy[series] += n
	}
}

// cause is the part of a verdict that denies: a rule, or policies that isolate.
type cause struct {
	rule      *filter.Rule
	isolation *filter.Isolation
}

// causeOf returns the cause of a denial by policies. ok is false if the denial has another reason.
func causeOf(v *filter.Verdict) (c cause, ok bool) {
	switch v.Reason {
	case filter.EgressDenied, filter.IngressDenied, filter.MidStream:
	default:
		return c, false
	}
	side := &v.Egress
	if side.Allows() {
		side = &v.Ingress
	}
	if side.Rule != nil {
		return cause{rule: side.Rule}, true
	}
	return cause{isolation: side.Isolation}, side.Isolation != nil
}

// denialCounter counts the denials of an evaluator. It counts by the pointers in verdicts, which
// takes 30 ns, and turns these into names only when it is read, or after maxCauses of them: each
// compiled policy has new pointers. Only denied packets pay for it.
type denialCounter struct {
	mu      sync.Mutex
	series  *Series          // if nil, the first denial makes one that is not shared
	causes  map[cause]uint64 // since the last call of fold
	denials Denials
}

func (c *denialCounter) count(v *filter.Verdict, n uint64) {
	why, ok := causeOf(v)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.causes == nil {
		c.causes = make(map[cause]uint64)
	}
	c.causes[why] += n
	if len(c.causes) > maxCauses {
		c.fold()
	}
}

// fold adds the counts by pointer to those by name.
func (c *denialCounter) fold() {
	for why, n := range c.causes {
		if r := why.rule; r != nil {
			c.denials.ByTier[r.Tier] += n
			c.add(Denial{r.Tier, r.Direction, r.Policy, r.Field(), r.Name}, n)
			continue
		}
		c.denials.ByTier[filter.NetworkPolicyTier] += n
		for _, name := range why.isolation.Policies {
			c.add(Denial{Tier: filter.NetworkPolicyTier, Direction: why.isolation.Direction, Policy: name}, n)
		}
	}
	clear(c.causes)
}

func (c *denialCounter) add(series Denial, n uint64) {
	all := &c.denials.ByPolicy
	if *all == nil {
		*all = make(map[Denial]uint64)
	}
	if c.series == nil {
		c.series = new(Series)
	}
	if _, known := (*all)[series]; !known && !c.series.has(series) {
		series = Denial{Tier: series.Tier, Direction: series.Direction, Policy: OtherPolicies}
	}
	(*all)[series] += n
}

// forget removes the series of policies. The counts by tier stay.
func (c *denialCounter) forget(policies []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fold()
	for series := range c.denials.ByPolicy {
		if slices.Contains(policies, series.Policy) {
			delete(c.denials.ByPolicy, series)
		}
	}
}

// addTo adds the denials to d.
func (c *denialCounter) addTo(d *Denials) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fold()
	d.add(&c.denials)
}
