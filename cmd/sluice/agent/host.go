package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"

	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/filter/guard"
	"sluice/filter/iptables"
	"sluice/filter/policy"
	"sluice/filter/queue"
)

// host holds the parts that act on the machine. Their interfaces have only the methods that
// the agent uses, so that tests can replace them with fakes.
type host struct {
	tables      []iptables.Table
	conntrack   conntrack.Table
	connections func() (connectionEvents, error) // subscribes to connections that begin and end
	kernel      kernelCache                      // nil if the kernel remembers no verdicts
	guard       interfaceGuard                   // nil if pods' interfaces are not guarded
	predecessor predecessor                      // nil if no other agent enforces
	leftovers   leftovers
	queues      packetQueues
	newQueues   func(queue.Options, func() queue.Evaluator, *slog.Logger) (packetQueues, error)
}

// packetQueues is implemented by [queue.Queues].
type packetQueues interface {
	Run(ctx context.Context) error
	Ready() <-chan struct{}
	Reevaluate()
	Drain(ctx context.Context) error
	Stats() queue.Stats
	Waiting() (int, error)
}

// kernelCache is implemented by [bpf.Cache].
type kernelCache interface {
	Publish(s *policy.Snapshot, changes policy.Changes) error
	SetStarting(addrs []netip.Prefix) error
	SetDevices(devices map[netip.Addr]uint32) error
	NewWriter() *bpf.Writer
	EnsurePins() error
	Attend() error
	Stats() (bpf.Stats, error)
	Denials() ([]bpf.Denial, error)
	Watch(ctx context.Context, perSecond uint32, begun func(), report func(*bpf.Event)) error
	LeftOut() (bpf.LeftOut, error)
	Stop() error
	Close() error
	Remove() error
}

// connectionEvents is implemented by [conntrack.Events].
type connectionEvents interface {
	Read(ctx context.Context, report func(*conntrack.Event)) error
	Lost() (uint64, error)
	Close() error
}

// interfaceGuard is implemented by [guard.Guard].
type interfaceGuard interface {
	Begin(s *policy.Snapshot) error
	Covers() (covers bool, because string)
	RulesUpdated(covers bool)
	Publish(s *policy.Snapshot) error
	Yield()
	Run(ctx context.Context)
	Stats() (guard.Stats, error)
	Failure() string
	Release() error
	Remove() error
	Close() error
}

// predecessor is the agent that may enforce when this one starts.
type predecessor interface {
	// TakeOver asks the predecessor to stop changing rules and marks of connections, and
	// returns when it has stopped. While the lease is open, only this agent changes them; when
	// the lease is closed, the predecessor does so again. The lease is nil if the predecessor
	// has ended.
	TakeOver(ctx context.Context) (lease io.Closer, err error)
	// Queued returns the number of packets that the predecessor has not answered yet.
	Queued() (int, error)
}

// leftovers finds and removes what earlier agents have left on the host.
type leftovers interface {
	// RulesInPlace reports whether rules of any agent see packets, in either backend of
	// iptables.
	RulesInPlace(ctx context.Context) (bool, error)
	// RemoveRules removes rules from the backend of iptables that this agent does not use:
	// packets pass through the rules of both backends.
	RemoveRules(ctx context.Context) error
	// RemovePins removes the pinned programs of dead agents, and returns their directories.
	// Call it only when no rule calls these programs any longer.
	RemovePins() (dirs []string, err error)
	// RemoveGuard removes the programs from pods' interfaces.
	RemoveGuard() error
}

// open opens the parts that act on the machine. close releases them, also after an error.
func (a *agent) open(ctx context.Context) (err error) {
	if a.tables, err = iptables.Open(ctx, a.opts.Rules.Backend, a.log); err != nil {
		return err
	}
	_, bridged := os.Stat("/proc/sys/net/bridge")
	a.opts.Rules.BridgePorts = bridged == nil
	if a.predecessor, err = a.chooseQueues(); err != nil {
		return err
	}
	if err := a.openKernel(); err != nil {
		return err
	}
	if err := a.openGuard(); err != nil {
		return err
	}
	ct, err := conntrack.Open(conntrack.Options{})
	if err != nil {
		return err
	}
	a.conntrack = ct
	a.connections = func() (connectionEvents, error) { return ct.Events() }
	a.leftovers = hostLeftovers{inUse: a.tables, bpffs: a.opts.BPFFS, log: a.log}
	a.newQueues = func(o queue.Options, e func() queue.Evaluator, log *slog.Logger) (packetQueues, error) {
		return queue.New(o, e, log)
	}
	return nil
}

// hostLeftovers implements leftovers on this machine.
type hostLeftovers struct {
	inUse []iptables.Table
	bpffs string
	log   *slog.Logger
}

func (l hostLeftovers) RulesInPlace(ctx context.Context) (bool, error) {
	others, err := iptables.Others(ctx, l.inUse)
	if err != nil {
		return false, fmt.Errorf("look for rules in the other backend: %w", err)
	}
	return iptables.InPlace(ctx, slices.Concat(l.inUse, others))
}

func (l hostLeftovers) RemoveRules(ctx context.Context) error {
	others, err := iptables.Others(ctx, l.inUse)
	if err != nil {
		return fmt.Errorf("look for rules in the other backend: %w", err)
	}
	removed, err := iptables.Cleanup(ctx, others)
	for _, line := range removed {
		l.log.Warn("removed rules of an earlier agent from the other backend", "removed", line)
	}
	return err
}

func (l hostLeftovers) RemovePins() ([]string, error) { return bpf.RemoveStale(l.bpffs) }

func (l hostLeftovers) RemoveGuard() error {
	_, err := guard.Cleanup(l.bpffs)
	return err
}
