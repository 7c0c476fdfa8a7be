// Package guard drops frames at the node's interfaces whose source does not belong to the sender,
// and frames that policies cannot be applied to. Otherwise a pod could write the address of another
// pod into its packets, and would have the rights of that pod.
//
// Two BPF programs (program.c) check each frame at the node's end of a pod's interface, before
// bridge, routing and iptables and after them. An ordinary frame of a known pod costs one lookup,
// any other frame up to six. [Open] loads the programs, [Guard.Begin] attaches them, [Guard.Run]
// follows the interfaces, and [Guard.Publish] applies a snapshot. If [Guard.Covers] is true, the
// programs check all interfaces, and the rules in iptables need not drop forged sources.
//
// ARCHITECTURE.md has the details: how the guard finds the pod behind an interface, and what it drops.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/filter/event"
	"sluice/filter/policy"
)

const (
	// The guard reads the node's interfaces in passes. searchInterval is the time between two
	// passes while the pod of an interface is not known; idleInterval is the time otherwise.
	// Passes are needed because the kernel reports changes of interfaces, but not of the
	// addresses at an interface's other end, in a pod.
	searchInterval = time.Second
	idleInterval   = 10 * time.Second
	// eventDebounce is the delay between an event and the pass that follows, so that one pass
	// handles the several events that a network plugin causes. publishDebounce is the delay
	// between a publication and the pass that follows. That pass only looks for the pods of
	// interfaces whose pod was not known before the publication.
	eventDebounce   = 20 * time.Millisecond
	publishDebounce = 200 * time.Millisecond
	// checkInterval is the time between two checks (see intact). The kernel does not report
	// that another process has detached a program, so the guard checks for that. A check takes
	// some microseconds for each interface.
	checkInterval = time.Second
	// maxSearches bounds the consecutive passes at searchInterval for an interface whose pod
	// stays unknown: it may lead to a container that belongs to no pod.
	maxSearches = 30
)

// Guard manages the programs on the node's interfaces. Its methods may be called concurrently.
type Guard struct {
	// OnCovers, if set, is called after the result of Covers has changed. If OnCovers returns
	// an error, it is called again later. Set OnCovers before Run is called.
	OnCovers func(ctx context.Context, covers bool) error

	log  *slog.Logger
	objs programObjects
	kick chan struct{}

	mu       sync.Mutex
	programs *recognizer // of this agent, and those of others
	on       bool        // the programs are attached, and Run keeps them attached
	found    found
	snapshot *policy.Snapshot
	bound    bindings
	written  state
	// attached has the indexes of the interfaces with our programs. The value is true if
	// sluice_to_pod is one of them.
	attached map[int]bool
	// tentative has the indexes of interfaces that got a program before their kind was known.
	tentative map[int]bool
	swept     bool   // earlier agents' programs were removed from all interfaces that need no program
	open      string // reason why Covers returns false; empty if the programs check all interfaces
	followed  bool   // value of Covers for which the iptables rules were written; if false, they drop forged sources
	searched  int    // number of passes since the number of ports last changed; see maxSearches
	failed    string // the last error that was logged; empty if the last pass succeeded
	settled   bool   // settle was called since Begin
	unpinned  string // the last reason that was logged why the programs are not pinned; empty if they are
}

// Options configure a Guard.
type Options struct {
	// AllowedMark is the bit that the programs set in the mark of a packet that needs no verdict.
	AllowedMark uint32
	// BPFFS is the mount point of the BPF file system, which is mounted if necessary; empty
	// means bpffs.Default. The programs are pinned there, so that other agents recognise them.
	BPFFS string
	// Logger logs failures that are not returned; nil discards them.
	Logger *slog.Logger
}

// Open loads the programs, which have no effect until Begin. An error means that the kernel does
// not accept the programs, or that the caller lacks privileges.
func Open(opts Options) (*Guard, error) {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	g := &Guard{log: opts.Logger, kick: make(chan struct{}, 1), attached: make(map[int]bool), tentative: make(map[int]bool), written: newState(), bound: bindings{}, open: "the guard has not begun"}
	err := g.load(opts.AllowedMark)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w: run as root, or with the capabilities BPF and NET_ADMIN (before Linux 5.8: SYS_ADMIN); in a container, with a seccomp profile that allows the system call bpf", err)
	}
	if err != nil {
		return nil, fmt.Errorf("load the guard of the pods' interfaces: %w", err)
	}
	if g.programs, err = newRecognizer(opts.BPFFS, g.objs.SluiceFromPod, g.objs.SluiceToPod); err != nil {
		return nil, errors.Join(err, g.objs.Close())
	}
	return g, nil
}

func (g *Guard) load(allowed uint32) error {
	// Kernels before 5.11 count maps as locked memory, whose limit is low. To raise it, they require
	// CAP_SYS_RESOURCE. Without it, the limit may be high enough.
	limit := rlimit.RemoveMemlock()
	spec, err := loadProgram()
	if err != nil {
		return err
	}
	if err := spec.Variables[programVarAllowedMark].Set(allowed); err != nil {
		return err
	}
	if err := spec.LoadAndAssign(&g.objs, nil); err != nil {
		return errors.Join(err, limit)
	}
	return nil
}

// Begin attaches the programs to the node's interfaces, where they replace the programs of an
// earlier agent, and applies a snapshot. After an error, Run tries again.
func (g *Guard) Begin(s *policy.Snapshot) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on, g.snapshot, g.swept, g.settled = true, s, false, false
	clear(g.attached)
	clear(g.tentative)
	// Assume that the iptables rules do not drop forged sources. If they must, because Covers
	// returns false, Run calls OnCovers.
	g.followed = true
	err := g.ensure()
	if err != nil {
		g.failed = err.Error() // the caller logs it
	}
	return err
}

// RulesUpdated records that the iptables rules were written for the given value of Covers.
func (g *Guard) RulesUpdated(covers bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.followed = covers
	g.wake()
}

// Release is called when the agent ends. It detaches this agent's programs from the interfaces
// without a pod. These programs drop frames whose source is an address of this node. Without
// the agent, their list of these addresses would become stale: if another machine got one of
// the addresses, its frames would be dropped.
func (g *Guard) Release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = false
	var errs []error
	for _, p := range g.found.outside {
		if err := g.programs.detachMine(fromPod, p.index); err != nil {
			errs = append(errs, fmt.Errorf("detach the guard from interface %s: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

// Covers reports whether the programs drop packets with a forged source (an address of the node,
// or the packet's own destination) at whichever interface they arrive. If the result "covers" is
// false, the rules must drop such packets, and the result "because" is the reason.
func (g *Guard) Covers() (covers bool, because string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.on && g.open == "", g.open
}

// Publish applies a snapshot. When Publish returns, the programs apply the snapshot at all
// interfaces whose pod was known before. An interface whose pod was not known may follow in a later
// pass of Run.
func (g *Guard) Publish(s *policy.Snapshot) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.snapshot = s
	if !g.on {
		return nil
	}
	unknown := g.bound.unknown(g.found)
	err := g.write()
	if unknown || g.bound.unknown(g.found) {
		g.wake()
	}
	return err
}

// wake makes Run start a pass soon.
func (g *Guard) wake() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// Yield leaves the interfaces to another agent until the next Begin. The programs stay attached.
func (g *Guard) Yield() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = false
}

// Run follows the node's interfaces until ctx ends.
func (g *Guard) Run(ctx context.Context) {
	links, addrs, routes := g.subscribe(ctx)
	timer := time.NewTimer(searchInterval)
	defer timer.Stop()
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	next := time.Now().Add(searchInterval)
	// within(d) moves the next pass forward, so that it begins at most d from now. It never
	// delays the pass, however many events there are.
	within := func(d time.Duration) {
		if at := time.Now().Add(d); at.Before(next) {
			next = at
			timer.Reset(d)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case update, open := <-links:
			if !open {
				links = nil
			} else {
				g.attachEarly(update)
			}
			within(eventDebounce)
		case _, open := <-addrs:
			if !open {
				addrs = nil
			}
			within(eventDebounce)
		case update, open := <-routes:
			if !open {
				routes = nil
			} else if update.Route.Type != unix.RTN_LOCAL {
				continue
			}
			within(eventDebounce)
		case <-g.kick:
			within(publishDebounce)
		case <-check.C:
			if !g.intact() {
				within(0)
			}
		case <-timer.C:
			d := g.reconcile()
			g.reportCovers(ctx)
			next = time.Now().Add(d)
			timer.Reset(d)
		}
	}
}

// subscribe requests notifications of changes of interfaces, addresses and routes.
func (g *Guard) subscribe(ctx context.Context) (links chan netlink.LinkUpdate, addrs chan netlink.AddrUpdate, routes chan netlink.RouteUpdate) {
	links, addrs, routes = make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	ignore := func(error) {} // the next pass finds changes whose notifications are lost
	err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: ignore})
	if err != nil {
		g.log.Warn("no notifications of new interfaces; checking at an interval", "err", err, "interval", searchInterval)
		links = nil
	}
	err = netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: ignore})
	if err != nil {
		g.log.Warn("no notifications of new addresses; checking at an interval", "err", err, "interval", searchInterval)
		addrs = nil
	}
	err = netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: ignore})
	if err != nil {
		g.log.Warn("no notifications of new local routes; checking at an interval", "err", err, "interval", searchInterval)
		routes = nil
	}
	return links, addrs, routes
}

// attachEarly attaches a program to a new interface before its kind is known. Until then, the
// program drops frames with sources of the node or of known pods: such frames are forged, whatever
// the kind of the interface.
func (g *Guard) attachEarly(update netlink.LinkUpdate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	index, kind := int(update.Index), update.Link.Type()
	if update.Header.Type != unix.RTM_NEWLINK || !g.on || g.open != "" || g.has(index) || kind == "bridge" || slices.Contains(g.found.others, index) {
		return
	}
	if g.attachOutside(index) == nil {
		g.attached[index] = false
		g.tentative[index] = true
	}
}

// has reports whether an interface has our programs.
func (g *Guard) has(index int) bool {
	_, has := g.attached[index]
	return has
}

// intact reports whether the programs are still attached to each interface in g.attached. If
// Covers returns true, intact also requires that sluice_from_pod is still the first program of
// each of these interfaces.
func (g *Guard) intact() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on {
		return true
	}
	for index, both := range g.attached {
		if !g.programs.present(index, both) || g.open == "" && !g.programs.first(index) {
			return false
		}
	}
	return true
}

// reportCovers calls OnCovers if the iptables rules were written for another value of Covers than
// the current one.
func (g *Guard) reportCovers(ctx context.Context) {
	g.mu.Lock()
	now, because := g.open == "", g.open
	changed := g.on && now != g.followed
	g.mu.Unlock()
	if !changed {
		return
	}
	if g.OnCovers != nil {
		if err := g.OnCovers(ctx, now); err != nil {
			g.log.Error("cannot update the rules about forged sources; retrying", "guard_covers_all", now, "because", because, "err", err)
			return
		}
	}
	g.log.Info("updated the rules about forged sources", "guard_covers_all", now, "because", because)
	g.mu.Lock()
	g.followed = now
	g.mu.Unlock()
	g.wake()
}

// reconcile runs one pass, and returns the time until the next.
func (g *Guard) reconcile() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on {
		return idleInterval
	}
	err := g.ensure()
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == g.failed:
	case err != nil:
		g.log.Error("the guard of the pods' interfaces is not up to date; retrying", event.GuardFailing.Attr(), "err", err)
	default:
		g.log.Info("the guard of the pods' interfaces is up to date again", event.GuardRecovered.Attr())
	}
	g.failed = text
	if err != nil || g.bound.unknown(g.found) && g.searched < maxSearches {
		return searchInterval
	}
	return idleInterval
}

// Failure returns the reason why the guard is not up to date; empty if it is.
func (g *Guard) Failure() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}

// ensure reads the list of interfaces, and updates programs and maps.
func (g *Guard) ensure() error {
	now, err := survey()
	if err != nil {
		g.open = err.Error()
		return err
	}
	if g.searched++; len(now.ports) != len(g.found.ports) {
		g.searched = 0
	}
	g.found, g.open = now, now.beyond
	g.pin()
	// Write the maps first: without them the programs would let forged packets pass.
	err = errors.Join(g.write(), g.attach())
	if err != nil {
		g.open = err.Error()
	}
	return err
}

// write updates the maps.
func (g *Guard) write() error {
	g.bound = g.bound.next(g.found, g.snapshot)
	return g.objs.write(&g.written, wanted(g.found, g.bound, g.snapshot))
}

// Stats counts dropped frames, and guarded ports: the node's ends of pods' interfaces.
type Stats struct {
	Dropped map[string]uint64 // dropped frames by reason, see Reasons
	Ports   int               // ports whose pod is known
	Unknown int               // ports whose pod is not known
}

// Reasons lists the reasons in Stats, in the order of enum reason in program.c.
var Reasons = []string{"source", "arp", "tag", "router", "tunnel", "link-local", "group", "stray"}

// Stats returns the counters. An error means that the kernel's counters could not be read.
func (g *Guard) Stats() (Stats, error) {
	s := Stats{Dropped: make(map[string]uint64)}
	for i, reason := range Reasons {
		var each []uint64 // the counter of each CPU
		if err := g.objs.Dropped.Lookup(uint32(i), &each); err != nil {
			return s, fmt.Errorf("read the guard's counters: %w", err)
		}
		for _, n := range each {
			s.Dropped[reason] += n
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.found.ports {
		switch {
		case p.tunnel:
		case g.bound.of(p) != nil:
			s.Ports++
		default:
			s.Unknown++
		}
	}
	return s, nil
}

// Close closes the agent's handles of programs and maps. The programs stay attached.
func (g *Guard) Close() error { return g.objs.Close() }

// Remove detaches the programs of all agents from all interfaces, and removes their pins.
func (g *Guard) Remove() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = false
	_, unknown, err := g.programs.detachAll()
	unknown.warn(g.log)
	if err != nil {
		return err
	}
	if _, err := g.programs.pins.removeAll(); err != nil {
		g.log.Warn("pinned programs of the guard may remain", "err", err)
	}
	return nil
}

// addresses is a set of addresses.
type addresses map[netip.Addr]bool
