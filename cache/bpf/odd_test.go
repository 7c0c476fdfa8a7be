package bpf_test

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// onlyPort lets web into db at port 6379 of every protocol that has ports.
func onlyPort() *networkingv1.NetworkPolicy {
	p := letIn("db", "web")
	one := p.Spec.Ingress[0].Ports[0]
	p.Spec.Ingress[0].Ports = nil
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		p.Spec.Ingress[0].Ports = append(p.Spec.Ingress[0].Ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: one.Port})
	}
	return p
}

// Of a packet that is allowed and remembered, every byte is changed to every
// value, every field of 16 bits to every length that could be, and the packet is
// cut at every length: what user space would not let pass, the programs do not.
func TestOddPackets(t *testing.T) {
	c, p, u := newStage(t, bpf.Options{}, nil)
	web6, db6 := netip.MustParseAddr("fd00::3"), netip.MustParseAddr("fd00::2")
	for name, addrs := range map[string][2]netip.Addr{"db": {db, db6}, "web": {web, web6}} {
		pod := podOf(name, addrs[0])
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: addrs[1].String()})
		u.world.SetPod(kubepod.Read(pod))
	}
	u.world.SetPolicy(netpol.Read(onlyPort()))
	u.commit(t)
	// An evaluator that remembers nothing: what was remembered of the first packet is
	// what may be misread.
	forgetful := newUser(t, c, nil)
	forgetful.evaluator = engine.New(engine.Config{Published: &forgetful.published}, cache.NewFlows(0))
	forgetful.published.Publish(u.published.Snapshot())
	for _, ends := range [][2]netip.Addr{{web, db}, {web6, db6}} {
		for _, protocol := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
			whole := packetOf(ends[0], ends[1], protocol, 6379, 24)
			if action := u.judges(whole); action != filter.Allow || p.say(whole) != allowed {
				t.Fatalf("%s: %s, and the kernel says %s", protocol, action, p.say(whole))
			}
			odd := func(data []byte) {
				said := p.say(data)
				if action := forgetful.judges(data); said == allowed && action != filter.Allow || said == denied && action != filter.Deny {
					t.Errorf("%s: the kernel says %s, user space %s, about %x", protocol, said, action, data)
				}
			}
			for at := range whole {
				data := bytes.Clone(whole)
				for value := range 256 {
					data[at] = byte(value)
					odd(data)
				}
			}
			for at := 0; at+1 < len(whole); at += 2 {
				data := bytes.Clone(whole)
				for value := range 80 {
					binary.BigEndian.PutUint16(data[at:], uint16(value))
					odd(data)
				}
			}
			for n := range whole {
				odd(whole[:n])
			}
		}
	}
	// IPv6 with the addresses of IPv4 must not pass for IPv4.
	mapped := packetOf(web6, db6, filter.TCP, 6379, 20)
	for i, a := range []netip.Addr{web, db} {
		as16 := a.As16()
		copy(mapped[8+16*i:], as16[:])
	}
	if said := p.say(mapped); said != silent {
		t.Errorf("mapped addresses: %s", said)
	}
}

// What changes at once in the cluster changes at once in the kernel: of two pods
// one is always isolated from the other, and never neither.
func TestChangesAtOnce(t *testing.T) {
	c := newCache(t, bpf.Options{})
	p, u := load(t, c), newUser(t, c, nil)
	u.world.SetPod(kubepod.Read(podOf("web", web)))
	u.world.SetPod(kubepod.Read(podOf("db", db)))
	egress := &networkingv1.NetworkPolicy{}
	egress.Namespace, egress.Name = "default", "egress"
	egress.Spec.PodSelector.MatchLabels = map[string]string{"name": "web"}
	egress.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	egress.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}} // not closed: user space is asked
	ingress := letIn("db", "nobody")
	u.world.SetPolicy(netpol.Read(egress))
	u.commit(t)

	var stop atomic.Bool
	var asked atomic.Int64
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for !stop.Load() {
				if said := p.say(redis(web)); said != silent {
					t.Errorf("in between, it says %s", said)
					return
				}
				asked.Add(1)
			}
		})
	}
	for i := range 100 {
		if i%2 == 0 {
			u.world.DeletePolicy(netpol.Ref("default", "egress"))
			u.world.SetPolicy(netpol.Read(ingress))
		} else {
			u.world.DeletePolicy(netpol.Ref("default", ingress.Name))
			u.world.SetPolicy(netpol.Read(egress))
		}
		u.commit(t)
	}
	stop.Store(true)
	wait.Wait()
	if asked.Load() < 100 {
		t.Errorf("the programs ran %d times only", asked.Load())
	}
}
