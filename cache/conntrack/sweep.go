package conntrack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"sluice/filter"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

const (
	// batchSize bounds the updates that are collected before they are written, and so the
	// memory of a sweep. They are written while the dump goes on.
	batchSize = 512
	// batchTimeout bounds how long an update waits for its batch to fill during a dump. A dump
	// of all connections can take 100 ms, and a connection that is denied now should not keep
	// passing until the dump ends.
	batchTimeout = 5 * time.Millisecond
	// maxPasses bounds the dumps of a sweep; see Sweep.
	maxPasses = 5
)

// Observer is called for every connection whose mark a sweep has rewritten, after the kernel has applied
// the mark.
type Observer interface {
	Marked(c *Marked)
}

// Marked is a connection whose mark a sweep has rewritten. It is valid only during the call.
type Marked struct {
	packet.Packet // without content
	Verdict       filter.Verdict
	Closed        bool // as in Conn: the verdict concerns no packet, unless another connection follows
	WasRevoked    bool // an earlier sweep has revoked the connection
}

// Result reports what a sweep did.
type Result struct {
	Evaluated int // connections that were evaluated
	Allowed   int // connections newly marked as allowed
	Revoked   int // connections no longer allowed
	Restored  int // connections revoked before, and allowed again
	Remarked  int // connections revoked before, and denied in another way now
	Unjudged  int // connections that had no verdict before; counted only with ScopeGap
	Passes    int // dumps of the table
	Duration  time.Duration
}

// Written returns the number of marks that were rewritten.
func (r Result) Written() int { return r.Allowed + r.Revoked + r.Restored + r.Remarked }

// LogValue implements slog.LogValuer.
func (r Result) LogValue() slog.Value {
	return slog.GroupValue(
		slog.Int("evaluated", r.Evaluated), slog.Int("allowed", r.Allowed), slog.Int("revoked", r.Revoked), slog.Int("restored", r.Restored),
		slog.Int("remarked", r.Remarked), slog.Int("passes", r.Passes), slog.Int64("duration_ms", r.Duration.Milliseconds()))
}

// Sweeper evaluates live connections. It is safe for concurrent use: sweeps wait for each
// other.
type Sweeper struct {
	// Local returns the addresses of this node. A sweep never revokes connections from or to
	// these addresses, because the iptables rules let their packets pass without a verdict. A
	// sweep calls Local at most once: before it revokes the first connection or, with
	// ScopeGap, before it marks the first connection without a mark. New sets Local to a
	// function that lists the addresses of the interfaces in the process's network namespace.
	Local func() ([]netip.Addr, error)
	// FailOpen applies to live connections of a pending address of this node. The pod that had
	// such an address is gone, and the next pod may use the address before the agent knows
	// that pod. Without FailOpen, a sweep therefore revokes these connections, just as a
	// worker denies new ones when their hold expires. With FailOpen, a sweep evaluates them
	// as if no pod had the address.
	FailOpen bool

	table    Table
	marks    Marks
	log      *slog.Logger
	observer Observer

	mu sync.Mutex
}

// New returns a sweeper of the table. log and observer may be nil. If a mark is 0 or the
// marks have a bit in common, every sweep returns an error.
func New(table Table, marks Marks, log *slog.Logger, observer Observer) *Sweeper {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Sweeper{Local: interfaceAddrs, table: table, marks: marks, log: log, observer: observer}
}

// interfaceAddrs lists the addresses of all interfaces.
func interfaceAddrs() ([]netip.Addr, error) {
	nets, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the addresses of this node: %w", err)
	}
	var addrs []netip.Addr
	for _, n := range nets {
		if p, ok := n.(*net.IPNet); ok {
			if a, ok := netip.AddrFromSlice(p.IP); ok {
				addrs = append(addrs, a.Unmap())
			}
		}
	}
	return addrs, nil
}

// Sweep evaluates live connections by the snapshot: those of the addresses in changes or, with
// ScopeAll and ScopeGap, all connections. It rewrites each mark that differs from the verdict.
// The caller must wait until every verdict of older snapshots has taken effect. The first sweep
// must evaluate all connections, because those that existed before the agent have no mark.
//
// It dumps the table until a dump finds nothing to rewrite. One dump is enough except for a
// rare race: the kernel finds the connection to mark by its five-tuple, and another
// connection with that five-tuple may have replaced the one that was dumped. The next dump
// finds such a wrong mark. Further dumps do not let denied connections live longer: the
// first dump marks them.
//
// Sweep does nothing without a snapshot. After an error, some connections may not have been
// evaluated; the sweep must be repeated for the same changes.
func (s *Sweeper) Sweep(ctx context.Context, snapshot *policy.Snapshot, changes policy.Changes, scope Scope) (Result, error) {
	return s.sweep(ctx, snapshot, changes, sweepOptions{all: scope >= ScopeAll, gap: scope == ScopeGap})
}

// sweepOptions configure a sweep.
type sweepOptions struct {
	all  bool          // evaluate all connections
	gap  bool          // count connections without a mark in Result.Unjudged; see ScopeGap
	seen *TrackedFlows // tracked flows to which the sweep adds its keys; may be nil
}

// sweep is Sweep with all its options.
func (s *Sweeper) sweep(ctx context.Context, snapshot *policy.Snapshot, changes policy.Changes, how sweepOptions) (Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.marks.check(); err != nil {
		return Result{}, err
	}
	if snapshot == nil || !how.all && len(changes) == 0 {
		return Result{}, nil
	}
	w := &sweep{sweeper: s, options: how, ctx: ctx, snapshot: snapshot}
	if !how.all {
		w.among = changes
		w.set = make(map[[16]byte]struct{}, len(changes))
		for _, a := range changes {
			w.set[a.As16()] = struct{}{}
		}
	}
	start := time.Now()
	err := w.run()
	w.result.Duration = time.Since(start)
	if err != nil {
		return w.result, fmt.Errorf("sweep live connections: %w", err)
	}
	return w.result, nil
}

// ClearMarks clears the bits in every connection's mark, so that no trace of an agent is
// left, and returns the number of connections that had them.
func (s *Sweeper) ClearMarks(ctx context.Context, bits uint32) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return ClearMarks(ctx, s.table, bits)
}

// ClearMarks is Sweeper.ClearMarks without a Sweeper, for use after the agent is gone.
func ClearMarks(ctx context.Context, table Table, bits uint32) (int, error) {
	cleared := 0
	for range maxPasses {
		var updates []Update
		err := table.Dump(ctx, nil, func(c *Conn) {
			if c.Mark&bits != 0 {
				updates = append(updates, Update{Ref: c.Ref, Mask: bits})
			}
		})
		if err != nil && !errors.Is(err, ErrInterrupted) {
			return cleared, fmt.Errorf("clear connection marks: %w", err)
		}
		if err := table.SetMarks(ctx, updates); err != nil {
			return cleared, fmt.Errorf("clear connection marks: %w", err)
		}
		cleared += len(updates)
		if err == nil {
			return cleared, nil
		}
	}
	return cleared, fmt.Errorf("clear connection marks: %w", ErrInterrupted)
}

// sweep is the state of one Sweep.
type sweep struct {
	sweeper  *Sweeper
	options  sweepOptions
	ctx      context.Context
	snapshot *policy.Snapshot
	among    []netip.Addr          // the addresses whose connections are evaluated; nil for all
	set      map[[16]byte]struct{} // the addresses in the field "among", as a set
	local    map[[16]byte]struct{} // addresses of this node; nil until isLocal needs them

	updates []Update  // updates that are not yet written
	oldest  time.Time // time at which updates[0] was found
	pending []pending // what to report after the write: pending[i] is about updates[i]
	result  Result

	evaluated int   // connections of this pass
	err       error // the first error of this pass
}

// pending is what flush counts and reports about an update once it has written the update.
type pending struct {
	Marked
	count *int
	// unjudged is set if Result.Unjudged counts the connection: it had no mark, although the
	// rules send the packets of such connections to a worker.
	unjudged bool
}

func (w *sweep) run() error {
	for w.result.Passes < maxPasses {
		w.result.Passes++
		before := w.result.Written()
		err := w.pass()
		if err != nil && !errors.Is(err, ErrInterrupted) {
			return err
		}
		if err == nil && w.result.Written() == before {
			return nil
		}
		if err != nil && w.result.Passes == maxPasses {
			return err
		}
	}
	w.sweeper.log.Warn("connections change faster than they can be evaluated", "passes", w.result.Passes)
	return nil
}

// pass dumps the table once, and evaluates each dumped connection. If the dump is interrupted,
// the updates for the connections dumped so far are valid, and pass writes them.
func (w *sweep) pass() error {
	w.evaluated, w.err = 0, nil
	w.updates, w.pending = w.updates[:0], w.pending[:0]
	err := w.sweeper.table.Dump(w.ctx, w.among, w.visit)
	w.flush()
	w.result.Evaluated = max(w.result.Evaluated, w.evaluated)
	if w.err != nil {
		return w.err
	}
	return err
}

// visit evaluates one connection.
func (w *sweep) visit(c *Conn) {
	if len(w.updates) > 0 && time.Since(w.oldest) > batchTimeout {
		w.flush()
	}
	if w.err != nil || !w.concerns(c) {
		return
	}
	v, known := filter.Verdict{Action: filter.Deny, Reason: filter.Malformed}, true
	if !c.Malformed {
		v, known = w.decide(c)
	}
	if !known && c.Mark&w.sweeper.marks.Revoked == 0 {
		return
	}
	w.evaluated++
	had := c.Mark & w.sweeper.marks.Mask()
	if had == w.sweeper.marks.of(&v) || v.Action != filter.Allow && w.sparesNode(c, &v) {
		return
	}
	want := w.sweeper.marks.of(&v)
	count := &w.result.Allowed
	switch revoked := had&w.sweeper.marks.Revoked != 0; {
	case had == want:
		return
	case revoked && v.Action == filter.Allow:
		count = &w.result.Restored
	case revoked:
		count = &w.result.Remarked
	case v.Action != filter.Allow:
		count = &w.result.Revoked
	}
	if len(w.updates) == 0 {
		w.oldest = time.Now()
	}
	w.updates = append(w.updates, Update{Ref: c.Ref, Mark: want, Mask: w.sweeper.marks.Mask()})
	w.pending = append(w.pending, pending{
		Marked:   Marked{packet.Packet{Key: c.Key, SrcPort: c.SrcPort}, v, c.Closed, had&w.sweeper.marks.Revoked != 0},
		count:    count,
		unjudged: w.options.gap && had == 0 && !w.isLocal(c.Key.Src) && !w.isLocal(c.Key.Dst),
	})
	if len(w.updates) == batchSize {
		w.flush()
	}
}

// decide returns the verdict about a connection. If conntrack did not see how the connection
// began (MidStream), decide allows it only if policies allow both directions, as
// [sluice/filter/engine.Evaluator] does for packets in mid-stream. The second result is false
// if the connection needs no mark.
func (w *sweep) decide(c *Conn) (v filter.Verdict, known bool) {
	v, known = w.sweeper.evaluate(w.snapshot, &c.Key)
	if w.options.seen != nil {
		w.options.seen.see(w.snapshot, &c.Key, &v)
	}
	if !c.MidStream || v.Action == filter.Allow && v.Reason == filter.OwnNode { // what the node sends passes
		return v, known
	}
	reverse := c.Key.Reverse(c.SrcPort)
	back, _ := w.sweeper.evaluate(w.snapshot, &reverse)
	if w.options.seen != nil {
		w.options.seen.see(w.snapshot, &reverse, &back)
	}
	if v.Action == filter.Allow && back.Action != filter.Allow {
		v, known = back, true
		if v.Reason != filter.PodNotKnown && v.Reason != filter.NamespaceNotKnown {
			v.Reason, v.Pair = filter.MidStream, false
		}
	}
	return v, known
}

// concerns reports whether the sweep must evaluate the connection.
func (w *sweep) concerns(c *Conn) bool {
	if w.set == nil || c.Malformed {
		return w.set == nil
	}
	if _, ok := w.set[c.Key.Src]; ok {
		return true
	}
	_, ok := w.set[c.Key.Dst]
	return ok
}

// evaluate returns the verdict about a key. The second result is false if no policy could deny
// the flow: a connection from this node, or between ends that are not pods, needs no mark.
func (s *Sweeper) evaluate(by *policy.Snapshot, k *filter.Key) (v filter.Verdict, known bool) {
	srcAddr, dstAddr := k.SrcAddr(), k.DstAddr()
	src, srcPending := by.Lookup(srcAddr)
	dst, dstPending := by.Lookup(dstAddr)
	known = (src != nil || dst != nil) && !src.IsNode()
	if !src.IsNode() && (!dst.IsNode() || by.JudgesOwnNode()) && (s.held(srcPending) || s.held(dstPending)) {
		return filter.Verdict{Action: filter.Deny, Reason: filter.PodNotKnown}, true
	}
	v = by.DecideBetween(k, srcAddr, dstAddr, src, dst)
	if v.Reason == filter.NamespaceNotKnown && s.FailOpen {
		return filter.Verdict{Action: filter.Allow, Reason: filter.PodNotKnown}, true
	}
	return v, known
}

// held reports whether workers hold the packets of new connections of an address with the
// status p until its pod is known. A packet is denied if its hold expires first.
func (s *Sweeper) held(p policy.Pending) bool { return p == policy.PendingLocal && !s.FailOpen }

// sparesNode is called for a connection that v denies. It reports whether the connection must
// not be revoked, because one end is this node. The snapshot may lack the node's address, such
// as that of a bridge. A connection from the node is never revoked. For a connection to the
// node, sparesNode decides again, and stores the verdict in v.
func (w *sweep) sparesNode(c *Conn, v *filter.Verdict) bool {
	switch {
	case w.isLocal(c.Key.Src):
		return true
	case !w.isLocal(c.Key.Dst), w.snapshot.Endpoint(c.Key.DstAddr()).IsNode():
		return false
	}
	*v = w.snapshot.DecideToNode(&c.Key)
	return v.Action == filter.Allow
}

// isLocal reports whether addr is an address of this node.
func (w *sweep) isLocal(addr [16]byte) bool {
	if w.local == nil {
		addrs, err := w.sweeper.Local()
		if err != nil {
			w.sweeper.log.Warn("the addresses of this node are not known; connections are spared only by the addresses in the snapshot", "err", err)
		}
		w.local = make(map[[16]byte]struct{}, len(addrs))
		for _, a := range addrs {
			w.local[a.As16()] = struct{}{}
		}
	}
	_, ok := w.local[addr]
	return ok
}

// flush writes the updates, and counts and reports them.
func (w *sweep) flush() {
	if len(w.updates) == 0 || w.err != nil {
		return
	}
	if w.err = w.sweeper.table.SetMarks(w.ctx, w.updates); w.err != nil {
		return
	}
	for i := range w.pending {
		p := &w.pending[i]
		*p.count++
		if p.unjudged {
			w.result.Unjudged++
		}
		if w.sweeper.observer != nil {
			w.sweeper.observer.Marked(&p.Marked)
		}
	}
	w.updates, w.pending = w.updates[:0], w.pending[:0]
}
