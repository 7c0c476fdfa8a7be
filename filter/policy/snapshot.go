package policy

import (
	"iter"
	"net/netip"
	"slices"

	"sluice/filter"
)

// Snapshot is the compiled state of the world at one moment. It never changes;
// any number of goroutines may use it at once.
type Snapshot struct {
	number   uint64
	newest   uint64 // of the epochs given so far
	table    *addrTable
	everyone []idSet // by namespace id: selectors that match all pods of it
	counts   Counts
	ranges   *podRanges
	starting *StartingPods // shared by all snapshots
}

// Counts says how much a snapshot holds.
type Counts struct {
	Namespaces, Pods, Policies, Endpoints, Classes, PolicySets int
}

// Endpoint is the owner of an address: a pod or this node.
type Endpoint struct {
	Namespace, Name string // of the pod; empty for the node

	class *class // nil for the node
	host  *host
	epoch uint64
}

// class is what all pods share that no policy can tell apart. What a decision reads of
// it fills one line of the processor's cache, and it is padded to begin with a line: at
// 112 bytes two of three did not, and cost every decision another line.
type class struct {
	chains    [2]*link // by filter.Direction; nil without policies
	peers     idSet    // of the peer selectors that match
	namespace uint32
	refs      int
	ports     []namedPort
	key       string
	_         [24]byte
}

// policySet is the policies of one tier that select the same pods, and what they decide
// in one direction.
type policySet struct {
	alone link // of pods that no later tier decides about
	key   policySetKey
	id    uint64
	refs  int
	ns    *namespace
	size  int // of its rules, if they are merged for it alone
}

// policySetKey identifies a set of policies.
type policySetKey struct {
	direction filter.Direction
	tier      Tier
	policies  mark
}

// Number tells snapshots of one store apart: it grows by one with each.
func (s *Snapshot) Number() uint64 { return s.number }

// NewestEpoch is the last epoch that was given until the snapshot was made. An
// endpoint in a later one that has no newer epoch was there before, maybe at other
// addresses.
func (s *Snapshot) NewestEpoch() uint64 { return s.newest }

// Counts says how much the snapshot holds.
func (s *Snapshot) Counts() Counts { return s.counts }

// Endpoint returns who has the address, or nil: an address outside the cluster.
func (s *Snapshot) Endpoint(addr netip.Addr) *Endpoint {
	return s.table.get(addr)
}

// Endpoints lists everyone who has an address, in no particular order.
func (s *Snapshot) Endpoints() iter.Seq2[netip.Addr, *Endpoint] { return s.table.all() }

// IsNode reports whether the endpoint is this node and no pod.
func (e *Endpoint) IsNode() bool { return e != nil && e.class == nil }

// Epoch changes exactly when some verdict about the endpoint could. An address
// outside the cluster has epoch 0; no other epoch is ever given twice.
func (e *Endpoint) Epoch() uint64 {
	if e == nil {
		return 0
	}
	return e.epoch
}

// String is "namespace/name", "node", or empty for an address outside.
func (e *Endpoint) String() string {
	switch {
	case e == nil:
		return ""
	case e.class == nil:
		return "node"
	}
	return e.Namespace + "/" + e.Name
}

// chain is the tiers that decide about an endpoint in a direction.
func (e *Endpoint) chain(d filter.Direction) *link {
	if e == nil || e.class == nil {
		return nil
	}
	return e.class.chains[d]
}

// Isolation returns the policies that isolate the endpoint in a direction, or
// nil.
func (e *Endpoint) Isolation(d filter.Direction) *filter.Isolation { return e.chain(d).isolating() }

// Effect returns what may be concluded about all packets of an endpoint in a direction
// without asking for a decision.
func (e *Endpoint) Effect(d filter.Direction) Effect { return e.chain(d).effectOf() }

// MayRestrict reports whether flows of an address may be denied with the endpoint now that
// were allowed with the one before because no policy decided, or only because of the node
// that the pod runs on (filter.NotIsolated, filter.OwnNode). An endpoint is nil for an
// address outside; not both are.
func MayRestrict(before, now *Endpoint) bool {
	if before.IsNode() || now.IsNode() {
		return !now.IsNode()
	}
	if before != nil && now != nil && !before.host.same(now.host) {
		return true
	}
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		if before.Effect(d) == Open && now.Effect(d) != Open {
			return true
		}
	}
	return false
}

// Decide gives the verdict about a flow. It parses nothing, locks nothing and
// allocates nothing.
func (s *Snapshot) Decide(k filter.Key) filter.Verdict {
	src, dst := k.SrcAddr(), k.DstAddr()
	return s.DecideBetween(&k, src, dst, s.Endpoint(src), s.Endpoint(dst))
}

// DecideBetween is Decide for a caller that has looked up both ends already.
func (s *Snapshot) DecideBetween(k *filter.Key, srcAddr, dstAddr netip.Addr, src, dst *Endpoint) filter.Verdict {
	switch {
	case k.Src == k.Dst:
		return filter.Verdict{Action: filter.Allow, Reason: filter.SameAddress, Pair: true}
	case src.IsNode(), dst.IsNode(), dst.runsOn(srcAddr, src), src.runsOn(dstAddr, dst):
		return filter.Verdict{Action: filter.Allow, Reason: filter.OwnNode, Pair: true}
	}
	v := filter.Verdict{Action: filter.Allow, Reason: filter.NotIsolated}
	egress, ingress := passes, passes
	if src != nil && src.class.chains[filter.Egress] != nil {
		v.Reason = filter.RuleAllows
		egress = s.decideSide(&v.Egress, src.class.chains[filter.Egress], k, dst, dstAddr, dst)
	}
	if dst != nil && dst.class.chains[filter.Ingress] != nil {
		v.Reason = filter.RuleAllows
		ingress = s.decideSide(&v.Ingress, dst.class.chains[filter.Ingress], k, src, srcAddr, dst)
	}
	switch {
	case !egress.allows:
		v.Action, v.Reason, v.Pair = filter.Deny, filter.EgressDenied, egress.pair || ingress.pair && !ingress.allows
	case !ingress.allows:
		v.Action, v.Reason, v.Pair = filter.Deny, filter.IngressDenied, ingress.pair
	default:
		v.Pair = egress.pair && ingress.pair
	}
	return v
}

// outcomeOf is what one side decides: whether it allows the flow, and whether it does the
// same for all packets between the two.
type outcomeOf struct{ allows, pair bool }

var passes = outcomeOf{true, true}

// decideSide asks a chain. Most begin and end with the policies that isolate.
func (s *Snapshot) decideSide(side *filter.Side, l *link, k *filter.Key, peer *Endpoint, addr netip.Addr, dst *Endpoint) (o outcomeOf) {
	if l.isolation != nil {
		side.Isolation = l.isolation
		side.Rule, o.pair = l.rules.find(k, peer, addr, dst, s.everyone)
		o.allows = side.Rule != nil
		return o
	}
	d := l.decide(&query{k, peer, addr, dst, s.everyone})
	side.Isolation, side.Rule = d.isolation, d.rule
	return outcomeOf{d.action == Accept, d.pair}
}

// runsOn reports whether addr, which is not another pod's, is an address of the
// node that the pod e runs on.
func (e *Endpoint) runsOn(addr netip.Addr, other *Endpoint) bool {
	return e != nil && other == nil && slices.Contains(e.host.list(), addr)
}
