package bpf

import (
	"errors"
	"fmt"
	"iter"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sluice/filter"
	"sluice/filter/policy"
)

// endpoint is a value in a table of endpoints, laid out as struct endpoint in program.c.
type endpoint struct {
	ID                       policy.ID
	Flags, Device, Host, Pad uint32
}

const (
	isolatedEgress  = 1
	isolatedIngress = 2
	isNode          = 4
	closedEgress    = 8
	closedIngress   = 16
	shared          = 64
	askToNode       = 128
	rejectEgress    = 256
	rejectIngress   = 512
)

// endpointOf returns the table entry of an address with an endpoint. device is the index of the
// interface that leads only to this pod; 0 if there is none. A pod of this node without such an
// interface shares one with other pods. host is the number of the pod's node.
func endpointOf(s *policy.Snapshot, e *policy.Endpoint, id policy.ID, device, host uint32) endpoint {
	out := endpoint{ID: id, Device: device, Host: host}
	closedOut, rejectOut := closes(e, filter.Egress)
	closedIn, rejectIn := closes(e, filter.Ingress)
	for _, one := range [...]struct {
		is   bool
		flag uint32
	}{
		{e.IsNode(), isNode},
		{e.Effect(filter.Egress) != policy.Open, isolatedEgress},
		{e.Effect(filter.Ingress) != policy.Open, isolatedIngress},
		{closedOut, closedEgress},
		{closedIn, closedIngress},
		{rejectOut, rejectEgress},
		{rejectIn, rejectIngress},
		{device == 0 && isLocal(s, e), shared},
		{e.EffectToNode() != policy.Open, askToNode},
	} {
		if one.is {
			out.Flags |= one.flag
		}
	}
	return out
}

// closes reports whether the programs may deny every packet of an endpoint in a direction, and
// whether they reject it. If drop or reject depends on the packet, closed is false, and the
// programs need a verdict.
func closes(e *policy.Endpoint, d filter.Direction) (closed, rejects bool) {
	if e.Effect(d) != policy.Closed {
		return false, false
	}
	rejects, known := e.ClosedDenial(d)
	return known, rejects
}

// isLocal reports whether a pod runs on this node.
func isLocal(s *policy.Snapshot, e *policy.Endpoint) bool {
	return slices.ContainsFunc(e.Hosts(), func(host netip.Addr) bool { return s.Endpoint(host).IsNode() })
}

// tables are two tables of endpoints: the one that the programs read, and a spare. Publish writes
// changes into the spare, swaps the two, and writes the same changes into the new spare.
type tables struct {
	read, spare *ebpf.Map
	room        int // number of endpoints that fit into each table; -1 if spare is not complete
}

func (t *tables) close() error {
	if t == nil {
		return nil
	}
	return errors.Join(t.read.Close(), t.spare.Close())
}

// Publish updates the endpoints and prefixes to those of a snapshot; changes lists the addresses
// whose endpoints differ from those of the last call's snapshot. When Publish returns, no packet
// is decided by an older snapshot, and every packet that an older snapshot has decided has left
// the iptables rules.
//
// Publish takes about 1.3 µs for each change, and an RCU grace period of some 10 ms. After an
// error the cache is disabled until a later Publish succeeds. If the error is
// ErrStillAnswering, the cache could not be disabled either.
func (c *Cache) Publish(s *policy.Snapshot, changes policy.Changes) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped.Load() {
		return nil
	}
	set, removed := c.prefixChanges(s)
	if c.tables != nil && len(changes)+len(set)+len(removed) == 0 && c.snapshot.SameRanges(s) {
		c.snapshot = s
		return nil
	}
	began := time.Now()
	if err := c.publish(s, changes, set, removed); err != nil {
		err = fmt.Errorf("update the kernel's flow cache: %w", withHint(err))
		return errors.Join(err, c.disable())
	}
	c.snapshot = s
	c.published.Store(int64(time.Since(began)))
	return nil
}

// SetDevices sets the interfaces that lead to only one pod of this node. devices maps an address
// of the pod to the index of its interface. When a pod ends, its interface vanishes before the
// API reports the end. So an address that is missing in devices keeps the interface of an
// earlier call for as long as a pod has the address.
//
// After an error the cache is disabled until a later Publish succeeds. If the error is
// ErrStillAnswering, the cache could not be disabled either.
func (c *Cache) SetDevices(devices map[netip.Addr]uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for a := range c.devices {
		if _, ok := devices[a]; !ok && (c.snapshot == nil || c.snapshot.Endpoint(a) == nil) {
			delete(c.devices, a)
		}
	}
	var changed []netip.Addr
	for a, device := range devices {
		if c.devices[a] != device {
			c.devices[a] = device
			changed = append(changed, a)
		}
	}
	if c.tables == nil || c.snapshot == nil {
		return nil // the next Publish writes the devices
	}
	// Change the entries in place, even in the table that the programs read. This is safe,
	// because the device of an entry never changes a verdict: it decides only whether the
	// programs answer a packet or leave it to user space.
	for _, table := range []*ebpf.Map{c.tables.read, c.tables.spare} {
		unknown := func(a netip.Addr) bool { return c.snapshot.Endpoint(a) == nil }
		if err := c.write(table, c.snapshot, owners(c.snapshot, slices.Values(slices.DeleteFunc(slices.Clone(changed), unknown)))); err != nil {
			return errors.Join(fmt.Errorf("update the pods' interfaces in the kernel's flow cache: %w", withHint(err)), c.disable())
		}
	}
	return nil
}

// Attend extends the time until which the kernel answers for pods that share an interface. It
// must be called at shorter intervals than Options.Unattended. After an error the old deadline
// holds.
func (c *Cache) Attend() error {
	until := uint64(math.MaxUint64)
	if c.opts.Unattended > 0 {
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
			return fmt.Errorf("read the clock: %w", err)
		}
		until = uint64(now.Nano()) + uint64(c.opts.Unattended)
	}
	if err := c.objs.Deadline.Update(uint32(0), until, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("extend the deadline of the kernel's flow cache: %w", withHint(err))
	}
	return nil
}

// prefixChanges returns how the prefixes that policies name differ from those of the last snapshot.
func (c *Cache) prefixChanges(s *policy.Snapshot) (set []policy.PrefixID, removed []netip.Prefix) {
	if c.tables == nil {
		return nil, nil // publish writes all prefixes
	}
	return s.PrefixChanges(c.snapshot)
}

// publish changes the map prefixes in place, before and after it replaces the table of endpoints. For
// a moment, the programs see an old and a new ID together, and no verdict of such a pair is wrong:
//
//   - A new prefix is added before the tables are swapped. No rule of the old endpoints names it, so
//     that a verdict between one of them and the new prefix is that of the old state.
//   - A prefix that policies name no longer is removed after that. No rule of the new endpoints names
//     it, so that a verdict between one of them and the prefix is that of the new state.
//
// In the other order, a program could apply a verdict about the addresses around a prefix to those in
// it. As to the rest of an entry: an address is pending, or the node of a pod, from before the swap
// to after it. If it becomes the node of another pod, it is that of several pods in between.
func (c *Cache) publish(s *policy.Snapshot, changes policy.Changes, set []policy.PrefixID, removed []netip.Prefix) error {
	owned := slices.AppendSeq(make([]owner, 0, len(changes)), owners(s, slices.Values(changes)))
	all := c.planPrefixes(s, owned, set, removed)
	if c.tables == nil { // no program reads the prefixes: make room first
		if err := c.prefixes.remove(all); err != nil {
			return err
		}
	}
	if err := c.prefixes.begin(all); err != nil {
		return err
	}
	if err := c.publishEndpoints(s, owned); err != nil {
		return err
	}
	return c.prefixes.end(all)
}

// planPrefixes counts the hosts of all pods, and returns the changes of the map prefixes. If the
// programs read no table of endpoints, it compares the map with the whole snapshot.
func (c *Cache) planPrefixes(s *policy.Snapshot, owned []owner, set []policy.PrefixID, removed []netip.Prefix) edits {
	t, before := c.prefixes, previous{c.snapshot, c.prefixes.pending}
	var named, others []netip.Prefix
	if c.tables == nil {
		before.snapshot = nil
		t.hosts = newHosts(t.hosts.last)
		for a, e := range s.Endpoints() {
			t.hosts.use(a, e.Hosts())
		}
		named = append(named, allIPv4)
		for p := range s.Prefixes() {
			named = append(named, p)
		}
		for p := range t.written.All() {
			others = append(others, p)
		}
	} else {
		named = slices.Clone(removed)
		for _, p := range set {
			named = append(named, p.Prefix)
		}
		for _, o := range owned {
			t.hosts.move(o.addr, c.snapshot.Endpoint(o.addr).Hosts(), o.endpoint.Hosts())
		}
	}
	for a := range t.hosts.take() {
		others = append(others, netip.PrefixFrom(a, a.BitLen()))
	}
	switch {
	case c.tables == nil:
		t.setPending(slices.Concat(s.PodRanges(), c.starting))
		for p := range t.ranges {
			others = append(others, p)
		}
	case !c.snapshot.SameRanges(s): // rarely: 1,000 ranges take 0.2 ms
		others = append(others, t.setPending(slices.Concat(s.PodRanges(), c.starting))...)
	}
	return t.plan(s, before, named, others)
}

func (c *Cache) publishEndpoints(s *policy.Snapshot, owned []owner) error {
	if c.tables == nil || s.Counts().Endpoints > c.tables.room {
		return c.rebuild(s)
	}
	t := c.tables
	if err := c.owned.add(owning(owned)); err != nil {
		return err
	}
	if err := c.write(t.spare, s, slices.Values(owned)); err != nil {
		return err
	}
	if err := c.swap(t.spare); err != nil {
		return err
	}
	t.read, t.spare = t.spare, t.read
	if err := c.write(t.spare, s, slices.Values(owned)); err != nil {
		// This is not an error of Publish: the table that the programs read is complete, and
		// only the spare one is not. The next Publish makes two new tables.
		c.log.Warn("a spare table of the kernel's flow cache could not be written; making a new one", "err", err)
		t.room = -1
	}
	return c.owned.clean(s.Counts().Endpoints, addresses(s))
}

// swap makes the programs read a table, and returns when no program reads the previous one.
func (c *Cache) swap(table *ebpf.Map) error {
	began := time.Now()
	defer func() { c.waited.Store(int64(time.Since(began))) }()
	if err := c.objs.Endpoints.Update(uint32(0), table, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("replace the table of endpoints: %w", err)
	}
	return nil
}

// rebuild makes new tables, with room for at least twice the endpoints.
func (c *Cache) rebuild(s *policy.Snapshot) error {
	spec := c.endpointsSpec.Copy()
	for int(spec.MaxEntries) < 2*s.Counts().Endpoints {
		spec.MaxEntries *= 2
	}
	if err := c.owned.add(addresses(s)); err != nil {
		return err
	}
	next := &tables{room: int(spec.MaxEntries)}
	for _, table := range []**ebpf.Map{&next.read, &next.spare} {
		var err error
		if *table, err = ebpf.NewMap(spec); err == nil {
			err = c.write(*table, s, owners(s, addresses(s)))
		}
		if err != nil {
			return errors.Join(fmt.Errorf("make a table of %d endpoints: %w", s.Counts().Endpoints, err), next.close())
		}
	}
	if err := c.swap(next.read); err != nil {
		return errors.Join(err, next.close())
	}
	before := c.tables
	c.tables = next
	return before.close()
}

// addresses returns the addresses of all endpoints of a snapshot.
func addresses(s *policy.Snapshot) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := range s.Endpoints() {
			if !yield(a) {
				return
			}
		}
	}
}

// owner is the owner of an address in a snapshot, nil if there is none, and the ID of the address.
type owner struct {
	addr     netip.Addr
	endpoint *policy.Endpoint
	id       policy.ID
}

// owning yields the addresses in the list that have an owner.
func owning(owned []owner) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for _, o := range owned {
			if o.endpoint != nil && !yield(o.addr) {
				return
			}
		}
	}
}

// owners yields the owners of some addresses. Looking them up takes a tenth of Publish, which therefore
// does it once, and not for each table.
func owners(s *policy.Snapshot, addrs iter.Seq[netip.Addr]) iter.Seq[owner] {
	return func(yield func(owner) bool) {
		for a := range addrs {
			if e, id := s.Identify(a); !yield(owner{a, e, id}) {
				return
			}
		}
	}
}

// table has the methods of [ebpf.Map] that write entries.
type table interface {
	BatchUpdate(keys, values any, opts *ebpf.BatchOptions) (int, error)
	Update(key, value any, flags ebpf.MapUpdateFlags) error
	Delete(key any) error
}

// write writes the endpoints of some addresses into a table, and deletes the entries of addresses
// without an endpoint.
func (c *Cache) write(in table, s *policy.Snapshot, owned iter.Seq[owner]) error {
	var b batch
	for o := range owned {
		a, e := o.addr, o.endpoint
		if e != nil {
			b.add(a, endpointOf(s, e, o.id, c.devices[a], c.prefixes.hosts.number(a, e.Hosts())))
		} else if err := in.Delete(a.As16()); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("delete the endpoint of %s: %w", a, err)
		}
		if len(b.addrs) == maxBatch {
			if err := b.write(in); err != nil {
				return err
			}
		}
	}
	return b.write(in)
}

// maxBatch is the greatest number of entries that one system call writes. With a system call for
// each entry, Publish took 2.6 times as long.
const maxBatch = 1024

// batch holds entries of a table of endpoints that are written together.
type batch struct {
	addrs     [][16]byte
	endpoints []endpoint
}

func (b *batch) add(a netip.Addr, e endpoint) {
	b.addrs, b.endpoints = append(b.addrs, a.As16()), append(b.endpoints, e)
}

// write writes the entries into a table and empties the batch.
func (b *batch) write(in table) error {
	if len(b.addrs) == 0 {
		return nil
	}
	if err := put(in, b.addrs, b.endpoints); err != nil {
		return fmt.Errorf("write %d endpoints, from that of %s: %w", len(b.addrs), netip.AddrFrom16(b.addrs[0]).Unmap(), err)
	}
	b.addrs, b.endpoints = b.addrs[:0], b.endpoints[:0]
	return nil
}

// put writes entries into a map. A kernel without batches (Linux before 5.6) gets them one by one.
func put[K, V any](in table, keys []K, values []V) error {
	if len(keys) > 1 {
		_, err := in.BatchUpdate(keys, values, nil)
		if !errors.Is(err, ebpf.ErrNotSupported) {
			return err
		}
	}
	for i := range keys {
		if err := in.Update(keys[i], values[i], ebpf.UpdateAny); err != nil {
			return err
		}
	}
	return nil
}

// ErrStillAnswering means that the cache may still answer by an outdated snapshot.
var ErrStillAnswering = errors.New("the kernel's flow cache could not be disabled")

// disable removes the table of endpoints. Without a table the programs match nothing.
func (c *Cache) disable() error {
	if err := c.objs.Endpoints.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("%w: %w", ErrStillAnswering, err)
	}
	t := c.tables
	c.tables = nil
	return t.close()
}
