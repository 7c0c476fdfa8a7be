package watch_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
	"sluice/watch"
)

// drafted is a running Controller for tests that block its preparation of large policies.
// Pod N has the address 10.0.0.N.
type drafted struct {
	t     *testing.T
	in    feed
	calls chan published
	steps chan chan struct{} // receives a channel at each step of the preparation; closing that channel continues the step
	last  *policy.Snapshot
}

const outside = "192.0.2.7"

func newDrafted(t *testing.T) *drafted {
	d := &drafted{t: t, in: make(feed), steps: make(chan chan struct{})}
	hold := func(c *watch.Controller) {
		c.BeforePrepare(func() {
			step := make(chan struct{})
			select {
			case d.steps <- step:
			case <-t.Context().Done():
				return
			}
			select {
			case <-step:
			case <-t.Context().Done():
			}
		})
	}
	var c *watch.Controller
	c, d.calls, _ = runWith(t, policy.NewStore(), new(policy.Published), nil, hold, d.in)
	d.update(func(w *policy.Store) {
		for i := range 4 {
			p := pod(fmt.Sprint("pod-", i), fmt.Sprint("10.0.0.", i))
			p.Labels = map[string]string{"pod": fmt.Sprint(i)}
			w.SetPod(kubepod.Read(p))
		}
	})
	d.last = await(t, d.calls).snapshot
	await(t, c.Ready())
	return d
}

func (d *drafted) update(u watch.Update) {
	d.t.Helper()
	for {
		select {
		case d.in <- u:
			return
		case p := <-d.calls: // the Controller takes no update while a publication waits to be received
			d.last = p.snapshot
		case <-time.After(waitTimeout):
			d.t.Fatal("the Controller does not take the update")
		}
	}
}

func (d *drafted) set(p *networkingv1.NetworkPolicy) {
	d.t.Helper()
	form := netpol.Read(p)
	d.update(func(w *policy.Store) { w.SetPolicy(form) })
}

func (d *drafted) delete(name string) {
	d.t.Helper()
	d.update(func(w *policy.Store) { w.DeletePolicy(netpol.Ref("default", name)) })
}

// allows reports whether the pod can be reached from outside at the port.
func (d *drafted) allows(pod int, port uint16) bool {
	key := filter.NewKey(netip.MustParseAddr(outside), netip.AddrFrom4([4]byte{10, 0, 0, byte(pod)}), filter.TCP, port)
	return d.last.Decide(key).Action == filter.Allow
}

// until waits until the pod can, or cannot, be reached at the port.
func (d *drafted) until(pod int, port uint16, allowed bool) {
	d.t.Helper()
	for d.allows(pod, port) != allowed {
		d.last = await(d.t, d.calls).snapshot
	}
}

// step waits until a large policy reaches the next step of its preparation. Closing the
// returned channel continues the preparation.
func (d *drafted) step() chan struct{} {
	d.t.Helper()
	for {
		select {
		case step := <-d.steps:
			return step
		case p := <-d.calls:
			d.last = p.snapshot
		case <-time.After(waitTimeout):
			d.t.Fatal("no large policy is prepared")
		}
	}
}

// onPort returns a policy that allows connections from outside to one port of a pod. If the
// parameter "large" is set, the policy has so many addresses and labels that the Store makes a
// policy.Draft of it.
func onPort(name string, pod int, port int32, large bool) *networkingv1.NetworkPolicy {
	number := intstr.FromInt32(port)
	rule := networkingv1.NetworkPolicyIngressRule{
		Ports: []networkingv1.NetworkPolicyPort{{Port: &number}},
		From:  []networkingv1.NetworkPolicyPeer{{IPBlock: &networkingv1.IPBlock{CIDR: outside + "/32"}}},
	}
	for i := range 2000 {
		if !large {
			break
		}
		rule.From = append(rule.From, networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: fmt.Sprintf("198.18.%d.%d/32", i/250, i%250)}},
			networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"other": fmt.Sprint(i)}}})
	}
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	p.Spec.PodSelector.MatchLabels = map[string]string{"pod": fmt.Sprint(pod)}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{rule}
	return p
}

// While a large policy is read and compiled, other changes come into force.
func TestControllerGoesOnWhileALargePolicyIsCompiled(t *testing.T) {
	d := newDrafted(t)
	d.set(onPort("large", 0, 80, true))
	for range 2 { // two steps: reading, then compiling
		step := d.step()
		for port := uint16(100); port < 103; port++ {
			d.set(onPort("small", 1, int32(port), false))
			d.until(1, 99, false)
			d.until(1, port, true)
		}
		d.delete("small")
		d.until(1, 99, true)
		if !d.allows(0, 81) {
			t.Error("the large policy is in force before it is compiled")
		}
		close(step)
	}
	d.until(0, 81, false)
	if !d.allows(0, 80) {
		t.Error("the large policy allows nothing")
	}
}

// Of several versions of a policy, large or small, the last one comes into force, and no older
// version comes into force after it.
func TestControllerKeepsTheOrderOfVersions(t *testing.T) {
	for _, last := range []bool{false, true} {
		d := newDrafted(t)
		d.set(onPort("p", 0, 80, true))
		step := d.step()
		d.set(onPort("p", 0, 81, true))
		d.set(onPort("p", 0, 82, last))
		if !last {
			d.until(0, 82, true)
			d.until(0, 80, false)
		}
		close(step)
		d.release(onPort("behind", 1, 80, true)) // a policy that is set later, for another pod
		d.until(0, 80, false)
		d.until(0, 81, false)
		if !d.allows(0, 82) {
			t.Errorf("last version large %t: the last version is not in force", last)
		}
	}
}

// A policy that is deleted while it is read or compiled stays deleted, and a new policy of
// the same name comes into force.
func TestControllerDeletesAPolicyBeingCompiled(t *testing.T) {
	for _, compiling := range []bool{false, true} {
		d := newDrafted(t)
		d.set(onPort("p", 0, 80, true))
		step := d.step()
		if compiling {
			close(step)
			step = d.step()
		}
		d.delete("p")
		close(step)
		d.release(onPort("behind", 1, 80, true))
		if !d.allows(0, 79) {
			t.Errorf("compiling %t: the policy came back", compiling)
		}
		d.set(onPort("p", 0, 80, true))
		step = d.step()
		d.delete("p")
		d.set(onPort("p", 0, 81, true))
		close(step)
		d.release(onPort("behind", 2, 80, true))
		if !d.allows(0, 81) || d.allows(0, 80) {
			t.Errorf("compiling %t: the new policy of the name is not in force", compiling)
		}
	}
}

// release sets a large policy, and continues each step of the preparation until the policy is in
// force. All policies that were set earlier are then in force too.
func (d *drafted) release(p *networkingv1.NetworkPolicy) {
	d.t.Helper()
	var pod int
	if _, err := fmt.Sscan(p.Spec.PodSelector.MatchLabels["pod"], &pod); err != nil {
		d.t.Fatal(err)
	}
	d.set(p)
	for d.allows(pod, 9) {
		select {
		case step := <-d.steps:
			close(step)
		case call := <-d.calls:
			d.last = call.snapshot
		case <-time.After(waitTimeout):
			d.t.Fatal("the large policy does not come into force")
		}
	}
}

// The policies of different namespaces are compiled in turns, so that a namespace with many
// policies does not delay another namespace.
func TestControllerCompilesInTurns(t *testing.T) {
	d := newDrafted(t)
	for i := range 20 {
		d.set(onPort(fmt.Sprint("many-", i), 0, 80, true))
	}
	first := d.step()
	away := pod("away", "10.0.0.9")
	away.Namespace, away.Labels = "other", map[string]string{"pod": "0"}
	d.update(func(w *policy.Store) { w.SetPod(kubepod.Read(away)) })
	other := onPort("one", 0, 80, true)
	other.Namespace = "other"
	d.set(other)
	close(first)
	steps := 1
	for d.allows(9, 1) {
		select {
		case step := <-d.steps:
			close(step)
			steps++
		case call := <-d.calls:
			d.last = call.snapshot
		case <-time.After(waitTimeout):
			t.Fatal("the large policy does not come into force")
		}
	}
	// 8 steps are enough for 4 policies. Without turns, 20 policies (40 steps) would come first.
	if steps > 8 {
		t.Errorf("the only policy of a namespace waited for %d steps", steps)
	}
}

// A pod that starts on this node after a new large policy was set stays unknown until that
// policy is in force. Pods that the policy does not select become known at once.
func TestControllerDefersPodsBehindALargePolicy(t *testing.T) {
	d := newDrafted(t)
	d.update(func(w *policy.Store) { w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}) })
	start := func(namespace string, number int) {
		p := pod(fmt.Sprint("pod-", number), fmt.Sprint("10.0.0.", number))
		p.Namespace, p.Labels = namespace, map[string]string{"pod": "5"}
		d.update(func(w *policy.Store) { w.SetPod(kubepod.Read(p)) })
	}
	at := func(number byte) *policy.Endpoint { return d.last.Endpoint(netip.AddrFrom4([4]byte{10, 0, 0, number})) }
	d.set(onPort("large", 5, 80, true))
	step := d.step()
	start("default", 5)
	for i, numbers := range [][]int{{100, 101, 102}, {103, 104, 105}} { // while the policy is read, and then while it is compiled
		if i > 0 {
			step = d.step()
		}
		for _, number := range numbers {
			start("other", number)
			for at(byte(number)) == nil {
				d.last = await(t, d.calls).snapshot
			}
			if at(5) != nil {
				t.Fatal("the pod is known before the policy is in force")
			}
		}
		close(step)
	}
	for at(5) == nil {
		d.last = await(t, d.calls).snapshot
	}
	if d.allows(5, 81) || !d.allows(5, 80) {
		t.Error("the pod is known, and the large policy is not in force")
	}
}
