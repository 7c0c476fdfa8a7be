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

// What is known of a pod with an interface of its own holds for packets that come or
// go by that interface.
func TestDevices(t *testing.T) {
	c, p, u := newStage(t, bpf.Options{}, nil)
	closed := letIn("other", "nobody")
	closed.Spec.Ingress = nil
	u.world.SetPolicy(netpol.Read(closed))
	u.commit(t)
	u.judges(redis(web))
	devices := func(of map[netip.Addr]uint32) {
		t.Helper()
		if err := c.SetDevices(of); err != nil {
			t.Fatal(err)
		}
	}
	open, in, denied1 := packetOf(web, remote, filter.UDP, 53, 20), packetOf(remote, web, filter.TCP, 80, 20), packetOf(web, other, filter.TCP, 80, 20)
	check := func(when string, want map[string]verdict) {
		t.Helper()
		for name, said := range map[string]verdict{
			"open, from 3": p.sayFrom(3, open), "open, from 4": p.sayFrom(4, open), "open, from nowhere": p.sayFrom(0, open),
			"to it": p.sayFrom(2, in), "remembered, from 3": p.sayFrom(3, redis(web)), "remembered, from 4": p.sayFrom(4, redis(web)),
			"closed, from 3": p.sayFrom(3, denied1), "closed, from 4": p.sayFrom(4, denied1),
		} {
			if said != want[name] {
				t.Errorf("%s, %s: %s, want %s", when, name, said, want[name])
			}
		}
	}
	all := map[string]verdict{
		"open, from 3": allowed, "open, from 4": allowed, "open, from nowhere": allowed, "to it": allowed,
		"remembered, from 3": allowed, "remembered, from 4": allowed, "closed, from 3": denied, "closed, from 4": denied,
	}
	check("no interface is known", all)
	from3 := map[string]verdict{
		"open, from 3": allowed, "open, from 4": silent, "open, from nowhere": silent, "to it": silent,
		"remembered, from 3": allowed, "remembered, from 4": silent, "closed, from 3": denied, "closed, from 4": silent,
	}
	devices(map[netip.Addr]uint32{web: 3})
	check("interface 3", from3)
	devices(nil)
	check("the interface has gone", from3)
	u.world.SetPod(kubepod.Read(podOf("new", netip.MustParseAddr("10.0.0.9"))))
	u.commit(t)
	check("after a change elsewhere", from3)
	devices(map[netip.Addr]uint32{web: 1})
	for device, want := range map[uint32]verdict{1: allowed, 3: silent} {
		if said := p.sayFrom(device, open); said != want {
			t.Errorf("interface 1, from %d: %s, want %s", device, said, want)
		}
	}
	if said := p.say(in); said != allowed {
		t.Errorf("to it, by its interface: %s", said)
	}
	// The next pod at the address comes with the interface that is told before it.
	u.world.DeletePod("default", "web")
	u.commit(t)
	devices(map[netip.Addr]uint32{web: 4})
	u.world.SetPod(kubepod.Read(podOf("later", web)))
	u.commit(t)
	for device, want := range map[uint32]verdict{1: silent, 4: allowed} {
		if said := p.sayFrom(device, open); said != want {
			t.Errorf("the next pod, from %d: %s, want %s", device, said, want)
		}
	}
}

// For pods of this node that share an interface, the kernel answers as long as it is
// told that the agent is there, and a while longer.
func TestUnattended(t *testing.T) {
	node := netip.MustParseAddr("192.0.2.1")
	for _, one := range []struct {
		name  string
		limit time.Duration
		want  verdict
	}{
		{"no limit", 0, allowed}, {"an hour", time.Hour, allowed}, {"over", time.Nanosecond, silent},
	} {
		t.Run(one.name, func(t *testing.T) {
			c, p, u := newStage(t, bpf.Options{Unattended: one.limit}, nil)
			u.world.SetNode([]netip.Addr{node})
			here := podOf("here", netip.MustParseAddr("10.0.0.9"))
			here.Status.HostIPs = []corev1.HostIP{{IP: node.String()}}
			u.world.SetPod(kubepod.Read(here))
			u.commit(t)
			if err := c.Attend(); err != nil {
				t.Fatal(err)
			}
			to, from := packetOf(web, netip.MustParseAddr("10.0.0.9"), filter.TCP, 80, 20), packetOf(netip.MustParseAddr("10.0.0.9"), remote, filter.UDP, 53, 20)
			for _, data := range [][]byte{to, from} {
				if said := p.say(data); said != one.want {
					t.Errorf("a pod of this node: %s, want %s", said, one.want)
				}
			}
			if said := p.say(packetOf(web, other, filter.TCP, 80, 20)); said != allowed {
				t.Errorf("pods elsewhere: %s", said)
			}
			if err := c.SetDevices(map[netip.Addr]uint32{netip.MustParseAddr("10.0.0.9"): 1}); err != nil {
				t.Fatal(err)
			}
			if said := p.say(to); said != allowed {
				t.Errorf("a pod with its own interface: %s", said)
			}
		})
	}
}
