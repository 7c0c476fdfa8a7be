package bpf_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// newDenying returns a fixture in which the kernel denies two flows. It denies packets from other to db by
// a remembered verdict, and packets to web because the policy "closed" of web allows nothing.
func newDenying(t *testing.T) (c *bpf.Cache, p *programs) {
	t.Helper()
	c, p, u := newFixture(t, bpf.Options{}, nil)
	closed := letIn("web", "absent")
	closed.Spec.Ingress, closed.Spec.PolicyTypes = nil, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	u.store.SetPolicy(netpol.Read(closed))
	u.commit(t)
	u.evaluate(redis(other))
	return c, p
}

// from returns a copy of a packet with another source port.
func from(port uint16, data []byte) []byte {
	data = slices.Clone(data)
	binary.BigEndian.PutUint16(data[20:], port)
	return data
}

// Denials lists each flow that the programs deny, with the number of its packets. It does not list flows
// that they allow or leave to user space.
func TestDenials(t *testing.T) {
	c, p := newDenying(t)
	began := time.Now()
	for port := range uint16(3) {
		p.run(from(4000+port, redis(other)))
	}
	p.run(packetOf(db, web, filter.UDP, 53, 20))
	fragment := packetOf(db, web, filter.TCP, 80, 20)
	fragment[6] = 0x20
	p.run(fragment)
	p.run(packetOf(db, other, filter.TCP, 80, 20)) // allowed
	p.run(redis(remote))                           // not remembered

	all, err := c.Denials()
	if err != nil {
		t.Fatal(err)
	}
	ended := time.Now()
	slices.SortFunc(all, func(a, b bpf.Denial) int { return cmp.Compare(a.Key.String(), b.Key.String()) })
	var got []string
	for _, d := range all {
		got = append(got, fmt.Sprint(d.Key, " ", d.SrcPort, " ", d.Packets))
		if d.First.Before(began.Add(-time.Second)) || d.Last.Before(d.First) || d.Last.After(ended.Add(time.Second)) || d.Rejected {
			t.Errorf("%+v, but the packets were dropped between %s and %s", d, began, ended)
		}
	}
	want := []string{
		filter.NewKey(db, web, filter.UDP, 53).String() + " 0 1",
		filter.Key{Src: db.As16(), Dst: web.As16()}.String() + " 0 1",
		filter.NewKey(other, db, filter.TCP, 6379).String() + " 4000 3",
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// The times of a denial are the times of day of its first and its last packet.
func TestDenialTimes(t *testing.T) {
	c, p := newDenying(t)
	p.run(redis(other))
	before, err := c.Denials()
	if err != nil || len(before) != 1 {
		t.Fatalf("%+v, %v: want one flow", before, err)
	}
	p.run(redis(other))
	after, err := c.Denials()
	if err != nil || len(after) != 1 {
		t.Fatalf("%+v, %v: want one flow", after, err)
	}
	const clocks = 10 * time.Millisecond // bounds the time between the readings of the two clocks
	if d := after[0].First.Sub(before[0].First).Abs(); d > clocks || !after[0].Last.After(before[0].Last.Add(-clocks)) || after[0].Packets != 2 {
		t.Errorf("%+v after %+v", after[0], before[0])
	}
}

// watching is a running Watch, with the events that it has reported.
type watching struct {
	mu     sync.Mutex
	events []bpf.Event
	stop   func() error
}

// watch starts a Watch, and returns when the kernel reports to it.
func watch(t *testing.T, c *bpf.Cache, perSecond uint32) *watching {
	t.Helper()
	w := &watching{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		done <- c.Watch(ctx, perSecond, func() { close(begun) }, func(e *bpf.Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, *e)
		})
	}()
	w.stop = func() error { cancel(); return <-done }
	t.Cleanup(func() { cancel() })
	select {
	case err := <-done:
		t.Fatalf("Watch: %v", err)
	case <-begun:
	}
	return w
}

// of returns the events of packets from an address.
func (w *watching) of(src netip.Addr) (events []bpf.Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range w.events {
		if e.Key.SrcAddr() == src {
			events = append(events, e)
		}
	}
	return events
}

// Watch reports the denied packets of a source up to the rate, and LeftOut counts the others. After the
// Watch, denied packets make no events, and another Watch can begin.
func TestWatch(t *testing.T) {
	c, p := newDenying(t)
	const limit, packets = 50, 400
	for round := range 2 {
		w := watch(t, c, limit)
		before, err := c.LeftOut()
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint16(packets) {
			p.run(from(5000+i, redis(other)))
		}
		var out bpf.LeftOut
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			if out, err = c.LeftOut(); err != nil {
				t.Fatal(err)
			}
			if len(w.of(other))+int(out.BeyondRate-before.BeyondRate) >= packets || time.Now().After(deadline) {
				break
			}
		}
		events := w.of(other)
		if n := len(events) + int(out.BeyondRate-before.BeyondRate); n != packets || round == 0 && len(events) < limit || out.NoRoom != before.NoRoom {
			t.Errorf("round %d: %d events and %+v left out (%+v before) of %d packets, %d a second", round, len(events), out, before, packets, limit)
		}
		for i, e := range events {
			if e.Key != filter.NewKey(other, db, filter.TCP, 6379) || e.SrcPort < 5000 || e.SrcPort >= 5000+packets || i > 0 && e.SrcPort <= events[i-1].SrcPort || e.Rejected || time.Since(e.Time).Abs() > time.Hour {
				t.Fatalf("round %d, event %d: %+v", round, i, e)
			}
		}
		if err := w.stop(); err != nil {
			t.Fatal(err)
		}
		seen := len(w.of(db))
		p.run(packetOf(db, web, filter.UDP, 9, 20))
		if now, err := c.LeftOut(); err != nil || now != out || len(w.of(db)) != seen {
			t.Errorf("round %d: %+v left out (%v) without a Watch, %+v before", round, now, err, out)
		}
	}
}

// A source beyond its rate does not keep the packets of another source from being reported.
func TestWatchRateIsOfEachSource(t *testing.T) {
	c, p := newDenying(t)
	w := watch(t, c, 1)
	for range 100 {
		p.run(packetOf(db, web, filter.UDP, 9, 20))
	}
	p.run(redis(other))
	for deadline := time.Now().Add(time.Minute); len(w.of(other)) == 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if len(w.of(other)) == 0 {
		t.Error("no event, because another source is beyond its rate")
	}
	if err := w.stop(); err != nil {
		t.Fatal(err)
	}
}

// A denial tells that its packets were rejected.
func TestRejectedDenials(t *testing.T) {
	c := newCache(t, bpf.Options{})
	u := newUser(t, c, nil)
	reject := loadRejection(t, c)
	u.store.SetPod(kubepod.Read(podOf("db", db)))
	u.store.SetPod(kubepod.Read(podOf("other", other)))
	rejecting := netpol.Read(letIn("db", "web"))
	rejecting.Denial = filter.DenialReject
	u.store.SetPolicy(rejecting)
	u.commit(t)
	s := u.published.Snapshot()
	k := filter.NewKey(other, db, filter.TCP, 6379)
	c.NewWriter().Remember(idKey(s, k), filter.Reject)
	if _, is := reject.run(redis(other)); !is {
		t.Fatal("the packet is not rejected")
	}
	all, err := c.Denials()
	if err != nil || len(all) != 1 || !all[0].Rejected || all[0].Key != k {
		t.Errorf("%+v, %v", all, err)
	}
}
