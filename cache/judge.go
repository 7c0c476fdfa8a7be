package cache

import (
	"net/netip"
	"time"

	"sluice/filter"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// Observer is told of every packet that is judged. It is called on the packet's
// way and must not wait.
type Observer interface {
	Judged(p packet.Packet, v filter.Verdict)
}

// Ranges says which addresses should be pods'. It is asked about addresses that
// nobody is known to have, and may be used concurrently.
type Ranges interface {
	// Contains says whether the address is in the pod ranges of this node, and
	// whether in those of any node.
	Contains(addr netip.Addr) (local, cluster bool)
}

// Memory is one more place where verdicts are remembered: kernel.Writer is one. It
// serves one judge.
type Memory interface {
	// Remember is told of a verdict, and the epochs of both ends that it was given
	// with: it holds while they are current. With filter.Any, it holds for all
	// packets of the pair. It is called on the packet's way.
	Remember(k filter.Key, src, dst uint64, action filter.Action)
}

// Admissions is told under which keys connections may live from now on:
// conntrack.Admitted is one. It is called on the packet's way, by several judges at
// once.
type Admissions interface {
	// Admit is told of a key that is allowed, the epochs of its ends and the number
	// of the snapshot, before the verdict takes effect. With filter.Any, all keys of
	// the pair are.
	Admit(k filter.Key, src, dst, snapshot uint64)
}

// Config is how a judge judges.
type Config struct {
	Published *policy.Published
	// Observer may be nil: nobody wants to know.
	Observer Observer
	// Ranges may be nil: no packet is held.
	Ranges Ranges
	// Memory may be nil: verdicts are remembered in the judge's flow cache alone.
	// It is not told of packets of pairs that no policy concerns, of packets that
	// wait, and of what only the fail mode decides.
	Memory Memory
	// Admissions may be nil: nobody wants to know. It is not told of a key again
	// for as long as a cache answers for it, and not of pairs that no policy
	// concerns, unless one end should be a pod that is not known yet.
	Admissions Admissions
	// FailOpen lets a packet pass whose pod, which should be one of this node, did
	// not become known in time.
	FailOpen bool
}

// Judge decides the packets of one queue: it reads a packet's key, looks it up in
// the flow cache, and asks the snapshot in force about what is not there. It
// serves one goroutine; see queue.Judge, which it is.
type Judge struct {
	Config
	reader  *policy.Reader
	decoder *packet.Decoder
	flows   *Flows
	tally   tally

	snapshot *policy.Snapshot // while the answers to some packets are due, the one they are judged by
}

// NewJudge returns a judge with a cache of its own.
func NewJudge(config Config, flows *Flows) *Judge {
	return &Judge{Config: config, reader: config.Published.NewReader(), decoder: packet.NewDecoder(), flows: flows}
}

// Judge decides a packet, which begins with its IP header. What cannot be read is
// denied. With Hold, it waits for the pod that should have the address awaited.
//
// All packets of a burst, until Answered, are judged by the snapshot that was in
// force when it began: that is what lets publishers know when no older verdict is
// still on its way (policy.Published.Settle).
func (j *Judge) Judge(data []byte) (action filter.Action, awaited netip.Addr) {
	var p packet.Packet
	var v filter.Verdict
	if j.tally.due() {
		began := time.Now()
		awaited = j.decide(data, &p, &v)
		j.tally.took(time.Since(began))
	} else {
		awaited = j.decide(data, &p, &v)
	}
	if awaited.IsValid() {
		return filter.Hold, awaited
	}
	j.tell(&p, &v)
	return v.Action, awaited
}

// GiveUp decides a packet whose pod did not become known in time. If that should
// be a pod of this node, the fail mode says what the packet gets. Else the verdict
// stands that an address of nobody gets, which allows no more than any pod would
// be: the fail mode is for want of knowledge, and does not open what policies
// close to everybody.
func (j *Judge) GiveUp(data []byte) filter.Action {
	var p packet.Packet
	var v filter.Verdict
	awaited := j.decide(data, &p, &v)
	if awaited.IsValid() {
		if local, _ := j.Ranges.Contains(awaited); local {
			switch {
			case j.FailOpen:
				if j.Admissions != nil {
					src, dst := j.snapshot.Endpoint(p.Key.SrcAddr()), j.snapshot.Endpoint(p.Key.DstAddr())
					j.Admissions.Admit(p.Key, src.Epoch(), dst.Epoch(), j.snapshot.Number())
					if p.MidStream {
						j.Admissions.Admit(p.Reverse(), dst.Epoch(), src.Epoch(), j.snapshot.Number())
					}
				}
				v = filter.Verdict{Action: filter.Allow, Reason: filter.UnknownPod}
			case v.Action != filter.Deny:
				v = filter.Verdict{Action: filter.Deny, Reason: filter.UnknownPod}
			}
		}
	}
	j.tell(&p, &v)
	return v.Action
}

// tell counts a verdict and reports it.
func (j *Judge) tell(p *packet.Packet, v *filter.Verdict) {
	j.tally.count(v)
	if j.Observer != nil {
		j.Observer.Judged(*p, *v)
	}
}

// decide reads a packet and gives the verdict, and the address that it should
// wait for, if any. Both are written where they are needed: to hand them up from
// call to call cost a tenth of a hit.
func (j *Judge) decide(data []byte, p *packet.Packet, v *filter.Verdict) (awaited netip.Addr) {
	if j.snapshot == nil {
		j.snapshot = j.reader.Begin()
		if j.snapshot == nil {
			j.reader.End()
		}
	}
	var err error
	*p, err = j.decoder.Decode(data)
	switch {
	case err != nil:
		v.Action, v.Reason = filter.Deny, filter.Malformed
		return awaited
	case j.snapshot == nil:
		v.Action, v.Reason = filter.Deny, filter.NoWorld
		return awaited
	}
	var ends Ends
	*v, ends = j.flows.Decide(j.snapshot, &p.Key)
	if p.MidStream && v.Action == filter.Allow {
		return j.decideMidStream(p, v, ends)
	}
	e := j.pending(&p.Key, ends)
	if e != settled && !j.snapshot.Final(&p.Key, v, e.src, e.dst) {
		if awaited = e.awaited(&p.Key, v); awaited.IsValid() {
			return awaited
		}
	}
	j.note(&p.Key, v, ends, e)
	return awaited
}

// decideMidStream completes the verdict about a packet that does not begin a
// connection and is allowed as if it did. Which end has opened the connection is not
// known: after its entry is gone from the connection table, a server's segment looks
// like a client's. So the packet passes only if the opposite direction is allowed
// too; otherwise a connection that was revoked would come back the other way round.
func (j *Judge) decideMidStream(p *packet.Packet, v *filter.Verdict, ends Ends) (awaited netip.Addr) {
	fresh := j.flows.fresh
	reverse := p.Reverse()
	back, _ := j.flows.Decide(j.snapshot, &reverse)
	forth := *v
	if back.Action != filter.Allow {
		*v = back
		v.Reason, v.Pair = filter.MidStream, false
	}
	e := j.pending(&p.Key, ends)
	if e != settled && !j.finalMidStream(p, &forth, &reverse, &back, e) {
		if awaited = e.awaited(&p.Key, v); awaited.IsValid() {
			return awaited
		}
	}
	// Both are noted, whatever comes of the packet: caches may answer for them from
	// now on. The kernel's remembers neither for packets such as this one.
	if back.Action == filter.Allow {
		j.note(&reverse, &back, Ends{ends.Dst, ends.Src}, pendings{e.dst, e.src})
	}
	j.flows.fresh = fresh
	j.note(&p.Key, &forth, ends, e)
	return awaited
}

// finalMidStream reports whether no pod can change the verdict about a packet that
// does not begin a connection and is allowed as if it did.
func (j *Judge) finalMidStream(p *packet.Packet, forth *filter.Verdict, reverse *filter.Key, back *filter.Verdict, e pendings) bool {
	return j.snapshot.Final(reverse, back, e.dst, e.src) &&
		(back.Action != filter.Allow || j.snapshot.Final(&p.Key, forth, e.src, e.dst))
}

// pendings are the ends of a flow that should be pods and are not known to be.
type pendings struct{ src, dst policy.Pending }

// settled is that there are none.
var settled = pendings{policy.Known, policy.Known}

func (j *Judge) pending(k *filter.Key, ends Ends) (e pendings) {
	if j.Ranges == nil {
		return e
	}
	if ends.Src == 0 {
		e.src = j.pendingAt(k.SrcAddr())
	}
	if ends.Dst == 0 {
		e.dst = j.pendingAt(k.DstAddr())
	}
	return e
}

func (j *Judge) pendingAt(addr netip.Addr) policy.Pending {
	switch local, cluster := j.Ranges.Contains(addr); {
	case local:
		return policy.PendingLocal
	case cluster:
		return policy.PendingRemote
	}
	return policy.Known
}

// awaited is the address of the pod that a packet whose verdict is not final must
// wait for, if any.
//
// A pod of this node may be isolated by policies that are for us to enforce. Of a
// pod elsewhere its own node enforces those; here it is only a peer, and only a
// denial is worth the wait.
func (e pendings) awaited(k *filter.Key, v *filter.Verdict) (none netip.Addr) {
	waits := func(end policy.Pending) bool {
		return end == policy.PendingLocal || end == policy.PendingRemote && v.Action == filter.Deny
	}
	switch {
	case waits(e.src):
		return k.SrcAddr()
	case waits(e.dst):
		return k.DstAddr()
	}
	return none
}

// note tells Admissions and Memory of a verdict, as far as they need it. Memory need
// not know of verdicts about pods that are not known: it would not answer with them,
// and a scan of addresses would push out of it what it answers with.
func (j *Judge) note(key *filter.Key, v *filter.Verdict, ends Ends, e pendings) {
	admits := j.Admissions != nil && v.Action == filter.Allow && j.admits(v.Reason, e)
	remembers := j.Memory != nil && v.Reason != filter.NotIsolated && e == settled
	if !admits && !remembers {
		return
	}
	k := *key
	if v.Pair {
		k = k.Pair()
	}
	if admits {
		j.Admissions.Admit(k, ends.Src, ends.Dst, j.snapshot.Number())
	}
	// Before the answer and not after, which costs the packet microseconds: a second
	// connection that follows on the heels of the first finds it.
	if remembers {
		j.Memory.Remember(k, ends.Src, ends.Dst, v.Action)
	}
}

// admits says whether a key that is allowed is to be told of.
func (j *Judge) admits(why filter.Reason, e pendings) bool {
	switch why {
	case filter.SameAddress, filter.OwnNode:
		return false // for as long as the ends are who they are
	case filter.NotIsolated:
		return e != settled
	}
	return j.flows.fresh
}

// Answered says that the kernel has carried out all answers so far.
func (j *Judge) Answered() {
	if j.snapshot != nil {
		j.snapshot = nil
		j.reader.End()
	}
}

// Tally says what the judge has decided, and how fast. It may be asked while the
// judge is at work.
func (j *Judge) Tally() *Tally { return j.tally.read() }

// Stats says how the judge's flow cache has done.
func (j *Judge) Stats() Stats { return j.flows.Stats() }

// Close takes the judge off the list of those that publishers wait for.
func (j *Judge) Close() {
	j.Answered()
	j.reader.Close()
}
