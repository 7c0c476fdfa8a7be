// Package guard sees that what a pod sends bears the pod's addresses, and that what
// policies cannot be applied to does not reach the pods that they isolate.
//
// A packet is judged by its addresses. So a pod that writes another's address into
// its packets would have the other's rights, or, with an address of no pod, those of
// an address outside the cluster. And there are frames that iptables is not asked
// about, or that bear addresses that are no pod's to the API. Which pod a frame comes
// from, or goes to, is known for certain at one place: the node's end of its
// interface. There two small programs (program.c) look at each frame, in tc's hooks,
// before bridge, routing and iptables and after them. It works with both backends of
// iptables, for routed and for bridged pods. An ordinary frame of a known pod costs one
// look-up, others up to six; a frame of a stream is up to 64 KiB.
//
// # Which pod is behind an interface
//
// The API does not say. Two things on the node do: a host route, which the network
// plugin sets and no pod can change; and where there is none, as on a bridge, the
// addresses of the other end of the pair of interfaces, which the kernel tells across
// network namespaces. A pod with NET_ADMIN can change the latter. So a port that was
// once known to be a pod's remains that pod's for as long as both are there, and
// addresses that two ports claim are neither's.
//
// # What is dropped
//
// From a pod: sources that are not its own, also in ARP and neighbour advertisements;
// router advertisements and redirects; tagged frames; packets for one address in frames
// for all; packets in packets for this node's tunnels, or their other ends. From a pod that
// policies isolate for egress, further: sources that the API does not list, and what has a
// link-local address, but for neighbour discovery, the joining of groups and the search for
// a DHCP server. To one that they isolate
// for ingress: from elsewhere than its node, tagged frames, broadcast and multicast,
// and what has a link-local address, with the same exceptions but the last; and what
// pods send to addresses of it that the API does not list.
//
// To every pod: what is for an address of the node, which policies let pass and a bridge
// would bring wherever its link address says; and messages of neighbour discovery that
// were forwarded.
//
// From an interface whose pod is not known, such as that of a pod that is starting, only
// sources that are known to belong to others are dropped.
//
// # Other interfaces
//
// The rules let pass what comes from the node's own addresses. So such a source must not
// come in from elsewhere, nor one that is the packet's destination, which counts as a pod
// that reaches itself. A chain in PREROUTING that drops both costs 3% of a connection. With
// TCX, the guard does it at all interfaces: at pods' and tunnels', and at all others but
// loopback, bridges and what a bond is made of, whose frames all pass another interface,
// too. The node's copies of its own multicast come in with its own source, and are left
// alone. So are sources that belong to pods, because a load balancer outside may bring such
// packets back. What is the node's is what its local routes say, as it is to the rules.
//
// Where that does not suffice, Covers is false and the rules have the chain: without TCX,
// whose place a qdisc would take, which stops a NIC for milliseconds; behind programs of
// others; and on nodes with set-ups that survey lists.
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/filter/policy"
)

const (
	// searching is how often the node's interfaces are looked at while there is one of
	// which it is not known whose it is, and resting otherwise. A change of an
	// interface is seen at once, that of addresses behind it is not.
	searching = time.Second
	resting   = 10 * time.Second
	// burst is how long events are gathered: a network plugin makes several. What is
	// published is no event; it may only be about a port that is not known yet.
	burst     = 20 * time.Millisecond
	published = 200 * time.Millisecond
	// checkInterval bounds how long a program is missed that others have taken away; the
	// kernel does not tell. A check takes some microseconds for each interface.
	checkInterval = time.Second
	// searches is how often in a row a port is looked at whose pod does not become
	// known: a container may be none.
	searches = 30
)

// Guard is the programs on the node's interfaces. Its methods may be called
// concurrently.
type Guard struct {
	// OnCovers, if set, is called when Covers has changed, until it succeeds. Set it before
	// Run.
	OnCovers func(ctx context.Context, covers bool) error

	log  *slog.Logger
	objs programObjects
	kick chan struct{}

	mu       sync.Mutex
	on       bool // attached, and to be kept so
	found    found
	snapshot *policy.Snapshot
	bound    bindings
	written  state
	attached map[int]bool // by index of the interface
	// tentative are those of attached that were attached before it was clear what they are.
	tentative map[int]bool
	swept     bool   // the rest of the interfaces have none of an agent before
	open      string // why Covers is false; empty if it is true
	told      bool   // what the rules go by
	searched  int    // looks since something changed
	failed    string // what was logged last
}

// Open loads the programs. They do nothing until Begin. The mark is that of packets
// that iptables need not ask about.
func Open(allowed uint32, logger *slog.Logger) (*Guard, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	g := &Guard{log: logger, kick: make(chan struct{}, 1), attached: make(map[int]bool), tentative: make(map[int]bool), written: newState(), bound: bindings{}, open: "it has not begun"}
	if err := g.load(allowed); err != nil {
		return nil, fmt.Errorf("load the guard of the pods' interfaces: %w", err)
	}
	return g, nil
}

func (g *Guard) load(allowed uint32) error {
	// Kernels before 5.11 count maps as locked memory, of which little is allowed.
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	spec, err := loadProgram()
	if err != nil {
		return err
	}
	if err := spec.Variables[programVarAllowedMark].Set(allowed); err != nil {
		return err
	}
	return spec.LoadAndAssign(&g.objs, nil)
}

// Begin puts the programs on all interfaces of pods. Where an agent's before are, they
// take their place.
func (g *Guard) Begin(s *policy.Snapshot) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on, g.snapshot, g.swept = true, s, false
	clear(g.attached)
	clear(g.tentative)
	g.told = true // an agent before may have left the work to the programs that are there
	err := g.look()
	if err != nil {
		g.failed = err.Error() // which the caller logs
	}
	return err
}

// Told says that the rules are now right for what Covers was.
func (g *Guard) Told(covers bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.told = covers
	g.wake()
}

// Release takes this agent's programs off the interfaces that lead to no pod. What they
// know grows old without the agent: another machine may get an address of this node.
func (g *Guard) Release() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = false
	info, err := g.objs.SluiceFromPod.Info()
	if err != nil {
		return fmt.Errorf("take the guard off: %w", err)
	}
	id, _ := info.ID()
	var errs []error
	for _, p := range g.found.outside {
		if ids, _ := fromPod.attached(p.index); !slices.Contains(ids, id) {
			continue
		}
		if err := fromPod.detach(p.index, id); err != nil && !gone(err) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("take the guard off interface %s: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

// Covers reports whether the programs drop what comes in anywhere with a source that is the
// node's own, or its receiver's. Otherwise it says why they do not, and the rules must.
func (g *Guard) Covers() (covers bool, because string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.on && g.open == "", g.open
}

// Publish applies a snapshot. When Publish returns, the snapshot is in force for the
// ports whose pods are known.
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

// wake has Run look soon.
func (g *Guard) wake() {
	select {
	case g.kick <- struct{}{}:
	default:
	}
}

// Yield leaves the interfaces to another agent, until Begin.
func (g *Guard) Yield() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.on = false
}

// Run follows the node's interfaces until ctx ends.
func (g *Guard) Run(ctx context.Context) {
	links, addrs, routes := g.subscribe(ctx)
	timer := time.NewTimer(searching)
	defer timer.Stop()
	check := time.NewTicker(checkInterval)
	defer check.Stop()
	next := time.Now().Add(searching)
	// A look is brought forward, and never put off, however much happens.
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
				g.early(update)
			}
			within(burst)
		case _, open := <-addrs:
			if !open {
				addrs = nil
			}
			within(burst)
		case update, open := <-routes:
			if !open {
				routes = nil
			} else if update.Route.Type != unix.RTN_LOCAL {
				continue
			}
			within(burst)
		case <-g.kick:
			within(published)
		case <-check.C:
			if !g.intact() {
				within(0)
			}
		case <-timer.C:
			d := g.again()
			g.tell(ctx)
			next = time.Now().Add(d)
			timer.Reset(d)
		}
	}
}

// subscribe has the kernel tell of changes of interfaces, addresses and routes.
func (g *Guard) subscribe(ctx context.Context) (links chan netlink.LinkUpdate, addrs chan netlink.AddrUpdate, routes chan netlink.RouteUpdate) {
	links, addrs, routes = make(chan netlink.LinkUpdate, 64), make(chan netlink.AddrUpdate, 64), make(chan netlink.RouteUpdate, 64)
	ignore := func(error) {} // what was missed is seen with the next look
	err := netlink.LinkSubscribeWithOptions(links, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: ignore})
	if err != nil {
		g.log.Warn("new interfaces are seen late", "err", err, "every", searching)
		links = nil
	}
	err = netlink.AddrSubscribeWithOptions(addrs, ctx.Done(), netlink.AddrSubscribeOptions{ErrorCallback: ignore})
	if err != nil {
		g.log.Warn("new addresses of this node are seen late", "err", err, "every", searching)
		addrs = nil
	}
	err = netlink.RouteSubscribeWithOptions(routes, ctx.Done(), netlink.RouteSubscribeOptions{ErrorCallback: ignore})
	if err != nil {
		g.log.Warn("new local routes of this node are seen late", "err", err, "every", searching)
		routes = nil
	}
	return links, addrs, routes
}

// early puts the program on a new interface before it is clear what that is: whatever it
// turns out to be, sources that are others' or the node's must not come in there.
func (g *Guard) early(update netlink.LinkUpdate) {
	g.mu.Lock()
	defer g.mu.Unlock()
	index, kind := int(update.Index), update.Link.Type()
	if update.Header.Type != unix.RTM_NEWLINK || !g.on || g.open != "" || g.attached[index] || kind == "bridge" || slices.Contains(g.found.others, index) {
		return
	}
	if g.objs.attachOutside(index) == nil {
		g.attached[index] = true
		g.tentative[index] = true
	}
}

// intact reports whether all programs are where they were attached.
func (g *Guard) intact() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on {
		return true
	}
	for index := range g.attached {
		if !present(index) || g.open == "" && !first(index) {
			return false
		}
	}
	return true
}

// tell tells whether the programs cover all interfaces, if that has changed.
func (g *Guard) tell(ctx context.Context) {
	g.mu.Lock()
	now, because := g.open == "", g.open
	changed := g.on && now != g.told
	g.mu.Unlock()
	if !changed {
		return
	}
	if g.OnCovers != nil {
		if err := g.OnCovers(ctx, now); err != nil {
			g.log.Error("the rules about forged sources are not right; trying on", "guard_covers_all", now, "because", because, "err", err)
			return
		}
	}
	g.log.Info("forged sources are dropped in another place", "by_guard_alone", now, "because", because)
	g.mu.Lock()
	g.told = now
	g.mu.Unlock()
	g.wake()
}

// again looks once more, and says when to do so next.
func (g *Guard) again() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.on {
		return resting
	}
	err := g.look()
	text := ""
	if err != nil {
		text = err.Error()
	}
	switch {
	case text == g.failed:
	case err != nil:
		g.log.Error("the guard of the pods' interfaces is not up to date; trying on", "err", err)
	default:
		g.log.Info("the guard of the pods' interfaces is up to date again")
	}
	g.failed = text
	if err != nil || g.bound.unknown(g.found) && g.searched < searches {
		return searching
	}
	return resting
}

// Failure says why the guard is not up to date; empty if it is.
func (g *Guard) Failure() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.failed
}

// look reads what interfaces there are, and brings programs and maps up to date.
func (g *Guard) look() error {
	now, err := survey()
	if err != nil {
		g.open = err.Error()
		return err
	}
	if g.searched++; len(now.ports) != len(g.found.ports) {
		g.searched = 0
	}
	g.found, g.open = now, now.beyond
	// First what the programs are to know, or they would let pass what they should not.
	err = errors.Join(g.write(), g.attach())
	if err != nil {
		g.open = err.Error()
	}
	return err
}

// attach puts the programs on the interfaces that lack them.
func (g *Guard) attach() error {
	var errs []error
	there := make(map[int]bool)
	put := func(p port, attach func() error) {
		there[p.index] = true
		if !g.attached[p.index] || g.tentative[p.index] || !present(p.index) {
			err := attach()
			switch {
			case errors.Is(err, errNoTCX):
				g.open = err.Error()
				return
			case err != nil && gone(err):
				return
			case err != nil:
				errs = append(errs, fmt.Errorf("guard interface %s: %w", p.name, err))
				return
			}
			g.attached[p.index] = true
			delete(g.tentative, p.index)
		}
		if g.open == "" && !first(p.index) && present(p.index) { // the interface may be gone
			g.open = fmt.Sprintf("the guard is not the first of the programs that TCX attaches to %s", p.name)
		}
	}
	for _, p := range g.found.ports {
		put(p, func() error { return g.objs.attach(p) })
	}
	if g.open == "" {
		for _, p := range g.found.outside {
			put(p, func() error { return g.objs.attachOutside(p.index) })
		}
	} else if g.told {
		return errors.Join(errs...) // the programs stay until the rules are there
	}
	return errors.Join(append(errs, g.detach(there))...)
}

// detach takes the programs off interfaces that are to have none, and at first those of
// agents before.
func (g *Guard) detach(wanted map[int]bool) error {
	var errs []error
	unwanted := slices.Collect(maps.Keys(g.attached))
	if !g.swept {
		unwanted = slices.Concat(unwanted, g.found.others, indexes(g.found.outside))
	}
	for _, index := range unwanted {
		if wanted[index] {
			continue
		}
		for _, s := range []side{fromPod, toPod} {
			if _, err := s.remove(index); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("take the guard off interface %d: %w", index, err))
			}
		}
		delete(g.attached, index)
		delete(g.tentative, index)
	}
	g.swept = len(errs) == 0
	return errors.Join(errs...)
}

func indexes(ports []port) (all []int) {
	for _, p := range ports {
		all = append(all, p.index)
	}
	return all
}

// write brings the maps up to date.
func (g *Guard) write() error {
	g.bound = g.bound.next(g.found, g.snapshot)
	return g.objs.write(&g.written, wanted(g.found, g.bound, g.snapshot))
}

// Stats are how many frames were dropped, by reason, and how many ports are guarded.
type Stats struct {
	Dropped map[string]uint64
	Ports   int // that are known to be pods'
	Unknown int // of which it is not known whose they are
}

// Reasons are those of Stats, in the order of program.c.
var Reasons = []string{"source", "arp", "tag", "router", "tunnel", "link-local", "group", "stray"}

// Stats says what was dropped.
func (g *Guard) Stats() (Stats, error) {
	s := Stats{Dropped: make(map[string]uint64)}
	for i, reason := range Reasons {
		var each []uint64 // by CPU
		if err := g.objs.Dropped.Lookup(uint32(i), &each); err != nil {
			return s, fmt.Errorf("count what the guard has dropped: %w", err)
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

// Close closes the agent's handles of the programs and maps; the programs stay attached.
func (g *Guard) Close() error { return g.objs.Close() }

// Remove takes the programs off all interfaces.
func (g *Guard) Remove() error {
	g.Yield()
	_, err := RemoveTraces()
	return err
}

// addresses is a set.
type addresses map[netip.Addr]bool
