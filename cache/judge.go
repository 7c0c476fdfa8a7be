package cache

import (
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

// Judge decides the packets of one queue: it reads a packet's key, looks it up in
// the flow cache, and asks the snapshot in force about what is not there. It
// serves one goroutine; see queue.Judge, which it is.
type Judge struct {
	reader   *policy.Reader
	decoder  *packet.Decoder
	flows    *Flows
	observer Observer
	tally    tally

	snapshot *policy.Snapshot // while the answers to some packets are due, the one they are judged by
}

// NewJudge returns a judge by the snapshots that are published, with a cache of
// its own. A nil observer means that nobody wants to know.
func NewJudge(published *policy.Published, flows *Flows, observer Observer) *Judge {
	return &Judge{reader: published.NewReader(), decoder: packet.NewDecoder(), flows: flows, observer: observer}
}

// Judge decides a packet, which begins with its IP header. What cannot be read is
// denied.
//
// All packets of a burst, until Answered, are judged by the snapshot that was in
// force when it began: that is what lets publishers know when no older verdict is
// still on its way (policy.Published.Settle).
func (j *Judge) Judge(data []byte) filter.Action {
	if j.snapshot == nil {
		j.snapshot = j.reader.Begin()
		if j.snapshot == nil {
			j.reader.End()
		}
	}
	var p packet.Packet
	var v filter.Verdict
	if j.tally.due() {
		began := time.Now()
		p, v = j.decide(data)
		j.tally.took(time.Since(began))
	} else {
		p, v = j.decide(data)
	}
	j.tally.count(&v)
	if j.observer != nil {
		j.observer.Judged(p, v)
	}
	return v.Action
}

// decide is from the packet's bytes to its verdict.
func (j *Judge) decide(data []byte) (p packet.Packet, v filter.Verdict) {
	p, err := j.decoder.Decode(data)
	switch {
	case err != nil:
		return p, filter.Verdict{Action: filter.Deny, Reason: filter.Malformed}
	case j.snapshot == nil:
		return p, filter.Verdict{Action: filter.Deny, Reason: filter.NoWorld}
	}
	return p, j.flows.Decide(j.snapshot, &p.Key)
}

// Answered says that the kernel has carried out all answers so far.
func (j *Judge) Answered() {
	if j.snapshot != nil {
		j.snapshot = nil
		j.reader.End()
	}
}

// Stats says how the judge's flow cache has done.
func (j *Judge) Stats() Stats { return j.flows.Stats() }

// Tally says what the judge has decided, and how fast. It may be asked while the
// judge is at work.
func (j *Judge) Tally() *Tally { return j.tally.read() }

// Close takes the judge off the list of those that publishers wait for.
func (j *Judge) Close() {
	j.Answered()
	j.reader.Close()
}
