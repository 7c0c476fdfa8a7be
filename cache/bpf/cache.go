// Package bpf is the flow cache in the kernel: verdicts that were given before
// are given again without a way to user space, and packets that no policy
// concerns never take it.
//
// Two small eBPF programs, program.c, do that. iptables calls them as matches
// right before the rule that queues: "allow" says yes to a packet that may pass,
// "deny" to one that must not, and what neither knows is queued. A [Cache] loads
// them, pins them where iptables finds them, and keeps in their maps
//
//   - the endpoints of the snapshot in force, with their epochs, whether they are
//     isolated, and whether any rule then allows anything,
//   - the ranges in which unknown addresses are pods that user space waits for,
//   - verdicts that were given, by key, or by pair of addresses.
//
// What holds for all packets between two addresses is remembered under a key that
// stands for all of them (filter.Any): that nobody is allowed to, or that a rule
// without ports allows. A scan of the ports of an address is one verdict then, and
// so is a client that uses a thousand of them. And of two pods of which one is
// closed, with policies and not one rule, no verdict is asked for at all: a scan of
// a namespace that denies by default costs user space nothing. A packet costs two
// look-ups for its ends, up to two for unknown addresses among them, and two for
// its verdict, however much is known; the one for the pair took 20 ns more.
//
// The flow cache in user space has no such keys: there a decision costs hardly more
// than the second look-up would, on every hit.
//
// Nothing is ever flushed. A verdict carries the epochs of both ends, and the
// programs compare them with those in force at the moment of the packet; so a
// verdict that is remembered too late, or by an agent that works on an old
// snapshot, answers nothing.
//
// # When a change is in force
//
// [Cache.Publish] writes a second table of endpoints and puts it in the place of
// the first, in one step: a packet is judged by the one or by the other, never by
// some of each. It returns when the kernel has said that no program, and no
// packet on its way through the rules, uses the first one any more (an RCU grace
// period, which the kernel waits for before a map in a map counts as replaced).
// From then on not one packet is judged by the old state, and the connections
// that it let pass are in the connection table, for a sweep to find. That is when
// a change is acknowledged. Up to the replacement, some 80 µs after the call, new
// packets are judged by the old state, as those were that came a moment earlier;
// the rest of the call, 8 to 16 ms where two CPUs are busy, is the wait.
//
// # Without an agent
//
// The rules hold on to the programs, and the programs to the maps, also when the
// agent is gone or another one has written the same paths. What the kernel knew
// last then goes on to hold: remembered verdicts, and that no policy concerns a
// pod. But a pod that starts then may get the address of another. So of a pod of this
// node that has an interface of its own, it holds for packets that come or go by that
// interface ([Cache.SetDevices]); and of one that has none, for a while
// ([Options.Unattended]).
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

	"sluice/filter"
	"sluice/filter/policy"
)

// The objects are committed, so that building needs no clang. "make generate"
// compiles them again; clang 14 of Debian 12 gives the same bytes.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -no-global-types -target bpfel,bpfeb program program.c -- -O2 -Wall -Werror -mcpu=v2

// DefaultFlows is how many verdicts the kernel remembers: about 8 MiB, taken at
// once.
const DefaultFlows = 65536

// DefaultUnattended is longer than an agent that crashes again and again is away at
// a time: Kubernetes waits up to 5 minutes before it starts it again.
const DefaultUnattended = 10 * time.Minute

// Options say how to make a Cache.
type Options struct {
	// BPFFS is where the BPF file system is mounted, or is to be: empty for
	// DefaultBPFFS.
	BPFFS string
	// Flows is how many verdicts are remembered; 0 is DefaultFlows. Of more, those
	// that were asked for longest ago are forgotten.
	Flows int
	// AllowedOnly leaves denials to user space, where they are logged.
	AllowedOnly bool
	// Unattended is for how long after the last call of Attend the kernel answers for
	// pods of this node that share an interface, as on a bridge; 0 is for ever. Their
	// addresses may belong to other pods when the agent has been gone for long.
	Unattended time.Duration
	// Logger gets what goes wrong on the way; nil discards it.
	Logger *slog.Logger
}

// Stats say how a cache has done. Answers of the kernel are counted per packet.
type Stats struct {
	Open    uint64 // packets allowed because no policy concerns them
	Allowed uint64 // packets allowed by a verdict that was remembered
	Denied  uint64 // packets denied likewise, or because no rule allows one end anything
	Failed  uint64 // verdicts that could not be remembered
	// Published is how long the last Publish took that changed something.
	Published time.Duration
}

// Cache is the flow cache in the kernel. Its methods may be called concurrently.
type Cache struct {
	opts          Options
	log           *slog.Logger
	secrets       secrets
	objs          programObjects
	endpointsSpec *ebpf.MapSpec // of a table of endpoints
	pins          *pins

	mu     sync.Mutex
	tables *tables
	ranges map[netip.Prefix]bool // that the programs know
	// starting are the addresses of pods that start.
	starting []netip.Prefix
	// devices are the interfaces of this node's pods, where each has its own.
	devices  map[netip.Addr]uint32
	snapshot *policy.Snapshot // the last that was published
	stopped  atomic.Bool      // it was stopped

	failed    atomic.Uint64
	published atomic.Int64
}

// Open makes a cache and pins its programs. It answers nothing until Publish. An
// error says what the kernel, or the caller's privileges, lack.
func Open(opts Options) (*Cache, error) {
	c := &Cache{opts: opts, log: opts.Logger, secrets: newSecrets(), ranges: make(map[netip.Prefix]bool), devices: make(map[netip.Addr]uint32)}
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
	// Kernels before 5.11 count maps as locked memory, of which little is allowed.
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	err := c.loadPrograms(false)
	if err != nil && c.loadPrograms(true) == nil {
		c.log.Info("the kernel does not let the programs of its flow cache read the clock; without an agent, they answer without limit for pods that share an interface", "err", err)
		err = nil
	}
	if err != nil {
		return err
	}
	if err := c.Attend(); err != nil {
		return errors.Join(err, c.objs.Close())
	}
	return nil
}

// loadPrograms makes the maps and programs, which read the clock unless so said:
// kernels before 5.8 let only programs under the GPL do so.
func (c *Cache) loadPrograms(clockless bool) error {
	spec, err := loadProgram()
	if err != nil {
		return err
	}
	if clockless {
		stopClock(spec)
	}
	if c.opts.Flows > 0 {
		spec.Maps[programMapFlows].MaxEntries = uint32(c.opts.Flows)
	}
	if err := spec.Variables[programVarSecrets].Set(c.secrets); err != nil {
		return err
	}
	c.endpointsSpec = spec.Maps[programMapEndpoints].InnerMap.Copy()
	return spec.LoadAndAssign(&c.objs, nil)
}

// stopClock has the programs take the time for 0, at which no deadline is over.
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
	if err := mount(c.opts.BPFFS); err != nil {
		return err
	}
	if c.pins, err = newPins(c.opts.BPFFS); err != nil {
		return err
	}
	if err = c.objs.Allow.Pin(c.AllowPin()); err == nil && !c.opts.AllowedOnly {
		err = c.objs.Deny.Pin(c.DenyPin())
	}
	if err != nil {
		err = errors.Join(err, c.pins.remove())
	}
	return err
}

// EnsurePins gives the programs their names again where these are gone, or are now
// those of others: no rule that calls a program can be written without its name. It
// mounts the BPF file system if that is gone.
func (c *Cache) EnsurePins() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped.Load() {
		return nil
	}
	programs := map[string]*ebpf.Program{c.AllowPin(): c.objs.Allow}
	if !c.opts.AllowedOnly {
		programs[c.DenyPin()] = c.objs.Deny
	}
	var errs []error
	for path, program := range programs {
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
	if err := mount(c.opts.BPFFS); err != nil {
		return err
	}
	if err := c.pins.ensure(); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	// A copy, because a program that was pinned once takes itself to be so still.
	again, err := program.Clone()
	if err != nil {
		return err
	}
	return errors.Join(again.Pin(path), again.Close())
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

// AllowPin is the path of the program that says which packets may pass.
func (c *Cache) AllowPin() string { return filepath.Join(c.pins.dir, "allow") }

// DenyPin is the path of the program that says which packets must not pass; empty
// if the cache remembers no denials.
func (c *Cache) DenyPin() string {
	if c.opts.AllowedOnly {
		return ""
	}
	return filepath.Join(c.pins.dir, "deny")
}

// Close ends the agent's part. What rules refer to stays in the kernel, and the
// programs stay pinned.
func (c *Cache) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.objs.Close(), c.tables.close(), c.pins.release())
}

// Remove is Close that leaves nothing. No rule should refer to the programs any
// more.
func (c *Cache) Remove() error {
	return errors.Join(c.pins.remove(), c.Close())
}

// Stop ends the cache before the agent does, where nothing can call its programs.
// They say nothing from now on, and nothing is remembered.
func (c *Cache) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped.Store(true)
	return errors.Join(c.disable(), c.pins.remove())
}

// SetStarting sets the addresses of pods that start on this node, see
// policy.StartingPods. Packets from or to them are left to user space, beside those of
// unknown addresses in the ranges of the snapshot.
//
// With an error the cache answers nothing until a later Publish succeeds; if the error is
// ErrStillAnswering it could not be disabled either.
func (c *Cache) SetStarting(addrs []netip.Prefix) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.starting = addrs
	if c.snapshot == nil {
		return nil // the next Publish writes them
	}
	if err := c.setRanges(slices.Concat(c.snapshot.PodRanges(), addrs)); err != nil {
		return errors.Join(err, c.disable())
	}
	return nil
}

func (c *Cache) setRanges(prefixes []netip.Prefix) error {
	wanted := make(map[netip.Prefix]bool)
	for _, p := range prefixes {
		p = p.Masked()
		wanted[p] = true
		if c.ranges[p] {
			continue
		}
		if err := c.objs.Ranges.Update(rangeOf(p), uint32(1), ebpf.UpdateAny); err != nil {
			return fmt.Errorf("add pod range %s to the kernel's flow cache: %w", p, err)
		}
		c.ranges[p] = true
	}
	for p := range c.ranges {
		if wanted[p] {
			continue
		}
		if err := c.objs.Ranges.Delete(rangeOf(p)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("remove pod range %s from the kernel's flow cache: %w", p, err)
		}
		delete(c.ranges, p)
	}
	return nil
}

// prefix is struct range of program.c.
type prefix struct {
	Bits  uint32
	First [16]byte
}

func rangeOf(p netip.Prefix) prefix {
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return prefix{uint32(bits), p.Addr().As16()}
}

// Stats says how the cache has done.
func (c *Cache) Stats() (Stats, error) {
	s := Stats{Failed: c.failed.Load(), Published: time.Duration(c.published.Load())}
	for i, sum := range []*uint64{&s.Open, &s.Allowed, &s.Denied} {
		var each []uint64 // by CPU
		if err := c.objs.Answers.Lookup(uint32(i), &each); err != nil {
			return s, fmt.Errorf("count the answers of the kernel's flow cache: %w", err)
		}
		for _, n := range each {
			*sum += n
		}
	}
	return s, nil
}

// withHint gives the errors that a user can do something about words of their own.
func withHint(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%w: run as root, or with the capabilities BPF and, to mount the BPF file system, SYS_ADMIN; in a container, by a seccomp profile that lets these call bpf", err)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: the kernel may be older than 5.2 or built without BPF", err)
	}
	return err
}

// Writer is how one worker remembers verdicts. It serves one goroutine.
type Writer struct {
	cache *Cache
	// Held here so that a system call can be told where they are without an
	// allocation for each packet.
	key   filter.Key
	value uint64
}

// NewWriter returns a writer for one goroutine.
func (c *Cache) NewWriter() *Writer { return &Writer{cache: c} }
