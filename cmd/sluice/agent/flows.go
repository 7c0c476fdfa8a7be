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

// missInterval is the time between two looks at what the kernel could not report.
const missInterval = time.Second

// kernelRate bounds the denials that the kernel reports of one source, within a second. Beyond it
// they are left out, so that one pod that hammers a closed port does not use the records of all
// others.
const kernelRate = 1000

// flows records what happens on the node. While something watches, it follows the events of the
// kernel too: connections that begin and end, and packets that the kernel's flow cache denies.
type flows struct {
	*agent
	log     *flow.Log
	denials flow.Denials
	// fromTable is set while the connection table reports allowed connections, so that a worker's
	// verdict about their first packet makes no second record.
	fromTable atomic.Bool

	table, denying following

	kernelDenied engine.Counter
	counting     sync.Mutex
	counted      map[filter.Key]uint64 // the packets of each flow in the kernel that kernelDenied has
	attributed   uint64                // the sum of the packets in kernelDenied
	forgotten    uint64                // the packets that the kernel has denied and whose flow it has forgotten
}

func newFlows(a *agent, size int) *flows {
	f := &flows{agent: a}
	f.log = flow.NewLog(size, f.follow)
	return f
}

// Observe implements engine.Observer and conntrack.Observer.
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

// follow begins or ends following the kernel.
func (f *flows) follow(w flow.Watched) {
	f.table.set(w.Connections, f.followTable)
	f.denying.set(w.Denials && f.kernel != nil, f.followKernel)
}

// close ends following the kernel.
func (f *flows) close() { f.follow(flow.Watched{}) }

// following is a goroutine that runs while it is set.
type following struct {
	mu     sync.Mutex
	cancel context.CancelFunc // nil while it does not run
	ended  chan struct{}
}

// set begins run or ends it, and waits for its end. Before set returns, run has called begun.
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
	case <-ended: // it cannot follow, and has logged why
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

// miss records, at intervals, by how much a count of what is missing has grown.
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

// connection records a connection that begins or ends if one end is a pod, or may be one.
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
		e.Kind, e.Counted = flow.Ended, c.Counted
		e.Sent, e.Received = flow.Traffic(c.Sent), flow.Traffic(c.Received)
		if !c.Began.IsZero() {
			e.Duration = max(e.Time.Sub(c.Began), 0)
		}
	} else if v := s.DecideBetween(&e.Key, c.Key.SrcAddr(), c.Key.DstAddr(), e.Src, e.Dst); v.Action == filter.Allow {
		e.Verdict = v
	} else {
		// The policy has changed since, or the fail mode has allowed the packet: what the policies say
		// now is not why it passed.
		e.Verdict.Action = filter.Allow
	}
	f.log.Add(&e)
}

// isPod reports whether an address is a pod's, or is expected to be.
func isPod(s *policy.Snapshot, e *policy.Endpoint, addr netip.Addr) bool {
	if e == nil {
		return s.Pending(addr) != policy.Known
	}
	return !e.IsNode()
}

// denied records a packet that the kernel's flow cache has denied.
func (f *flows) denied(k *bpf.Event) {
	e := flow.Entry{Kind: flow.Denied, Kernel: true, Time: k.Time, Key: k.Key, SrcPort: k.SrcPort}
	f.decideDenied(&e, k.Rejected)
	f.log.Add(&e)
}

// decideDenied sets the verdict of a packet that the kernel has denied, and the owners of its
// addresses. If the policies would allow it now, the verdict has no reason.
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

// countInterval is the time between two counts of what the kernel has denied. In that time, more than
// the some 4,000 flows that the kernel keeps may be denied: the packets of the others are counted
// without a policy.
const countInterval = 10 * time.Second

// countDenials counts what the kernel denies, at intervals, until ctx ends.
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

// countKernel counts, by policy, what the kernel has denied since the last call.
func (f *flows) countKernel() {
	if f.kernel == nil {
		return
	}
	f.counting.Lock()
	defer f.counting.Unlock()
	stats, err := f.kernel.Stats() // before the list: what is denied in between is in the list only
	var known []bpf.Denial
	if err == nil {
		known, err = f.kernel.Denials()
	}
	if err != nil {
		f.agent.log.Debug("cannot count by policy what the kernel has denied", "err", err)
		return
	}
	now := make(map[filter.Key]uint64, len(known))
	for _, k := range known {
		packets := k.Packets
		if before := f.counted[k.Key]; before <= packets {
			packets -= before // otherwise the kernel has forgotten the flow and begun to count again
		}
		now[k.Key] = k.Packets
		if packets > 0 {
			e := flow.Entry{Key: k.Key}
			f.decideDenied(&e, k.Rejected)
			f.kernelDenied.Count(&e.Verdict, packets)
			f.attributed += packets
		}
	}
	f.counted = now
	if all := stats.Denied + stats.Rejected; all > f.attributed {
		f.forgotten = max(f.forgotten, all-f.attributed)
	}
}

// kernelDenials returns the verdicts of what the kernel has denied, and the number of packets whose
// flow it has forgotten. Neither ever becomes smaller.
func (f *flows) kernelDenials() (known engine.Tally, forgotten uint64) {
	f.countKernel()
	f.counting.Lock()
	defer f.counting.Unlock()
	return *f.kernelDenied.Tally(), f.forgotten
}

// lastDenials returns the last distinct denials, those of the kernel's flow cache too.
func (f *flows) lastDenials() []flow.Denial {
	all := f.denials.Clone()
	if f.kernel != nil {
		known, err := f.kernel.Denials()
		if err != nil {
			f.agent.log.Warn("cannot list what the kernel has denied", "err", err)
		}
		for _, k := range known {
			e := flow.Entry{Kind: flow.Denied, Kernel: true, Time: k.Last, Key: k.Key, SrcPort: k.SrcPort}
			f.decideDenied(&e, k.Rejected)
			all.AddMany(&e, k.Packets, k.First)
		}
	}
	return all.All()
}
