// Package engine turns the bytes of a packet into a verdict: it decodes the key, looks it
// up in the flow cache, and, on a miss, gets a decision from the snapshot in force.
package engine

import (
	"net/netip"
	"time"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// Observer is called for every packet that gets a verdict, before the verdict takes effect.
// It must not block.
type Observer interface {
	Observe(p packet.Packet, v filter.Verdict)
}

// Memory is an additional cache of verdicts, such as bpf.Writer. It serves one evaluator.
type Memory interface {
	// Remember stores a verdict about k, which holds for all addresses with the same IDs. If
	// k.Transport is filter.Any, the verdict holds for all packets between them. The packet is not
	// released before Remember returns. The action filter.Reject is a denial too.
	Remember(k policy.IDKey, action filter.Action)
}

// FlowTracker records the keys of connections that may exist from now on, as
// conntrack.TrackedFlows does. Several evaluators call it concurrently. The packet is not
// released before Track returns.
type FlowTracker interface {
	// Track records that the snapshot allows k. The evaluator calls it before the verdict takes
	// effect. If k.Transport is filter.Any, the snapshot allows all packets between the two addresses.
	Track(s *policy.Snapshot, k filter.Key)
}

// Config configures an evaluator.
type Config struct {
	Published *policy.Published
	// Observer may be nil.
	Observer Observer
	// Memory may be nil. It gets no verdicts with the reason NotIsolated, none about packets from or
	// to a pending address, and none that depend on more than the IDs of the addresses.
	Memory Memory
	// Tracker may be nil. It gets the key of each flow that the snapshot allows, unless the
	// verdict comes from a cache, and the keys of all packets from or to pending addresses that are
	// allowed. Three reasons of a verdict are exceptions:
	//
	//   - SameAddress: Tracker gets no key.
	//   - OwnNode: it gets the key only if policies may deny what the source sends to its node.
	//   - NotIsolated: it gets only the keys of packets from or to pending addresses.
	Tracker FlowTracker
	// Translated may be nil. Several evaluators call it concurrently. k is the key of a packet
	// to this node. translated reports whether the kernel will change the packet's destination
	// after the hook INPUT, as IPVS does. Such a packet is judged when it has the new
	// destination. possible reports whether there is any destination that the kernel changes;
	// in this case, Memory gets no verdicts about packets to this node.
	Translated func(k filter.Key) (translated, possible bool)
	// Rejects reports whether the iptables rules can reject packets. If it returns false or is
	// nil, packets to be rejected are dropped. Several evaluators call it concurrently.
	Rejects func() bool
	// Strangers remembers addresses in other nodes' pod ranges that belong to no pod, so that only
	// their first packets wait. It may be nil.
	Strangers *Strangers
	// Series is shared by the evaluators of an agent. If it is nil, the evaluator has its own.
	Series *Series
	// FailOpen allows a packet from or to an address that is expected to belong to a pod of this
	// node (policy.PendingLocal), if the pod does not become known in time.
	FailOpen bool
}

// Evaluator decides the packets of one queue. It serves one goroutine, and
// implements queue.Evaluator.
type Evaluator struct {
	config  Config
	reader  *policy.Reader
	decoder *packet.Decoder
	flows   *cache.Flows
	tally   tally

	snapshot *policy.Snapshot // the snapshot of the read section; nil outside of one
}

// New returns an evaluator that remembers verdicts in flows.
func New(config Config, flows *cache.Flows) *Evaluator {
	e := &Evaluator{config: config, reader: config.Published.NewReader(), decoder: packet.NewDecoder(), flows: flows}
	e.tally.denials.series = config.Series
	return e
}

// Evaluate decides the packet that begins with the IP header at data[0] and was queued at the
// hook. A packet that cannot be decoded is denied. With filter.Hold, the packet must be held
// until the pod with the address pending is known. Evaluate is called between Enter and Exit.
func (e *Evaluator) Evaluate(data []byte, at filter.Hook) (action filter.Action, pending netip.Addr) {
	var p packet.Packet
	var v filter.Verdict
	if e.tally.due() {
		began := time.Now()
		pending = e.decide(data, at, &p, &v)
		e.tally.took(time.Since(began))
	} else {
		pending = e.decide(data, at, &p, &v)
	}
	if pending.IsValid() {
		return filter.Hold, pending
	}
	if v.Action == filter.Skip {
		return filter.Skip, pending
	}
	return e.report(&p, &v, at), pending
}

// Expire decides a packet that cannot wait for its pod any longer. The fail mode decides in two
// cases: the pending address is expected to belong to a pod of this node, or only the Namespace of
// the pod is not known. The fail mode allows nothing that policies deny to every peer.
//
// In other cases the packet gets the verdict for an unknown address, because the ranges of other
// nodes contain addresses that no pod ever has, such as those of an overlay network. If a pod gets
// the address later, live connections are judged again. But if that verdict is to allow, and there
// was no room for the packet to wait, the fail mode decides: otherwise, a sender could fill the
// room so that its packets need not wait. Expire is called between Enter and Exit.
func (e *Evaluator) Expire(data []byte, at filter.Hook, waited bool) filter.Action {
	var p packet.Packet
	var v filter.Verdict
	pending := e.decide(data, at, &p, &v)
	switch {
	case !pending.IsValid():
	case v.Reason == filter.NamespaceNotKnown, e.snapshot.Pending(pending) == policy.PendingLocal, v.Action == filter.Allow && !waited:
		e.failMode(&p, &v)
	case v.Action == filter.Allow:
		e.config.Strangers.add(pending)
		e.trackUnknown(&p)
	}
	return e.report(&p, &v, at)
}

// failMode decides a packet by the fail mode, because a pod did not become known in time.
func (e *Evaluator) failMode(p *packet.Packet, v *filter.Verdict) {
	switch {
	case e.config.FailOpen:
		e.trackUnknown(p)
		*v = filter.Verdict{Action: filter.Allow, Reason: filter.PodNotKnown}
	case v.Action != filter.Deny:
		*v = filter.Verdict{Action: filter.Deny, Reason: filter.PodNotKnown}
	}
}

// trackUnknown passes the key of a packet to Tracker. The packet is allowed although a pod did not
// become known.
func (e *Evaluator) trackUnknown(p *packet.Packet) {
	if e.config.Tracker == nil {
		return
	}
	e.config.Tracker.Track(e.snapshot, p.Key)
	if p.MidStream {
		e.config.Tracker.Track(e.snapshot, p.Reverse())
	}
}

// report counts a verdict, passes it to the observer and returns its action. A packet that
// cannot be rejected is dropped.
func (e *Evaluator) report(p *packet.Packet, v *filter.Verdict, at filter.Hook) filter.Action {
	if v.Reject && (at == filter.AtPostrouting || e.config.Rejects == nil || !e.config.Rejects()) {
		v.Reject = false
	}
	e.tally.count(v, 1)
	if e.config.Observer != nil {
		e.config.Observer.Observe(*p, *v)
	}
	return v.Answer()
}

// decide decodes a packet and decides it. If the packet should be held, decide returns the
// address whose pod it waits for. p and v are out-parameters: returning them by value cost
// 10% of a cache hit.
func (e *Evaluator) decide(data []byte, at filter.Hook, p *packet.Packet, v *filter.Verdict) (pending netip.Addr) {
	var err error
	*p, err = e.decoder.Decode(data)
	switch {
	case err != nil:
		v.Action, v.Reason = filter.Deny, filter.Malformed
		return pending
	case e.snapshot == nil:
		v.Action, v.Reason = filter.Deny, filter.NotSynced
		return pending
	case at == filter.AtInput:
		return e.decideToNode(p, v)
	}
	var ends cache.Ends
	var fresh bool
	*v, ends, fresh = e.flows.Decide(e.snapshot, &p.Key)
	if e.denyHidden(&p.Key, v, false) {
		return pending
	}
	if p.MidStream && v.Action == filter.Allow && v.Reason != filter.OwnNode { // what the node sends passes
		return e.decideMidStream(p, v, ends, fresh)
	}
	if v.Reason == filter.NamespaceNotKnown {
		return e.snapshot.UnknownNamespace(&p.Key)
	}
	unknown := unknownOf(ends)
	if unknown != noneUnknown && !e.snapshot.Final(&p.Key, v, unknown.src, unknown.dst) {
		if pending = unknown.pending(&p.Key, v); pending.IsValid() && !e.isStranger(p, v, pending) {
			return pending
		}
	}
	e.record(&p.Key, v, ends, unknown, fresh)
	return netip.Addr{}
}

// isStranger reports whether an allowed packet of a pending address need not wait for a pod (see
// Strangers). If so, it passes the packet's key to Tracker.
func (e *Evaluator) isStranger(p *packet.Packet, v *filter.Verdict, pending netip.Addr) bool {
	if v.Action != filter.Allow || e.snapshot.Pending(pending) != policy.PendingRemote || !e.config.Strangers.has(pending) {
		return false
	}
	e.trackUnknown(p)
	return true
}

// decideMidStream completes the verdict about a packet that does not begin a connection, but
// would be allowed if it did. It is not known which end has opened the connection: once the
// connection table has lost the entry, a server's segment looks like a client's. So the
// packet passes only if the opposite direction is allowed too. Otherwise a connection that
// was revoked could continue in the opposite direction.
func (e *Evaluator) decideMidStream(p *packet.Packet, v *filter.Verdict, ends cache.Ends, fresh bool) (pending netip.Addr) {
	reverse := p.Reverse()
	back, _, backFresh := e.flows.Decide(e.snapshot, &reverse)
	if e.denyHidden(&reverse, &back, false) {
		*v = back
		return pending
	}
	forth := *v
	if back.Action != filter.Allow {
		*v = back
		v.Reason, v.Pair = filter.MidStream, false
	}
	unknown := unknownOf(ends)
	if unknown != noneUnknown && !e.finalMidStream(p, &forth, &reverse, &back, unknown) {
		if pending = unknown.pending(&p.Key, v); pending.IsValid() && !e.isStranger(p, v, pending) {
			return pending
		}
	}
	// Record the verdicts of both directions, even if this packet is denied: the flow cache now
	// has both, and Tracker does not get the key of a packet that the flow cache allows. The
	// kernel's cache may have both too: it allows no mid-stream packet if policies isolate an
	// end in the opposite direction.
	if back.Action == filter.Allow {
		e.record(&reverse, &back, ends.Reverse(), unknownEnds{unknown.dst, unknown.src}, backFresh)
	}
	e.record(&p.Key, &forth, ends, unknown, fresh)
	return netip.Addr{}
}

// finalMidStream reports whether the verdict about a mid-stream packet is final (see
// Snapshot.Final). The verdict "forth", for the packet's own direction, allows it; the verdict
// "back" is the one for the opposite direction. The packet passes only if both allow. So its
// verdict is final if "back" is a final denial, or if both are final.
func (e *Evaluator) finalMidStream(p *packet.Packet, forth *filter.Verdict, reverse *filter.Key, back *filter.Verdict, unknown unknownEnds) bool {
	return e.snapshot.Final(reverse, back, unknown.dst, unknown.src) &&
		(back.Action != filter.Allow || e.snapshot.Final(&p.Key, forth, unknown.src, unknown.dst))
}

// unknownEnds states, for each end of a flow, whether its address is pending.
type unknownEnds struct{ src, dst policy.Pending }

var noneUnknown = unknownEnds{policy.Known, policy.Known}

func unknownOf(ends cache.Ends) unknownEnds { return unknownEnds{ends.SrcPending, ends.DstPending} }

// pending is called for a packet whose verdict v is not final (see Snapshot.Final). It returns
// the address of the unknown pod for which the packet must be held, or an invalid address if
// the packet need not be held.
//
// If the unknown pod is on this node, the packet is always held: this node enforces the
// policies that may select the pod. If it is on another node, that node enforces them, and the
// pod is only a peer here. A packet that is denied now is held, because a rule may allow the pod
// by its labels. A packet that is allowed now is held too, because an ordered rule may deny the pod
// by its labels. This is impossible if the reason of the verdict is OwnNode.
func (u unknownEnds) pending(k *filter.Key, v *filter.Verdict) (none netip.Addr) {
	waits := func(end policy.Pending) bool {
		return end == policy.PendingLocal || end == policy.PendingRemote && v.Action == filter.Deny
	}
	switch {
	case waits(u.src):
		return k.SrcAddr()
	case waits(u.dst):
		return k.DstAddr()
	case v.Reason == filter.OwnNode:
		return none
	case u.src == policy.PendingRemote:
		return k.SrcAddr()
	case u.dst == policy.PendingRemote:
		return k.DstAddr()
	}
	return none
}

// record passes a verdict to Tracker and Memory if they need it. Memory does not get verdicts
// about pending addresses: it could never use them, and during a scan of addresses they would
// evict useful verdicts.
func (e *Evaluator) record(key *filter.Key, v *filter.Verdict, ends cache.Ends, unknown unknownEnds, fresh bool) {
	track := e.config.Tracker != nil && v.Action == filter.Allow && tracked(v.Reason, unknown, fresh)
	remember := e.config.Memory != nil && v.Reason != filter.NotIsolated && unknown == noneUnknown && ends.ByIDs
	if !track && !remember {
		return
	}
	k := *key
	if v.Pair {
		k = k.Pair()
	}
	if track {
		e.config.Tracker.Track(e.snapshot, k)
	}
	// Call Remember before the packet is answered. This delays the packet by microseconds, but
	// even a second connection that follows at once hits the cache.
	if remember {
		e.config.Memory.Remember(policy.NewIDKey(&k, ends.SrcID, ends.DstID), v.Answer())
	}
}

// tracked reports whether Tracker needs the key of an allowed packet. "why" is the reason of
// the verdict. "fresh" is set if the verdict is not from the flow cache.
func tracked(why filter.Reason, unknown unknownEnds, fresh bool) bool {
	switch why {
	case filter.SameAddress, filter.OwnNode:
		return false // such a verdict depends only on the addresses of the ends, and not on policies
	case filter.NotIsolated:
		return unknown != noneUnknown
	}
	return fresh
}

// Enter begins a read section: all packets until Exit are decided by the snapshot that is
// in force now. policy.Published.Synchronize waits for such sections, so that no older
// verdict can still take effect when it returns. Before the first publication there is no
// older verdict to wait for, and so no read section.
func (e *Evaluator) Enter() {
	if e.snapshot = e.reader.Enter(); e.snapshot == nil {
		e.reader.Exit()
	}
}

// Exit ends the read section. It is called when the kernel has applied all verdicts of the
// section. Outside of a read section, Exit does nothing.
func (e *Evaluator) Exit() {
	if e.snapshot != nil {
		e.snapshot = nil
		e.reader.Exit()
	}
}

// Tally returns the counts of the verdicts and the latency of the decisions. It may be
// called concurrently.
func (e *Evaluator) Tally() *Tally { return e.tally.read() }

// Forget removes the named policies from the denials in Tally. It may be called concurrently.
func (e *Evaluator) Forget(policies []string) { e.tally.denials.forget(policies) }

// Stats returns the statistics of the evaluator's flow cache.
func (e *Evaluator) Stats() cache.Stats { return e.flows.Stats() }

// Close removes the evaluator from the readers that Synchronize waits for.
func (e *Evaluator) Close() {
	e.Exit()
	e.reader.Close()
}
