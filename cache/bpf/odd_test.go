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

// onlyPort returns a policy that lets web into db at port 6379 of every protocol with ports.
func onlyPort() *networkingv1.NetworkPolicy {
	p := letIn("db", "web")
	one := p.Spec.Ingress[0].Ports[0]
	p.Spec.Ingress[0].Ports = nil
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		p.Spec.Ingress[0].Ports = append(p.Spec.Ingress[0].Ports, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: one.Port})
	}
	return p
}

// The kernel remembers the verdict about an allowed packet. For a variant of that packet, the
// programs never give a verdict that contradicts user space. In a variant, one byte has any
// value, or one 16-bit field at an even offset has a value from 0 to 79 (lengths that a header
// could state), or the packet is cut off after any number of bytes.
func TestOddPackets(t *testing.T) {
	c, p, u := newFixture(t, bpf.Options{}, nil)
	web6, db6 := netip.MustParseAddr("fd00::3"), netip.MustParseAddr("fd00::2")
	for name, addrs := range map[string][2]netip.Addr{"db": {db, db6}, "web": {web, web6}} {
		pod := podOf(name, addrs[0])
		pod.Status.PodIPs = append(pod.Status.PodIPs, corev1.PodIP{IP: addrs[1].String()})
		u.store.SetPod(kubepod.Read(pod))
	}
	u.store.SetPolicy(netpol.Read(onlyPort()))
	u.commit(t)
	// forgetful evaluates the variants in user space, without inserting the verdicts into the
	// kernel's cache. So the only verdict that the programs could wrongly apply to a variant is
	// the one about the original packet.
	forgetful := newUser(t, c, nil)
	forgetful.evaluator = engine.New(engine.Config{Published: &forgetful.published}, cache.NewFlows(0))
	forgetful.published.Publish(u.published.Snapshot())
	for _, ends := range [][2]netip.Addr{{web, db}, {web6, db6}} {
		for _, protocol := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
			whole := packetOf(ends[0], ends[1], protocol, 6379, 24)
			if action := u.evaluate(whole); action != filter.Allow || p.run(whole) != allowed {
				t.Fatalf("%s: user space %s, kernel %s, want both to allow", protocol, action, p.run(whole))
			}
			odd := func(data []byte) {
				got := p.run(data)
				if action := forgetful.evaluate(data); got == allowed && action != filter.Allow || got == denied && action != filter.Deny {
					t.Errorf("%s: kernel %s, user space %s, for %x", protocol, got, action, data)
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
	// An IPv6 packet with mapped IPv4 addresses must not be taken for IPv4.
	mapped := packetOf(web6, db6, filter.TCP, 6379, 20)
	for i, a := range []netip.Addr{web, db} {
		as16 := a.As16()
		copy(mapped[8+16*i:], as16[:])
	}
	if got := p.run(mapped); got != noMatch {
		t.Errorf("mapped addresses: %s", got)
	}
}

// All changes of one publication take effect in the kernel at the same moment. The test
// publishes in turn a snapshot that isolates only web (egress) and one that isolates only db
// (ingress). If the kernel applied the changes one by one, neither pod would be isolated for a
// moment, and a packet from web to db would match "allow".
func TestChangesAtOnce(t *testing.T) {
	c := newCache(t, bpf.Options{})
	p, u := load(t, c), newUser(t, c, nil)
	u.store.SetPod(kubepod.Read(podOf("web", web)))
	u.store.SetPod(kubepod.Read(podOf("db", db)))
	egress := &networkingv1.NetworkPolicy{}
	egress.Namespace, egress.Name = "default", "egress"
	egress.Spec.PodSelector.MatchLabels = map[string]string{"name": "web"}
	egress.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	egress.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}}} // with a rule, the programs leave web's packets to user space; without any, they would deny them
	ingress := letIn("db", "absent")
	u.store.SetPolicy(netpol.Read(egress))
	u.commit(t)

	var stop atomic.Bool
	var asked atomic.Int64
	var wait sync.WaitGroup
	for range 2 {
		wait.Go(func() {
			for !stop.Load() {
				if got := p.run(redis(web)); got != noMatch {
					t.Errorf("during a change: %s, want %s", got, noMatch)
					return
				}
				asked.Add(1)
			}
		})
	}
	for i := range 100 {
		if i%2 == 0 {
			u.store.DeletePolicy(netpol.Ref("default", "egress"))
			u.store.SetPolicy(netpol.Read(ingress))
		} else {
			u.store.DeletePolicy(netpol.Ref("default", ingress.Name))
			u.store.SetPolicy(netpol.Read(egress))
		}
		u.commit(t)
	}
	stop.Store(true)
	wait.Wait()
	if asked.Load() < 100 {
		t.Errorf("the programs ran only %d times", asked.Load())
	}
}
