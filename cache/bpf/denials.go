package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"sluice/filter"
)

// Denial counts the packets of a flow that the kernel has denied without the agent.
type Denial struct {
	// Key is the key of the packets. If the transport header of a packet could not be read,
	// Transport is Opaque, and the protocol may be 0.
	Key         filter.Key
	SrcPort     uint16 // of the first packet; 0 if the packet has no port or it could not be read
	Packets     uint64
	First, Last time.Time // zero if the programs cannot read the clock, as before Linux 5.8
	Rejected    bool      // whether the last packet was rejected
}

// Event is a packet that the kernel has denied without the agent. It must not be used after the function
// that gets it has returned.
type Event struct {
	Key      filter.Key // as in Denial
	SrcPort  uint16
	Time     time.Time
	Rejected bool
}

// LeftOut counts the denied packets of which Watch has reported no Event, although it was running.
type LeftOut struct {
	BeyondRate uint64 // beyond the rate of their source
	NoRoom     uint64 // Watch did not read fast enough
}

// denial is a value of the map denials, laid out as struct denial in program.c.
type denial struct {
	Packets, First, Last uint64
	Source               uint16
	Rejected             uint8
	_                    [5]uint8
}

// The layout of struct event in program.c.
const (
	eventKey      = 8
	eventSource   = eventKey + int(unsafe.Sizeof(filter.Key{}))
	eventRejected = eventSource + 2
	eventLen      = eventRejected + 2
)

// Denials returns the flows that the kernel has denied last, some 4,000 at most, in no particular order.
// If the kernel denies packets at the same time, a flow may be missing or listed twice.
func (c *Cache) Denials() ([]Denial, error) {
	clock, err := readClock()
	if err != nil {
		return nil, err
	}
	var all []Denial
	var key filter.Key
	var value denial
	for flows := c.objs.Denials.Iterate(); ; {
		if !flows.Next(&key, &value) {
			if err := flows.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
				return nil, fmt.Errorf("read what the kernel's flow cache has denied: %w", err)
			}
			return all, nil
		}
		all = append(all, Denial{
			Key: key, SrcPort: value.Source, Packets: value.Packets,
			First: clock.at(value.First), Last: clock.at(value.Last), Rejected: value.Rejected != 0,
		})
	}
}

// Watch calls begun, and then report for each packet that the kernel denies without the agent, until ctx
// ends. It reports at most perSecond packets of one source within a second. Only one Watch may run at a
// time. While none runs, the kernel makes no events. Watch returns an error if the kernel has no ring
// buffers, as before Linux 5.8.
func (c *Cache) Watch(ctx context.Context, perSecond uint32, begun func(), report func(*Event)) error {
	if c.old {
		return errors.New("watch what the kernel's flow cache denies: the kernel has no ring buffers, as before Linux 5.8")
	}
	events, err := ringbuf.NewReader(c.objs.Events)
	if err != nil {
		return fmt.Errorf("watch what the kernel's flow cache denies: %w", withHint(err))
	}
	// Close interrupts a read, which the reader's SetDeadline does not.
	stop := context.AfterFunc(ctx, func() { _ = events.Close() })
	if err = c.setWatch(perSecond); err == nil {
		begun()
		err = c.report(ctx, events, report)
	}
	stop()
	return errors.Join(err, c.setWatch(0), events.Close())
}

// report calls the function report for each event, until the reader is closed.
func (c *Cache) report(ctx context.Context, events *ringbuf.Reader, report func(*Event)) error {
	clock, err := readClock()
	if err != nil {
		return err
	}
	var record ringbuf.Record
	var event Event // reused for all events, because it escapes to the heap
	for {
		switch err := events.ReadInto(&record); {
		case errors.Is(err, ringbuf.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("read what the kernel's flow cache denies: %w", err)
		case len(record.RawSample) < eventLen:
			return fmt.Errorf("read what the kernel's flow cache denies: an event of %d bytes, want %d", len(record.RawSample), eventLen)
		}
		event = parseEvent(record.RawSample, clock)
		if report(&event); record.Remaining == 0 {
			pause(ctx)
		}
	}
}

// gatherTime is how long Watch waits, after it has read all events, before it reads again. The kernel
// wakes Watch up for the first event after Watch has read all others, and for no further ones until Watch
// has read again. A wake-up takes the kernel ten times as long as an event, so fewer of them save time.
const gatherTime = 5 * time.Millisecond

// pause waits for gatherTime.
func pause(ctx context.Context) {
	wait := time.NewTimer(gatherTime)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
	}
}

func parseEvent(b []byte, clock clock) Event {
	e := Event{Time: clock.at(binary.NativeEndian.Uint64(b)), SrcPort: binary.NativeEndian.Uint16(b[eventSource:]), Rejected: b[eventRejected] != 0}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&e.Key)), eventSource-eventKey), b[eventKey:])
	return e
}

func (c *Cache) setWatch(perSecond uint32) error {
	if err := c.objs.Watch.Update(uint32(0), perSecond, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("set what the kernel's flow cache reports: %w", withHint(err))
	}
	return nil
}

// LeftOut returns the counts since Open.
func (c *Cache) LeftOut() (out LeftOut, err error) {
	for i, sum := range []*uint64{&out.BeyondRate, &out.NoRoom} {
		if *sum, err = sumOf(c.objs.LeftOut, uint32(i)); err != nil {
			return LeftOut{}, err
		}
	}
	return out, nil
}

// clock converts times of the kernel's monotonic clock to times of day. A new clock must be read after the
// time of day was set, because this does not change the monotonic clock.
type clock struct {
	zero time.Time // when the monotonic clock was 0
}

func readClock() (clock, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return clock{}, fmt.Errorf("read the clock: %w", err)
	}
	return clock{time.Now().Add(-time.Duration(now.Nano()))}, nil
}

// at returns the time of day for a time of the monotonic clock. Programs that cannot read the clock write
// 0. For 0, at returns the zero time.
func (c clock) at(monotonic uint64) time.Time {
	if monotonic == 0 {
		return time.Time{}
	}
	return c.zero.Add(time.Duration(monotonic))
}

// stopEvents prepares the programs for kernels before 5.8, which have no ring buffer. It replaces the ring
// buffer by an array, and each call that writes to the ring buffer by an error.
func stopEvents(spec *ebpf.CollectionSpec) {
	events := spec.Maps[programMapEvents]
	events.Type, events.KeySize, events.ValueSize, events.MaxEntries = ebpf.Array, 4, 4, 1
	for _, p := range spec.Programs {
		for i, ins := range p.Instructions {
			if ins.IsBuiltinCall() && ins.Constant == int64(asm.FnRingbufOutput) {
				p.Instructions[i] = asm.Mov.Imm(asm.R0, -1).WithMetadata(ins.Metadata)
			}
		}
	}
}
