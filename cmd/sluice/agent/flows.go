package agent

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/event"
	"sluice/filter/flow"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// missInterval is the time between two reads of the number of events that the kernel could not report.
const missInterval = time.Second

// kernelRate bounds the denials of one source that the kernel reports within a second. The kernel leaves
// out further ones, so that the records of one pod that retries without pause do not displace all others.
// The help of "sluice observe" names this number.
const kernelRate = 1000

// flows records the flows of the node. While something watches, it also follows the events of the
// kernel: connections that begin and end, and packets that the kernel's flow cache denies.
type flows struct {
	*agent
	log     *flow.Log
	denials flow.Denials
	// fromTable is set while connections are recorded from the connection table. Meanwhile Observe records
	// no packets that a worker allows, because each connection would get a second record.
	fromTable atomic.Bool

	table, denying following
	tenure         tenure

	kernelDenied *engine.Counter
	counting     sync.Mutex
	counted      map[filter.Key]uint64 // the kernel's count of packets of each flow, at the last countKernel
	countedAt    time.Time             // time of the last countKernel
	attributed   uint64                // the sum of the packets in kernelDenied
	forgotten    uint64                // denied packets without a verdict: see kernelDenials
}

func newFlows(a *agent, size int) *flows {
	f := &flows{agent: a, kernelDenied: engine.NewCounter(&a.series), countedAt: time.Now()}
	f.log = flow.NewLog(size, f.follow)
	return f
}

// Marked implements conntrack.Observer. It records the open connections that are denied now, because
// policies have changed. A connection that has ended for its ends denies them nothing.
func (f *flows) Marked(c *conntrack.Marked) {
	if c.Verdict.Action == filter.Allow || c.Closed || c.WasRevoked {
		return
	}
	e := flow.Entry{Kind: flow.Denied, Revoked: true, Time: time.Now(), Key: c.Key, SrcPort: c.SrcPort, Verdict: c.Verdict}
	f.setOwners(&e, f.published.Snapshot())
	f.denials.Add(&e)
	f.log.Add(&e)
}

// Observe implements engine.Observer.
func (f *flows) Observe(p packet.Packet, v filter.Verdict) {
	denied := v.Action != filter.Allow
	if !denied && (!f.log.Watched().Connections || f.fromTable.Load()) {
		return
	}
	e := flow.Entry{Kind: flow.Opened, Time: time.Now(), Key: p.Key, SrcPort: p.SrcPort, Verdict: v}
	f.setOwners(&e, f.published.Snapshot())
	if denied {
		e.Kind = flow.Denied
		f.denials.Add(&e)
	}
	f.log.Add(&e)
}

func (f *flows) setOwners(e *flow.Entry, s *policy.Snapshot) {
	if s != nil {
		e.Src, e.Dst = s.Endpoint(e.Key.SrcAddr()), s.Endpoint(e.Key.DstAddr())
	}
}

// follow starts or stops following the kernel's events. w is what is watched.
func (f *flows) follow(w flow.Watched) {
	f.table.set(w.Connections, f.followTable)
	f.denying.set(w.Denials && f.kernel != nil, f.followKernel)
}

// close stops following the kernel's events.
func (f *flows) close() { f.follow(flow.Watched{}) }

// following is a goroutine that set starts and stops.
type following struct {
	mu     sync.Mutex
	cancel context.CancelFunc // nil while the goroutine does not run
	ended  chan struct{}
}

// set starts run in a goroutine if on is true, and waits until run has called begun or has returned. If
// on is false, it ends run, and waits until run has returned.
func (f *following) set(on bool, run func(ctx context.Context, begun func())) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case on == (f.cancel != nil):
		return
	case !on:
		f.cancel()
		<-f.ended
		f.cancel = nil
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	begun, ended := make(chan struct{}), make(chan struct{})
	f.cancel, f.ended = cancel, ended
	go func() {
		defer close(ended)
		run(ctx, sync.OnceFunc(func() { close(begun) }))
	}()
	select {
	case <-begun:
	case <-ended: // run has failed, and has logged the error
	}
}

// followTable records the connections that begin and end, until ctx ends.
func (f *flows) followTable(ctx context.Context, begun func()) {
	events, err := f.connections()
	if err != nil {
		f.agent.log.Warn("connections that the kernel allows by itself are not shown", event.FlowsIncomplete.Attr(), "err", err)
		return
	}
	defer events.Close()
	f.fromTable.Store(true)
	defer f.fromTable.Store(false)
	begun()
	var counting sync.WaitGroup
	defer counting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	counting.Go(func() { f.miss(ctx, "connections", events.Lost) })
	if err := events.Read(ctx, f.connection); err != nil {
		f.agent.log.Warn("connections that the kernel allows by itself are no longer shown", event.FlowsIncomplete.Attr(), "err", err)
	}
}

// followKernel records what the kernel's flow cache denies, until ctx ends.
func (f *flows) followKernel(ctx context.Context, begun func()) {
	var counting sync.WaitGroup
	defer counting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	counting.Go(func() {
		f.miss(ctx, "denied packets", func() (uint64, error) {
			out, err := f.kernel.LeftOut()
			return out.BeyondRate + out.NoRoom, err
		})
	})
	if err := f.kernel.Watch(ctx, kernelRate, begun, f.denied); err != nil {
		f.agent.log.Warn("packets that the kernel denies by itself are not shown", event.FlowsIncomplete.Attr(), "err", err)
	}
}

// miss calls count at intervals. count returns how many events the kernel could not report so far.
// Whenever this number has grown, miss adds the difference to the missing records of the log. what names
// the events in a log line.
func (f *flows) miss(ctx context.Context, what string, count func() (uint64, error)) {
	last, err := count()
	tick := time.NewTicker(missInterval)
	defer tick.Stop()
	for err == nil {
		ended := false
		select {
		case <-ctx.Done():
			ended = true
		case <-tick.C:
		}
		var now uint64
		if now, err = count(); err == nil && now != last {
			f.log.Miss(now-last, time.Now())
			last = now
		}
		if ended {
			return
		}
	}
	f.agent.log.Warn("cannot count what is missing among the flows", "what", what, "err", err)
}

// connection records that a connection has begun or has ended, if its source or its destination is a pod
// or may be one.
func (f *flows) connection(c *conntrack.Event) {
	s := f.published.Snapshot()
	if s == nil || c.Malformed {
		return
	}
	e := flow.Entry{Kind: flow.Opened, Time: time.Now(), Key: c.Key, SrcPort: c.SrcPort, To: c.To}
	f.setOwners(&e, s)
	if !isPod(s, e.Src, c.Key.SrcAddr()) && !isPod(s, e.Dst, c.Key.DstAddr()) {
		return
	}
	if c.Ended {
		e.Kind = flow.Ended
	}
	if f.log.Skip(e.Kind, e.Time) {
		return // beyond the rate, a connection costs no decision
	}
	if c.Ended {
		e.Counted = c.Counted
		e.Sent, e.Received = flow.Traffic(c.Sent), flow.Traffic(c.Received)
		if !c.Began.IsZero() && !c.Last.IsZero() {
			e.Duration = max(e.Time.Sub(c.Began), 0)
			e.Idle = min(max(e.Time.Sub(c.Last), 0), e.Duration)
		}
	} else if v := s.DecideBetween(&e.Key, c.Key.SrcAddr(), c.Key.DstAddr(), e.Src, e.Dst); v.Action == filter.Allow {
		e.Verdict = v
	} else {
		// The packet has passed, but the policies in force deny it: they have changed in between, or the
		// fail mode has allowed it. So their verdict does not explain why it passed.
		e.Verdict.Action = filter.Allow
	}
	f.log.Add(&e)
}

// isPod reports whether an address belongs to a known pod, or probably belongs to a pod that the API
// server has not reported yet.
func isPod(s *policy.Snapshot, e *policy.Endpoint, addr netip.Addr) bool {
	if e == nil {
		return s.Pending(addr) != policy.Known
	}
	return !e.IsNode()
}

// denied records a packet that the kernel's flow cache has denied.
func (f *flows) denied(k *bpf.Event) {
	if f.log.Skip(flow.Denied, k.Time) {
		return
	}
	e := flow.Entry{Kind: flow.Denied, Kernel: true, Time: k.Time, Key: k.Key, SrcPort: k.SrcPort}
	f.decideDenied(&e, k.Rejected)
	f.log.Add(&e)
}

// decideDenied sets the owners of the addresses and the verdict of a packet that the kernel has denied.
// If the policies in force would allow the packet, the verdict has no reason.
func (f *flows) decideDenied(e *flow.Entry, rejected bool) {
	s := f.published.Snapshot()
	if s == nil {
		return
	}
	f.setOwners(e, s)
	if v := s.DecideBetween(&e.Key, e.Key.SrcAddr(), e.Key.DstAddr(), e.Src, e.Dst); v.Action != filter.Allow {
		e.Verdict = v
	}
	e.Verdict.Reject = rejected
}

// countInterval is the time between two counts of the packets that the kernel has denied. The kernel
// keeps some 4,000 denied flows. If it denies more flows between two counts, the packets of those that it
// no longer keeps are counted without a policy.
const countInterval = 10 * time.Second

// countDenials counts the packets that the kernel denies, at intervals, until ctx ends.
func (f *flows) countDenials(ctx context.Context) {
	if f.kernel == nil {
		return
	}
	tick := time.NewTicker(countInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f.countKernel()
		}
	}
}

// countKernel counts, by policy, the packets that the kernel has denied since the last call.
func (f *flows) countKernel() {
	if f.kernel == nil {
		return
	}
	f.counting.Lock()
	defer f.counting.Unlock()
	stats, err := f.kernel.Stats() // before Denials: so packets denied in between do not count as forgotten
	var known []bpf.Denial
	if err == nil {
		known, err = f.kernel.Denials()
	}
	if err != nil {
		f.agent.log.Debug("cannot count what the kernel has denied", "err", err)
		return
	}
	now := make(map[filter.Key]uint64, len(known))
	for _, k := range known {
		packets := k.Packets
		if before := f.counted[k.Key]; before <= packets {
			packets -= before // if before is larger, the kernel has forgotten the flow and counts from 0 again
		}
		now[k.Key] = k.Packets
		if packets > 0 {
			f.countFlow(&k, packets)
		}
	}
	f.counted, f.countedAt = now, time.Now()
	if all := stats.Denied + stats.Rejected; all > f.attributed {
		f.forgotten = max(f.forgotten, all-f.attributed)
	}
}

// countFlow counts packets of a flow that the kernel has denied. It assumes that the policies that are in
// force now have denied them. The denial keeps these policies when policies change later. If the policies
// in force would allow the packets, no policy can be named, and the packets count as forgotten.
func (f *flows) countFlow(k *bpf.Denial, packets uint64) {
	first, last := k.First, k.Last
	if _, known := f.counted[k.Key]; known || first.IsZero() {
		first = f.countedAt // earlier packets are already counted
	}
	if last.IsZero() { // the programs cannot read the clock
		last = time.Now()
	}
	e := flow.Entry{Kind: flow.Denied, Kernel: true, Time: last, Key: k.Key, SrcPort: k.SrcPort}
	f.decideDenied(&e, k.Rejected)
	f.denials.AddMany(&e, packets, first)
	if e.Verdict.Reason != filter.NoReason {
		f.kernelDenied.Count(&e.Verdict, packets)
		f.attributed += packets
	}
}

// kernelDenials returns the verdicts on the packets that the kernel has denied. forgotten is the number of
// the denied packets to which no verdict can be attributed: the kernel has forgotten their flow, or the
// policies in force would allow them. No count ever becomes smaller.
func (f *flows) kernelDenials() (known engine.Tally, forgotten uint64) {
	f.countKernel()
	f.counting.Lock()
	defer f.counting.Unlock()
	return *f.kernelDenied.Tally(), f.forgotten
}

// lastDenials returns the last distinct denials, including those of the kernel's flow cache.
func (f *flows) lastDenials() []flow.Denial {
	f.countKernel()
	return f.denials.All()
}
