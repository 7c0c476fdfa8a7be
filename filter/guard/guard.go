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
package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netlink"

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
	// searches is how often in a row a port is looked at whose pod does not become
	// known: a container may be none.
	searches = 30
)

// Guard is the programs on the node's interfaces. Its methods may be called
// concurrently.
type Guard struct {
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
	checked  time.Time    // when they were last seen to be there
	searched int          // looks since something changed
	failed   string       // what was logged last
}

// Open loads the programs. They do nothing until Begin. The mark is that of packets
// that iptables need not ask about.
func Open(allowed uint32, logger *slog.Logger) (*Guard, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	g := &Guard{log: logger, kick: make(chan struct{}, 1), attached: make(map[int]bool), written: newState(), bound: bindings{}}
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
	g.on, g.snapshot = true, s
	clear(g.attached)
	return g.look()
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
	events := make(chan netlink.LinkUpdate, 64)
	err := netlink.LinkSubscribeWithOptions(events, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}})
	if err != nil {
		g.log.Warn("new interfaces are seen late", "err", err, "every", searching)
		events = nil
	}
	timer := time.NewTimer(searching)
	defer timer.Stop()
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
		case _, open := <-events:
			if !open {
				events = nil
			}
			within(burst)
		case <-g.kick:
			within(published)
		case <-timer.C:
			d := g.again()
			next = time.Now().Add(d)
			timer.Reset(d)
		}
	}
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
		return err
	}
	if g.searched++; len(now.ports) != len(g.found.ports) {
		g.searched = 0
	}
	g.found = now
	// First what the programs are to know, or they would let pass what they should not.
	return errors.Join(g.write(), g.attach())
}

// attach puts the programs on the interfaces that lack them.
func (g *Guard) attach() error {
	there := make(map[int]bool)
	var errs []error
	check := time.Since(g.checked) >= resting
	if check {
		g.checked = time.Now()
	}
	for _, p := range g.found.ports {
		there[p.index] = true
		if g.attached[p.index] && !(check && !present(p.index)) {
			continue
		}
		if err := g.objs.attach(p); err != nil {
			if !gone(err) {
				errs = append(errs, fmt.Errorf("guard interface %s: %w", p.name, err))
			}
			continue
		}
		g.attached[p.index] = true
	}
	for index := range g.attached {
		if !there[index] {
			delete(g.attached, index)
		}
	}
	return errors.Join(errs...)
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
