// Package bpf is the flow cache in the kernel. It repeats earlier verdicts without a trip to
// user space, and lets packets that no policy affects bypass user space.
//
// iptables calls small eBPF programs, program.c, as matches: "allow" matches packets that may
// pass, "deny" packets that must not. A packet that neither matches is queued. In POSTROUTING, two
// programs replace "allow" ([Cache.ForwardedPin]). Two more programs are for the hooks where packets
// can be rejected.
// A [Cache] loads the programs, pins them where iptables finds them, and fills their maps: the
// endpoints of the snapshot in force, with their IDs (policy.ID) and isolation; the prefixes that
// policies name, with their IDs, and the ranges in which unknown addresses are pending; and verdicts by
// policy.IDKey.
//
// So a verdict holds for all addresses that no policy can tell apart, also for those that appear
// later. A cache is never flushed: if something changes about an address, it gets another ID.
//
// When [Cache.Publish] returns, no packet is decided by an older snapshot, and every packet that
// was decided by one has left the rules.
//
// After the agent has ended, the rules keep the programs and the programs keep the maps. The
// last state stays in force, but a new pod may get the address of an old one. So the programs
// answer for a pod of this node only on its own interface ([Cache.SetDevices]), and for pods
// that share an interface only for a while ([Options.Unattended]).
package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"sluice/filter/bpffs"
	"sluice/filter/policy"
)

// The compiled programs are committed, so that building needs no clang. "make generate"
// compiles them again; clang 14 of Debian 12 gives the same bytes.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -no-global-types -target bpfel,bpfeb program program.c -- -O2 -Wall -Werror -mcpu=v2

// DefaultFlows is the number of verdicts in the cache: about 6 MiB, allocated at once.
const DefaultFlows = 65536

// DefaultPrefixes is the usual Options.Prefixes. Only prefixes that exist take memory.
const DefaultPrefixes = 1 << 20

// DefaultUnattended is the usual Options.Unattended. It exceeds the pauses of an agent that
// crashes repeatedly: Kubernetes restarts a container after at most 5 minutes.
const DefaultUnattended = 10 * time.Minute

// Options configure a Cache.
type Options struct {
	// BPFFS is the mount point of the BPF file system, which is mounted if necessary; empty
	// means DefaultBPFFS.
	BPFFS string
	// Flows bounds the verdicts in the cache; 0 means DefaultFlows. The least recently used
	// verdicts are evicted.
	Flows int
	// Prefixes bounds the prefixes that the cache knows: of policies, of pods, and of nodes. 0 means
	// DefaultPrefixes. With more of them, Publish fails.
	Prefixes int
	// AllowedOnly leaves denials to user space, where they are logged.
	AllowedOnly bool
	// Unattended concerns pods of this node that share an interface, as on a bridge. The
	// kernel stops answering for them when Attend has not been called for this time: after
	// a long absence of the agent, their addresses may belong to other pods. 0 means that
	// the kernel never stops.
	Unattended time.Duration
	// Logger logs failures that are not returned; nil discards them.
	Logger *slog.Logger
}

// Stats are the statistics of a cache. Open, Allowed and Denied count the packets that the kernel
// answered.
type Stats struct {
	Open    uint64 // packets allowed because no policy concerns them
	Allowed uint64 // packets allowed by a verdict in the cache
	Denied  uint64 // packets dropped by a verdict in the cache, or because an end is closed: policies allow it nothing
	// Rejected counts packets that are rejected instead of dropped, for the same reasons as
	// those in Denied.
	Rejected uint64
	Failed   uint64 // verdicts that could not be inserted
	// Published is the duration of the last Publish that changed something.
	Published time.Duration
	// Waited is the part of Published in which Publish waited for the programs that were running: an
	// RCU grace period.
	Waited time.Duration
}

// Cache is the flow cache in the kernel. Its methods may be called concurrently.
type Cache struct {
	opts          Options
	log           *slog.Logger
	secrets       secrets
	objs          programObjects
	endpointsSpec *ebpf.MapSpec // describes a table of endpoints
	old           bool          // the kernel is older than 5.8; see loadPrograms
	pins          *pins

	mu       sync.Mutex
	tables   *tables // nil while the cache is disabled
	prefixes *prefixTable
	owned    *ownedFilter
	// starting holds the addresses of pods that are starting.
	starting []netip.Prefix
	// devices holds, by address of a pod of this node, the index of the interface that leads to
	// that pod and to no other.
	devices  map[netip.Addr]uint32
	snapshot *policy.Snapshot // the last published snapshot
	stopped  atomic.Bool      // Stop was called

	failed    atomic.Uint64
	published atomic.Int64
	waited    atomic.Int64
}

// Open makes a cache and pins its programs. The cache answers nothing until Publish. An
// error names the missing kernel feature or privilege.
func Open(opts Options) (*Cache, error) {
	c := &Cache{opts: opts, log: opts.Logger, secrets: newSecrets(), prefixes: newPrefixTable(), devices: make(map[netip.Addr]uint32)}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.opts.BPFFS == "" {
		c.opts.BPFFS = DefaultBPFFS
	}
	if err := c.load(); err != nil {
		return nil, fmt.Errorf("load the kernel's flow cache: %w", withHint(err))
	}
	if err := c.pin(); err != nil {
		return nil, errors.Join(fmt.Errorf("pin the kernel's flow cache: %w", withHint(err)), c.objs.Close())
	}
	return c, nil
}

// load makes the maps and programs.
func (c *Cache) load() error {
	// Kernels before 5.11 count maps as locked memory, whose limit is low. To raise it, they require
	// CAP_SYS_RESOURCE. Without it, the limit may be high enough.
	limit := rlimit.RemoveMemlock()
	err := c.loadPrograms(false)
	if err != nil && c.loadPrograms(true) == nil {
		c.log.Info("the kernel lacks what the programs of its flow cache use since Linux 5.8; without an agent, they answer without limit for pods that share an interface, and what they deny cannot be watched", "err", err)
		c.old, err = true, nil
	}
	if err != nil {
		return errors.Join(err, limit)
	}
	if err := c.Attend(); err != nil {
		return errors.Join(err, c.objs.Close())
	}
	return nil
}

// loadPrograms makes the maps and programs. If old is true, it makes them for kernels before 5.8: the
// programs do not read the clock, which those kernels allow only to programs under the GPL, and use no
// ring buffer.
func (c *Cache) loadPrograms(old bool) error {
	spec, err := loadProgram()
	if err != nil {
		return err
	}
	if old {
		stopClock(spec)
		stopEvents(spec)
	}
	if c.opts.Flows > 0 {
		spec.Maps[programMapFlows].MaxEntries = uint32(c.opts.Flows)
	}
	if c.opts.Prefixes > 0 {
		spec.Maps[programMapPrefixes].MaxEntries = uint32(c.opts.Prefixes)
	}
	if err := spec.Variables[programVarSecrets].Set(c.secrets); err != nil {
		return err
	}
	c.endpointsSpec = spec.Maps[programMapEndpoints].InnerMap.Copy()
	if err := spec.LoadAndAssign(&c.objs, nil); err != nil {
		return err
	}
	c.prefixes.in, c.owned = c.objs.Prefixes, newOwnedFilter(c.objs.Owned)
	return nil
}

// stopClock replaces the programs' reads of the clock by 0, a time before any deadline.
func stopClock(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		for i, ins := range p.Instructions {
			if ins.IsBuiltinCall() && ins.Constant == int64(asm.FnKtimeGetNs) {
				p.Instructions[i] = asm.Mov.Imm(asm.R0, 0).WithMetadata(ins.Metadata)
			}
		}
	}
}

func (c *Cache) pin() (err error) {
	if err := bpffs.Mount(c.opts.BPFFS); err != nil {
		return err
	}
	if c.pins, err = newPins(c.opts.BPFFS); err != nil {
		return err
	}
	var errs []error
	for path, program := range c.programs() {
		errs = append(errs, program.Pin(path))
	}
	if err = errors.Join(errs...); err != nil {
		err = errors.Join(err, c.pins.remove())
	}
	return err
}

// EnsurePins pins the programs again if their pins are gone or belong to other programs, because
// a rule that calls a program cannot be written without its pin. It mounts the BPF file system
// again if that is no longer mounted. After an error, the programs that are pinned stay pinned.
func (c *Cache) EnsurePins() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped.Load() {
		return nil
	}
	var errs []error
	for path, program := range c.programs() {
		if pinned(path, program) {
			continue
		}
		if err := c.pinAgain(path, program); err != nil {
			errs = append(errs, fmt.Errorf("pin the kernel's flow cache again: %w", withHint(err)))
			continue
		}
		c.log.Warn("a pinned program of the kernel's flow cache was gone; pinned again", "path", path)
	}
	return errors.Join(errs...)
}

func (c *Cache) pinAgain(path string, program *ebpf.Program) error {
	if err := bpffs.Mount(c.opts.BPFFS); err != nil {
		return err
	}
	if err := c.pins.ensure(); err != nil {
		return err
	}
	return bpffs.Replace(path, program)
}

// pinned reports whether program is pinned at path.
func pinned(path string, program *ebpf.Program) bool {
	there, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		return false
	}
	defer there.Close()
	is, err := there.Info()
	if err != nil {
		return false
	}
	want, err := program.Info()
	if err != nil {
		return false
	}
	id, ok := is.ID()
	wantID, wantOK := want.ID()
	return ok && wantOK && id == wantID
}

// programs returns the programs that are pinned, by path.
func (c *Cache) programs() map[string]*ebpf.Program {
	programs := map[string]*ebpf.Program{
		c.AllowPin(): c.objs.Allow, c.ForwardedPin(): c.objs.Forwarded, c.OthersPin(): c.objs.Others, c.LaterPin(): c.objs.Later,
	}
	if !c.opts.AllowedOnly {
		programs[c.DenyPin()], programs[c.RejectPin()] = c.objs.Deny, c.objs.Reject
	}
	return programs
}

// AllowPin returns the path of the program that matches packets that may pass.
func (c *Cache) AllowPin() string { return filepath.Join(c.pins.dir, "allow") }

// ForwardedPin returns the path of a program that matches like the one at AllowPin, but only TCP, UDP and SCTP
// packets that arrived on an interface.
func (c *Cache) ForwardedPin() string { return filepath.Join(c.pins.dir, "forwarded") }

// OthersPin returns the path of a program that matches like the one at AllowPin, but only packets that the
// program at ForwardedPin leaves out.
func (c *Cache) OthersPin() string { return filepath.Join(c.pins.dir, "others") }

// DenyPin returns the path of the program that matches packets that must not pass; empty with
// AllowedOnly.
func (c *Cache) DenyPin() string {
	if c.opts.AllowedOnly {
		return ""
	}
	return filepath.Join(c.pins.dir, "deny")
}

// LaterPin returns the path of the program that matches packets in FORWARD that other programs
// answer in POSTROUTING.
func (c *Cache) LaterPin() string { return filepath.Join(c.pins.dir, "later") }

// RejectPin returns the path of the program that matches packets that must not pass and are to be
// rejected; empty with AllowedOnly.
func (c *Cache) RejectPin() string {
	if c.opts.AllowedOnly {
		return ""
	}
	return filepath.Join(c.pins.dir, "reject")
}

// Close closes the agent's handles. The programs stay pinned, and rules still call them.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.objs.Close(), c.tables.close(), c.pins.release())
}

// Remove removes the pins and closes the cache. Call it when no rule refers to the programs any
// longer; otherwise the programs stay in the kernel.
func (c *Cache) Remove() error {
	return errors.Join(c.pins.remove(), c.Close())
}

// Stop disables the cache, for an agent whose rules cannot call the programs. From then on the
// programs match nothing, and no verdict is inserted. If the error is ErrStillAnswering, the
// programs may still match.
func (c *Cache) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped.Store(true)
	return errors.Join(c.disable(), c.pins.remove())
}

// SetStarting sets the addresses of pods that are starting on this node (see
// policy.StartingPods). As long as an address has no endpoint, its packets are left to user
// space, like packets of unknown addresses in the pod ranges of the snapshot.
//
// After an error the cache is disabled until a later Publish succeeds. If the error is
// ErrStillAnswering, the cache could not be disabled either.
func (c *Cache) SetStarting(addrs []netip.Prefix) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = addrs
	if c.tables == nil {
		return nil // the next Publish writes the addresses
	}
	before := previous{c.snapshot, c.prefixes.pending}
	all := c.prefixes.plan(c.snapshot, before, nil, c.prefixes.setPending(slices.Concat(c.snapshot.PodRanges(), addrs)))
	err := c.prefixes.begin(all)
	if err == nil {
		err = c.prefixes.end(all)
	}
	if err != nil {
		return errors.Join(err, c.disable())
	}
	return nil
}

// Stats returns the statistics of the cache.
func (c *Cache) Stats() (Stats, error) {
	s := Stats{Failed: c.failed.Load(), Published: time.Duration(c.published.Load()), Waited: time.Duration(c.waited.Load())}
	for i, sum := range []*uint64{&s.Open, &s.Allowed, &s.Denied, &s.Rejected} {
		var err error
		if *sum, err = sumOf(c.objs.Answers, uint32(i)); err != nil {
			return s, err
		}
	}
	return s, nil
}

// sumOf returns the counter with index i, summed over all CPUs.
func sumOf(counters *ebpf.Map, i uint32) (sum uint64, err error) {
	var each []uint64
	if err := counters.Lookup(i, &each); err != nil {
		return 0, fmt.Errorf("read the counters of the kernel's flow cache: %w", err)
	}
	for _, n := range each {
		sum += n
	}
	return sum, nil
}

// withHint adds a hint to errors that a user can fix.
func withHint(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: run as root, or with the capabilities BPF and, to mount the BPF file system, SYS_ADMIN; in a container, with a seccomp profile that allows the system call bpf", err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: the kernel may be older than 5.2 or built without BPF", err)
	}
	return err
}

// Writer inserts the verdicts of one worker. It is for use by one goroutine.
type Writer struct {
	cache *Cache
	// key and value are arguments of the system call. As local variables they would escape
	// to the heap, at the cost of an allocation for each packet.
	key   policy.IDKey
	value uint64
}

// NewWriter returns a writer for one goroutine.
func (c *Cache) NewWriter() *Writer { return &Writer{cache: c} }
