package kernel

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"sluice/filter"
	"sluice/filter/policy"
)

// endpoint is the struct of that name in program.c.
type endpoint struct {
	Epoch, Flags uint64
}

const (
	isolatedEgress  = 1
	isolatedIngress = 2
	isNode          = 4
	closedEgress    = 8
	closedIngress   = 16
)

func endpointOf(e *policy.Endpoint) endpoint {
	out := endpoint{Epoch: e.Epoch()}
	for _, one := range [...]struct {
		is   bool
		flag uint64
	}{
		{e.IsNode(), isNode},
		{e.Isolation(filter.Egress) != nil, isolatedEgress},
		{e.Isolation(filter.Ingress) != nil, isolatedIngress},
		{e.Closed(filter.Egress), closedEgress},
		{e.Closed(filter.Ingress), closedIngress},
	} {
		if one.is {
			out.Flags |= one.flag
		}
	}
	return out
}

// tables are two tables of endpoints. Programs read one, and the other is written
// before they change places; so each change is written twice.
type tables struct {
	read, spare *ebpf.Map
	room        int
}

func (t *tables) close() error {
	if t == nil {
		return nil
	}
	return errors.Join(t.read.Close(), t.spare.Close())
}

// Publish brings the endpoints up to those of a snapshot, of which changes says
// how it differs from the one of the call before. When it returns, no packet is
// judged by an older snapshot, and none that was is still in the rules.
//
// It takes about 2 µs for each change, and the time of an RCU grace period, which
// is some 10 ms. With an error the cache answers nothing until a later Publish
// succeeds; if the error is ErrOpen it could not be closed either.
func (c *Cache) Publish(s *policy.Snapshot, changes policy.Changes) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off.Load() || c.lacks != nil || c.tables != nil && len(changes) == 0 {
		return nil
	}
	began := time.Now()
	if err := c.publish(s, changes); err != nil {
		err = fmt.Errorf("bring the kernel's flow cache up to date: %w", explain(err))
		return errors.Join(err, c.shut())
	}
	c.published.Store(int64(time.Since(began)))
	return nil
}

func (c *Cache) publish(s *policy.Snapshot, changes policy.Changes) error {
	if c.tables == nil || s.Counts().Endpoints > c.tables.room {
		return c.rebuild(s)
	}
	t := c.tables
	if err := write(t.spare, s, slices.Values(changes)); err != nil {
		return err
	}
	if err := c.use(t.spare); err != nil {
		return err
	}
	t.read, t.spare = t.spare, t.read
	if err := write(t.spare, s, slices.Values(changes)); err != nil {
		// The one that is read is right. The next change makes new ones.
		c.log.Warn("a spare table of the kernel's flow cache could not be written; making a new one", "err", err)
		c.tables = nil
		return t.close()
	}
	return nil
}

// use has the programs read a table, and returns when none reads another.
func (c *Cache) use(table *ebpf.Map) error {
	if err := c.objs.Endpoints.Update(uint32(0), table, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("replace the table of endpoints: %w", err)
	}
	return nil
}

// rebuild makes new tables with room to grow.
func (c *Cache) rebuild(s *policy.Snapshot) error {
	spec := c.made.Copy()
	for int(spec.MaxEntries) < 2*s.Counts().Endpoints {
		spec.MaxEntries *= 2
	}
	next := &tables{room: int(spec.MaxEntries)}
	for _, table := range []**ebpf.Map{&next.read, &next.spare} {
		var err error
		if *table, err = ebpf.NewMap(spec); err == nil {
			err = write(*table, s, addresses(s))
		}
		if err != nil {
			return errors.Join(fmt.Errorf("make a table of %d endpoints: %w", s.Counts().Endpoints, err), next.close())
		}
	}
	if err := c.use(next.read); err != nil {
		return errors.Join(err, next.close())
	}
	before := c.tables
	c.tables = next
	return before.close()
}

// addresses are all that a snapshot knows.
func addresses(s *policy.Snapshot) iter.Seq[netip.Addr] {
	return func(yield func(netip.Addr) bool) {
		for a := range s.Endpoints() {
			if !yield(a) {
				return
			}
		}
	}
}

// write writes who has some addresses into a table that no program reads.
func write(table *ebpf.Map, s *policy.Snapshot, addrs iter.Seq[netip.Addr]) error {
	for a := range addrs {
		var err error
		if e := s.Endpoint(a); e != nil {
			err = table.Update(a.As16(), endpointOf(e), ebpf.UpdateAny)
		} else if err = table.Delete(a.As16()); errors.Is(err, ebpf.ErrKeyNotExist) {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("write who has %s: %w", a, err)
		}
	}
	return nil
}

// ErrOpen says that the cache may answer by a snapshot that is no longer in force.
var ErrOpen = errors.New("the kernel's flow cache could not be closed")

// shut takes the endpoints away, without which the programs say nothing.
func (c *Cache) shut() error {
	if err := c.objs.Endpoints.Delete(uint32(0)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("%w: %w", ErrOpen, err)
	}
	t := c.tables
	c.tables = nil
	return t.close()
}
