package bpf_test

import (
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// If a pod has an interface of its own, the programs match packets from or to the pod only on that
// interface.
func TestDevices(t *testing.T) {
	c, p, u := newFixture(t, bpf.Options{}, nil)
	closed := letIn("other", "absent")
	closed.Spec.Ingress = nil
	u.store.SetPolicy(netpol.Read(closed))
	u.commit(t)
	u.evaluate(redis(web))
	devices := func(of map[netip.Addr]uint32) {
		t.Helper()
		if err := c.SetDevices(of); err != nil {
			t.Fatal(err)
		}
	}
	open, in, denied1 := packetOf(web, remote, filter.UDP, 53, 20), packetOf(remote, web, filter.TCP, 80, 20), packetOf(web, other, filter.TCP, 80, 20)
	check := func(when string, want map[string]verdict) {
		t.Helper()
		for name, got := range map[string]verdict{
			"open, from 3": p.runFrom(3, open), "open, from 4": p.runFrom(4, open), "open, from nowhere": p.runFrom(0, open),
			"to it": p.runFrom(2, in), "remembered, from 3": p.runFrom(3, redis(web)), "remembered, from 4": p.runFrom(4, redis(web)),
			"closed, from 3": p.runFrom(3, denied1), "closed, from 4": p.runFrom(4, denied1),
		} {
			if got != want[name] {
				t.Errorf("%s, %s: %s, want %s", when, name, got, want[name])
			}
		}
	}
	all := map[string]verdict{
		"open, from 3": allowed, "open, from 4": allowed, "open, from nowhere": allowed, "to it": allowed,
		"remembered, from 3": allowed, "remembered, from 4": allowed, "closed, from 3": denied, "closed, from 4": denied,
	}
	check("no interface is known", all)
	from3 := map[string]verdict{
		"open, from 3": allowed, "open, from 4": noMatch, "open, from nowhere": noMatch, "to it": noMatch,
		"remembered, from 3": allowed, "remembered, from 4": noMatch, "closed, from 3": denied, "closed, from 4": noMatch,
	}
	devices(map[netip.Addr]uint32{web: 3})
	check("interface 3", from3)
	devices(nil)
	check("the interface has gone", from3)
	u.store.SetPod(kubepod.Read(podOf("new", netip.MustParseAddr("10.0.0.9"))))
	u.commit(t)
	check("after a change elsewhere", from3)
	devices(map[netip.Addr]uint32{web: 1})
	for device, want := range map[uint32]verdict{1: allowed, 3: noMatch} {
		if got := p.runFrom(device, open); got != want {
			t.Errorf("the pod is at interface 1, from %d: %s, want %s", device, got, want)
		}
	}
	if got := p.run(in); got != allowed {
		t.Errorf("to it, by its interface: %s", got)
	}
	// The address of an ended pod goes to a new pod. SetDevices may report the interface of the
	// new pod before a snapshot contains this pod.
	u.store.DeletePod("default", "web")
	u.commit(t)
	devices(map[netip.Addr]uint32{web: 4})
	u.store.SetPod(kubepod.Read(podOf("later", web)))
	u.commit(t)
	for device, want := range map[uint32]verdict{1: noMatch, 4: allowed} {
		if got := p.runFrom(device, open); got != want {
			t.Errorf("the next pod, from %d: %s, want %s", device, got, want)
		}
	}
}

// For pods of this node that share an interface, the kernel answers until Options.Unattended has
// passed since the last call of Attend.
func TestUnattended(t *testing.T) {
	node := netip.MustParseAddr("192.0.2.1")
	for _, one := range []struct {
		name  string
		limit time.Duration
		want  verdict
	}{
		{"no limit", 0, allowed}, {"an hour", time.Hour, allowed}, {"over", time.Nanosecond, noMatch},
	} {
		t.Run(one.name, func(t *testing.T) {
			c, p, u := newFixture(t, bpf.Options{Unattended: one.limit}, nil)
			u.store.SetNode([]netip.Addr{node})
			here := podOf("here", netip.MustParseAddr("10.0.0.9"))
			here.Status.HostIPs = []corev1.HostIP{{IP: node.String()}}
			u.store.SetPod(kubepod.Read(here))
			u.commit(t)
			if err := c.Attend(); err != nil {
				t.Fatal(err)
			}
			to, from := packetOf(web, netip.MustParseAddr("10.0.0.9"), filter.TCP, 80, 20), packetOf(netip.MustParseAddr("10.0.0.9"), remote, filter.UDP, 53, 20)
			for _, data := range [][]byte{to, from} {
				if got := p.run(data); got != one.want {
					t.Errorf("a pod of this node: %s, want %s", got, one.want)
				}
			}
			if got := p.run(packetOf(web, other, filter.TCP, 80, 20)); got != allowed {
				t.Errorf("pods elsewhere: %s", got)
			}
			if err := c.SetDevices(map[netip.Addr]uint32{netip.MustParseAddr("10.0.0.9"): 1}); err != nil {
				t.Fatal(err)
			}
			if got := p.run(to); got != allowed {
				t.Errorf("a pod with its own interface: %s", got)
			}
		})
	}
}
