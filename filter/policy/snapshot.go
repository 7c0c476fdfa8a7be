package policy

import (
	"iter"
	"net/netip"
	"slices"

	"sluice/filter"
)

// Snapshot is the compiled state of a Store at one moment. It never changes, and any number
// of goroutines may use it.
type Snapshot struct {
	number    uint64
	table     *addrTable
	prefixes  *prefixTable
	everyone  []idSet // by namespace id: the peer selectors that match all its pods
	counts    Counts
	byLabels  bool // see NeedsNamespaces
	toNode    bool // a policy may deny flows from pods to their node
	mayReject bool // see Rejects
	ranges    *podRanges
	nodes     nodeTable
	starting  *StartingPods // shared by all snapshots
	deleted   []string
	removed   []Ref
	changed   []Version
	digest    Digest
	logging   *Logging
}

// Counts holds numbers of objects: of those that a snapshot was compiled from (namespaces,
// pods and policies), and of those that it consists of (endpoints, classes, policy sets).
type Counts struct {
	Namespaces, Pods, Policies, Endpoints, Classes, PolicySets int

	Prefixes int // that policies name
	IDs      int // of the addresses that have endpoints

	Tiers [numTiers]int // the policies of each tier
}

// Endpoint is the owner of an address: a pod or this node.
type Endpoint struct {
	Namespace, Name string // namespace and name of the pod; empty for the node

	class *class // nil for the node
	host  *host
	about *description
	// epoch changes if and only if a verdict about the pod may differ from that of an earlier snapshot. Two
	// pods never have the same one. See mover.identify.
	epoch uint64
}

// class is the compiled form of pods that no policy can tell apart. The fields that a
// decision reads fill one cache line of 64 bytes. The padding makes the struct 128 bytes
// large, so that every class begins at a cache line. Without the padding, Go would allocate
// 112 bytes for each class. Three of four classes would then begin in the middle of a line,
// and a decision about such a class would read two lines instead of one.
type class struct {
	chains    [2]*link // a chain for each filter.Direction; nil if no policy decides
	peers     idSet    // peer selectors that match, except those that match whole namespaces
	namespace uint32
	rejects   bool // denies by rejecting, unless the policy says otherwise
	unknown   unknownLabels
	refs      int
	ports     []namedPort
	key       string
	_         [24]byte
}

// policySet holds the compiled rules of the policies of one tier that select a pod in one
// direction. All pods that the same policies select share it.
type policySet struct {
	alone  link // the last link of a chain; newLink copies it for chains that continue
	key    policySetKey
	id     uint64
	refs   int
	budget *budget
	size   int // number of its rule entries that are merged for this set only

	overlaps []overlap // of its policies; nil for most
}

// policySetKey identifies a set of policies.
type policySetKey struct {
	direction filter.Direction
	tier      Tier
	policies  mark
}

// Number returns the number of the snapshot, which identifies it among the snapshots of its
// store. The number grows by one with each Commit.
func (s *Snapshot) Number() uint64 { return s.number }

// Deleted returns the policies that were deleted after the previous snapshot, by the names that
// verdicts use.
func (s *Snapshot) Deleted() []string { return s.deleted }

// Counts returns the numbers of objects in the snapshot.
func (s *Snapshot) Counts() Counts { return s.counts }

// Endpoint returns the owner of the address. It returns nil if no owner is known, as for an
// address outside the cluster.
func (s *Snapshot) Endpoint(addr netip.Addr) *Endpoint {
	return s.table.get(addr)
}

// Endpoints yields all addresses that have an owner, in no particular order.
func (s *Snapshot) Endpoints() iter.Seq2[netip.Addr, *Endpoint] {
	return func(yield func(netip.Addr, *Endpoint) bool) {
		for a, e := range s.table.all() {
			if !yield(a, e.owner) {
				return
			}
		}
	}
}

// IDs yields all addresses that have an owner, with their IDs, in no particular order.
func (s *Snapshot) IDs() iter.Seq2[netip.Addr, ID] {
	return func(yield func(netip.Addr, ID) bool) {
		for a, e := range s.table.all() {
			if !yield(a, e.id) {
				return
			}
		}
	}
}

// IsNode reports whether the endpoint is this node rather than a pod.
func (e *Endpoint) IsNode() bool { return e != nil && e.class == nil }

// String returns "namespace/name", "node", or "" for an address outside the cluster.
func (e *Endpoint) String() string {
	switch {
	case e == nil:
		return ""
	case e.class == nil:
		return "node"
	}
	return e.Namespace + "/" + e.Name
}

// chain returns the tiers that decide about the endpoint in a direction; nil if there are
// none.
func (e *Endpoint) chain(d filter.Direction) *link {
	if e == nil || e.class == nil {
		return nil
	}
	return e.class.chains[d]
}

// Isolation returns the policies that isolate the endpoint in a direction; nil if no policy
// does.
func (e *Endpoint) Isolation(d filter.Direction) *filter.Isolation { return e.chain(d).findIsolation() }

// Effect returns what a cache may assume about the endpoint's packets in a direction.
func (e *Endpoint) Effect(d filter.Direction) Effect { return e.chain(d).effectOf() }

// EffectToNode returns what a cache may conclude about packets from the endpoint to the node
// that it runs on. Only ordered rules for egress deny these.
func (e *Endpoint) EffectToNode() Effect { return e.chain(filter.Egress).effectToNode() }

// JudgesOwnNode reports whether some policy has a rule that may deny flows from pods to their
// node, whether or not it selects a pod now. Without such a policy, all these flows are
// allowed.
func (s *Snapshot) JudgesOwnNode() bool { return s.toNode }

// NeedsNamespaces reports whether a policy in force may allow a flow by mistake if a namespace counts
// as one without labels because its object is not known.
func (s *Snapshot) NeedsNamespaces() bool { return s.byLabels }

// MayRestrict reports whether a change of an address from one endpoint to another may deny
// flows that were allowed without a rule: because no policy decided (filter.NotIsolated),
// or because the other end was the pod's node (filter.OwnNode). A nil endpoint is an
// address outside the cluster; at most one of the two is nil.
func MayRestrict(before, now *Endpoint) bool {
	if before.IsNode() || now.IsNode() {
		return !now.IsNode()
	}
	if before != nil && now != nil && !before.host.same(now.host) {
		return true
	}
	if before.EffectToNode() == Open && now.EffectToNode() != Open {
		return true
	}
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		if before.Effect(d) == Open && now.Effect(d) != Open {
			return true
		}
	}
	return false
}

// Decide returns the verdict about a flow. It takes no lock and does not allocate.
func (s *Snapshot) Decide(k filter.Key) filter.Verdict {
	src, dst := k.SrcAddr(), k.DstAddr()
	return s.DecideBetween(&k, src, dst, s.Endpoint(src), s.Endpoint(dst))
}

// DecideBetween is like Decide, for a caller that has already looked up both ends.
func (s *Snapshot) DecideBetween(k *filter.Key, srcAddr, dstAddr netip.Addr, src, dst *Endpoint) filter.Verdict {
	switch {
	case k.Src == k.Dst:
		return filter.Verdict{Action: filter.Allow, Reason: filter.SameAddress, Pair: true}
	case src.IsNode(), dst.runsOn(srcAddr, src):
		return filter.Verdict{Action: filter.Allow, Reason: filter.OwnNode, Pair: true}
	case dst.IsNode(), src.runsOn(dstAddr, dst):
		return s.decideOwnNode(k, dstAddr, src, dst)
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
		v.Action, v.Reason, v.Reject = filter.Deny, filter.EgressDenied, src.rejects(&v.Egress)
		// If the source's policies deny only some packets, the destination's policies may deny
		// the remaining ones in another way (drop or reject).
		v.Pair = egress.pair || ingress.pair && !ingress.allows && !s.mayReject
	case !ingress.allows:
		v.Action, v.Reason, v.Reject = filter.Deny, filter.IngressDenied, dst.rejects(&v.Ingress)
		v.Pair = ingress.pair && (egress.pair || !s.mayReject)
	default:
		v.Pair = egress.pair && ingress.pair
		if v.Egress.Rule == nil && v.Ingress.Rule == nil && v.Reason == filter.RuleAllows {
			v.Reason = filter.NotDenied
		}
	}
	if v.Action == filter.Deny && (src.inUnknown() || dst.inUnknown()) {
		return namespaceNotKnown()
	}
	return v
}

// DecideToNode returns the verdict about a flow whose destination is this node, whether or
// not the snapshot lists the address as the node's: it may be a broadcast address, or one
// that was added a moment ago.
func (s *Snapshot) DecideToNode(k *filter.Key) filter.Verdict {
	dst := k.DstAddr()
	src := s.Endpoint(k.SrcAddr())
	switch {
	case k.Src == k.Dst:
		return filter.Verdict{Action: filter.Allow, Reason: filter.SameAddress, Pair: true}
	case src.IsNode():
		return filter.Verdict{Action: filter.Allow, Reason: filter.OwnNode, Pair: true}
	}
	return s.decideOwnNode(k, dst, src, s.Endpoint(dst))
}

// decideOwnNode decides about a flow from a pod to its node. NetworkPolicies always allow it,
// but ordered rules may name the node by its address.
func (s *Snapshot) decideOwnNode(k *filter.Key, dstAddr netip.Addr, src, dst *Endpoint) filter.Verdict {
	v := filter.Verdict{Action: filter.Allow, Reason: filter.OwnNode, Pair: true}
	l := src.chain(filter.Egress)
	switch {
	case l == nil || l.isolation != nil:
		return v
	case src.class.unknown == labelsUnknown:
		return v
	case src.class.unknown == labelsUnknownToNode:
		return namespaceNotKnown()
	}
	d := l.decide(&query{k, dst, dstAddr, dst, s.everyone, true})
	v.Egress.Rule, v.Egress.Passed, v.Pair = d.rule, d.passed, d.pair
	switch {
	case d.action != Accept:
		v.Action, v.Reason = filter.Deny, filter.EgressDenied
		v.Reject = src.rejects(&v.Egress)
	case d.rule != nil:
		v.Reason = filter.RuleAllows
	}
	return v
}

// sideOutcome is the decision of the policies of one end. "allows" is set if they allow the
// flow. "pair" is set if they decide the same for all packets between the two addresses,
// whatever the protocol and the ports.
type sideOutcome struct{ allows, pair bool }

var passes = sideOutcome{true, true}

// decideSide returns the decision of a chain, and stores in side the policies and the rule
// that made the decision. The first branch is for a chain without ordered rules, the usual
// case.
func (s *Snapshot) decideSide(side *filter.Side, l *link, k *filter.Key, peer *Endpoint, addr netip.Addr, dst *Endpoint) (o sideOutcome) {
	if l.isolation != nil {
		side.Isolation = l.isolation
		side.Rule, o.pair = l.rules.find(k, peer, addr, dst, s.everyone)
		o.allows = side.Rule != nil
		return o
	}
	d := l.decide(&query{k, peer, addr, dst, s.everyone, false})
	side.Isolation, side.Rule, side.Passed = d.isolation, d.rule, d.passed
	return sideOutcome{d.action == Accept, d.pair}
}

// runsOn reports whether e is a pod and addr is an address of e's node. "other" is the owner of
// addr, or nil. If addr has an owner, runsOn returns false.
func (e *Endpoint) runsOn(addr netip.Addr, other *Endpoint) bool {
	return e != nil && other == nil && slices.Contains(e.host.list(), addr)
}
