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

// Endpoint is whoever has an address: a pod, or this node itself.
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
	groups    [2]*policySet // by filter.Direction; nil where not isolated
	peers     idSet         // of the peer selectors that match
	namespace uint32
	refs      int
	ports     []namedPort
	key       string
	_         [24]byte
}

// policySet is a set of policies that isolate the same pods in one direction, and
// what they allow together.
type policySet struct {
	isolation *filter.Isolation
	rules     *ruleSet
	key       policySetKey
	id        uint64
	refs      int
	ns        *namespace
	size      int // of its rules, if they are merged for it alone
}

// policySetKey is by what a set of policies is known.
type policySetKey struct {
	direction filter.Direction
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

// IsNode says whether the endpoint is this node and no pod.
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

// Isolation returns the policies that isolate the endpoint in a direction, or
// nil.
func (e *Endpoint) Isolation(d filter.Direction) *filter.Isolation {
	if e == nil || e.class == nil || e.class.groups[d] == nil {
		return nil
	}
	return e.class.groups[d].isolation
}

// Closed says whether a direction is isolated and there is no rule: but for what goes
// to or comes from its node or itself, all packets that way are denied.
func (e *Endpoint) Closed(d filter.Direction) bool {
	return e.Isolation(d) != nil && e.class.groups[d].rules.none()
}

// MayRestrict says whether flows of an address may be denied now that was is now that
// were allowed with no policy in the way, or only because of the node that the pod
// runs on (filter.NotIsolated, filter.OwnNode). Neither of the two is nil for an
// address outside.
func MayRestrict(was, now *Endpoint) bool {
	if was.IsNode() || now.IsNode() {
		return !now.IsNode()
	}
	if was != nil && now != nil && !was.host.same(now.host) {
		return true
	}
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		if was.Isolation(d) == nil && now.Isolation(d) != nil {
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
	egress, ingress := true, true // says the same for all packets between the two
	if src != nil && src.class.groups[filter.Egress] != nil {
		g := src.class.groups[filter.Egress]
		v.Egress.Isolation, v.Reason = g.isolation, filter.RuleAllows
		v.Egress.Rule, egress = g.rules.find(k, dst, dstAddr, dst, s.everyone)
	}
	if dst != nil && dst.class.groups[filter.Ingress] != nil {
		g := dst.class.groups[filter.Ingress]
		v.Ingress.Isolation, v.Reason = g.isolation, filter.RuleAllows
		v.Ingress.Rule, ingress = g.rules.find(k, src, srcAddr, dst, s.everyone)
	}
	switch {
	case !v.Egress.Allows():
		v.Action, v.Reason, v.Pair = filter.Deny, filter.EgressDenied, egress || ingress && !v.Ingress.Allows()
	case !v.Ingress.Allows():
		v.Action, v.Reason, v.Pair = filter.Deny, filter.IngressDenied, ingress
	default:
		v.Pair = egress && ingress
	}
	return v
}

// runsOn says whether addr, which is not another pod's, is an address of the
// node that the pod e runs on.
func (e *Endpoint) runsOn(addr netip.Addr, other *Endpoint) bool {
	return e != nil && other == nil && slices.Contains(e.host.list(), addr)
}
