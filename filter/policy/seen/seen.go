// Package seen counts flows that agents have seen. It counts them by the two parties of a cluster between
// which they were: the rows and columns of a matrix.
//
// A [Tally] finds the two ends of each flow in the cluster and adds the flow to a count, so that its
// memory does not grow with the number of flows. Flows whose ends it cannot find are counted, too, by
// reason, with examples.
package seen

import (
	"cmp"
	"slices"
	"time"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy"
	"sluice/filter/policy/reach"
)

// maxCounts bounds the number of counts. They take at most some 40 MB. A scan of all ports between all
// ends would need more. Flows that would need further counts are in LeftOut.
const maxCounts = 250_000

// Unit is what flows are counted by: a party of package reach, or one of its pods.
type Unit struct {
	*reach.Party
	Pod *policy.Pod // nil for the whole party
}

// At is from where to where flows went, and at which port.
type At struct {
	From, To Unit
	Protocol filter.Protocol // TCP, UDP, SCTP, or ICMP for ICMP and ICMPv6
	Port     uint16          // 0 for ICMP
	OwnNode  bool            // one end is the node that the other runs on
}

// Count counts the flows of one At by the verdicts that they got when they were seen.
type Count struct {
	Allowed, Denied uint64
	// First and Last are the times of the first and the last flow. LastAllowed and LastDenied are the
	// times of the last flow that was allowed and of the last that was denied. A time that is not known is
	// zero.
	First, Last, LastAllowed, LastDenied time.Time
}

// Add adds another count.
func (c *Count) Add(o Count) {
	c.Allowed += o.Allowed
	c.Denied += o.Denied
	c.First, c.Last = earlier(c.First, o.First), later(c.Last, o.Last)
	c.LastAllowed, c.LastDenied = later(c.LastAllowed, o.LastAllowed), later(c.LastDenied, o.LastDenied)
}

// earlier returns the earlier of two times. A zero time is not known, and is returned only if both are
// zero.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// key is an At in a shorter form.
type key struct {
	from, to int32 // indexes in placer.units
	port     uint16
	proto    filter.Protocol
	own      bool
}

// count is a Count while flows are added. A connection may be counted twice: in opened when it begins, and
// in ended when it ends.
type count struct {
	opened, ended, denied                uint64
	first, last, lastAllowed, lastDenied int64 // nanoseconds of Unix time; 0 is not known
}

// Gaps are periods in which a node recorded nothing or no connections. Either nothing watched the node's
// agent, or the node had no agent.
type Gaps struct {
	Periods int     `json:"periods"`
	Longest float64 `json:"longestSeconds"`
}

// Tally counts flows. It must not be used concurrently.
type Tally struct {
	// Files is the number of files that were read. It is for output only.
	Files int

	placer  *placer
	counts  map[key]*count
	left    left
	missing uint64 // flows that the files report as missing
	gaps    Gaps
	span    count // only first and last
	max     int   // maxCounts, except in tests
}

// New returns a tally for the parties of a map or, if byPod is true, for its pods.
func New(m *reach.Map, byPod bool) *Tally {
	return &Tally{placer: newPlacer(m, byPod), counts: make(map[key]*count), left: make(left), max: maxCounts}
}

// Skip counts n lines that are not flows. example is what the output names; it may be empty.
func (t *Tally) Skip(why flow.Skip, example string, n uint64) { t.left.add(why, example, n) }

// Add counts a flow. If the record counts several packets, first is the time of the first one. Otherwise
// first is zero.
func (t *Tally) Add(r *flow.Record, first time.Time) {
	n := max(r.Count, 1)
	switch r.Event {
	case flow.LeftOut.String():
		t.missing += r.Count
		return
	case flow.Unrecorded.String():
		t.gaps.Periods, t.gaps.Longest = t.gaps.Periods+1, max(t.gaps.Longest, r.Seconds)
		return
	}
	if first.IsZero() {
		first = r.Time.Add(-time.Duration((r.Seconds + r.Idle) * float64(time.Second)))
	}
	t.span.saw(first, r.Time)
	k, why, example := t.placer.place(r)
	if why != "" {
		if r.Event == flow.Ended.String() {
			t.left.get(why).ended += n
		} else {
			t.left.add(why, example, n)
		}
		return
	}
	c := t.counts[k]
	if c == nil {
		if len(t.counts) >= t.max {
			t.left.add(LeftTooMany, "", n)
			return
		}
		c = new(count)
		t.counts[k] = c
	}
	c.saw(first, r.Time)
	at := unix(r.Time)
	switch r.Event {
	case flow.Denied.String():
		c.denied += n
		c.lastDenied = max(c.lastDenied, at)
	case flow.Ended.String():
		c.ended += n
		c.lastAllowed = max(c.lastAllowed, unix(first)) // when it was allowed
	default:
		c.opened += n
		c.lastAllowed = max(c.lastAllowed, at)
	}
}

// saw extends the span of time.
func (c *count) saw(first, last time.Time) {
	if at := unix(first); at != 0 && (c.first == 0 || at < c.first) {
		c.first = at
	}
	c.last = max(c.last, unix(last))
}

func unix(t time.Time) int64 {
	if t.IsZero() || t.Unix() < 0 {
		return 0
	}
	return t.UnixNano()
}

func timeOf(nanos int64) time.Time {
	if nanos == 0 {
		return time.Time{}
	}
	return time.Unix(0, nanos).UTC()
}

// exported returns the count. A connection whose begin is not in the files is counted by the record of its
// end.
func (c *count) exported() Count {
	return Count{
		Allowed: max(c.opened, c.ended), Denied: c.denied,
		First: timeOf(c.first), Last: timeOf(c.last), LastAllowed: timeOf(c.lastAllowed), LastDenied: timeOf(c.lastDenied),
	}
}

// Each calls f for every count, in the order of the parties, protocols and ports.
func (t *Tally) Each(f func(At, Count)) {
	keys := make([]key, 0, len(t.counts))
	for k := range t.counts {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b key) int {
		return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to), cmp.Compare(a.proto, b.proto), cmp.Compare(a.port, b.port), compareBools(a.own, b.own))
	})
	for _, k := range keys {
		f(At{t.placer.units[k.from], t.placer.units[k.to], k.proto, k.port, k.own}, t.counts[k].exported())
	}
}

func compareBools(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// Flows returns the number of flows that were read. These are the flows that Each reports, and the flows
// with ends that were not found.
func (t *Tally) Flows() uint64 {
	n := uint64(0)
	for _, c := range t.counts {
		n += max(c.opened, c.ended) + c.denied
	}
	for why, l := range t.left {
		if isFlow(why) {
			n += l.count()
		}
	}
	return n
}

// Missing returns the number of flows that the files report as missing.
func (t *Tally) Missing() uint64 { return t.missing }

// Gaps returns the periods in which, as the files report, nothing or no connections were recorded.
func (t *Tally) Gaps() Gaps { return t.gaps }

// Span returns the times of the first and of the last flow; zero if no flow has a time.
func (t *Tally) Span() (first, last time.Time) { return timeOf(t.span.first), timeOf(t.span.last) }
