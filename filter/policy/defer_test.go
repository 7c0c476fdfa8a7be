package policy_test

import (
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// starting is a Store with drafts enabled. The pods of this node have addresses in
// 10.0.0.0/24.
type starting struct {
	*policy.Store
	t *testing.T
}

func newStarting(t *testing.T) starting {
	w := starting{policy.NewStore(), t}
	w.SetLocalNode(localNode)
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")})
	w.SetLarge(500)
	w.UseDrafts()
	return w
}

func (w starting) SetPolicy(o *networkingv1.NetworkPolicy) { w.Store.SetPolicy(netpol.Read(o)) }
func (w starting) SetPod(o *corev1.Pod)                    { w.Store.SetPod(kubepod.Read(o)) }

// policy returns a policy of namespace a that isolates the pods of an app, or all pods if
// app is empty. With 100 rules, the policy is so large that it becomes a draft first.
func (w starting) policy(name, app string, rules int) *networkingv1.NetworkPolicy {
	p := large("a", name, rules)
	p.Spec.PodSelector = metav1.LabelSelector{}
	if app != "" {
		p.Spec.PodSelector.MatchLabels = map[string]string{"app": app}
	}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	return p
}

func (w starting) pod(namespace, name string, texts ...string) *corev1.Pod {
	o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": "web"}}}
	o.Spec.NodeName = localNode
	for _, text := range texts {
		o.Status.PodIPs = append(o.Status.PodIPs, corev1.PodIP{IP: text})
	}
	return o
}

// expect commits, and checks that addr belongs to the wanted pod, or is unknown if the name of
// that pod is empty. A pod of namespace a must be isolated as soon as it is known.
func (w starting) expect(addr, want string) {
	w.t.Helper()
	s, _ := w.Commit()
	e := s.Endpoint(addrs(addr)[0])
	if e.String() != want {
		w.t.Errorf("%s is the address of %q, want %q", addr, e, want)
	}
	if e != nil && e.Namespace == "a" && e.Isolation(filter.Ingress) == nil {
		w.t.Errorf("%s is known and not isolated", e)
	}
}

// prepareNext brings the next draft into force.
func (w starting) prepareNext() {
	w.t.Helper()
	before := w.Versions()
	for range 2 {
		for again := true; again; {
			again, _ = w.Work(func() bool { return false })
		}
		prepare(w.t, w.Store)
	}
	for again := true; again; {
		again, _ = w.Work(func() bool { return false })
	}
	if now := w.Versions(); len(now) == len(before) {
		w.t.Fatal("the draft is not in force")
	}
}

// A policy has two drafts when a pod starts: the first does not isolate the pod, the second
// does. The pod stays unknown until the second draft is in force.
func TestPodsThatStartBehindTwoDrafts(t *testing.T) {
	w := newStarting(t)
	w.SetPolicy(w.policy("p", "", 1))
	w.Commit()
	w.SetPolicy(w.policy("p", "db", 100))
	first := w.NextDraft()
	w.SetPolicy(w.policy("p", "", 101))
	w.SetPod(w.pod("a", "pod", "10.0.0.1"))
	w.expect("10.0.0.1", "")
	first.Prepare()
	w.Prepared(first)
	for range 100 {
		w.Work(func() bool { return false })
		if d := w.NextDraft(); d != nil {
			d.Prepare()
			w.Prepared(d)
		}
		s, _ := w.Commit()
		if e := s.Endpoint(addrs("10.0.0.1")[0]); e != nil && e.Isolation(filter.Ingress) == nil {
			t.Fatal("the pod is known and not isolated")
		}
	}
	w.expect("10.0.0.1", "a/pod")
}

// A pod starts while a policy has a draft. If the draft may isolate the pod in a direction in
// which the policy's version in force does not, the pod stays unknown.
func TestPodsThatStartBehindDrafts(t *testing.T) {
	const unknown, known = "", "a/pod"
	for _, tt := range []struct {
		name string           // describes the version of the policy p in force
		set  func(w starting) // sets that version
		want string
	}{
		{"none", func(starting) {}, unknown},
		{"selects all pods", func(w starting) { w.SetPolicy(w.policy("p", "", 1)) }, known},
		{"selects the same pods", func(w starting) { w.SetPolicy(w.policy("p", "web", 1)) }, known},
		{"selects other pods", func(w starting) { w.SetPolicy(w.policy("p", "db", 1)) }, unknown},
		{"isolates another direction", func(w starting) {
			p := w.policy("p", "web", 1)
			p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
			w.SetPolicy(p)
		}, unknown},
	} {
		for _, step := range []string{"waiting", "being read", "read"} {
			t.Run(tt.name+"/"+step, func(t *testing.T) {
				w := newStarting(t)
				w.SetPolicy(w.policy("other", "web", 1))
				tt.set(w)
				w.Commit()
				w.SetPolicy(w.policy("p", "web", 100))
				switch step {
				case "being read":
					w.NextDraft()
				case "read":
					prepare(t, w.Store)
				}
				w.SetPod(w.pod("a", "pod", "10.0.0.1"))
				w.expect("10.0.0.1", tt.want)
			})
		}
	}
}

// A draft does not delay pods of other nodes or namespaces, pods that started before it, or
// pods outside of the ranges in which packets of unknown addresses are held.
func TestPodsThatDraftsDoNotDelay(t *testing.T) {
	w := newStarting(t)
	w.SetPolicy(w.policy("small", "web", 1))
	w.SetPod(w.pod("a", "before", "10.0.0.1"))
	w.SetPolicy(w.policy("large", "web", 100))
	elsewhere := w.pod("a", "elsewhere", "10.0.0.2")
	elsewhere.Spec.NodeName = "elsewhere"
	w.SetPod(elsewhere)
	w.SetPod(w.pod("a", "outside", "10.1.0.3"))
	w.SetPod(w.pod("b", "other", "10.0.0.4"))
	w.SetPod(w.pod("a", "behind", "10.0.0.5"))
	w.expect("10.0.0.1", "a/before")
	w.expect("10.0.0.2", "a/elsewhere")
	w.expect("10.1.0.3", "a/outside")
	w.expect("10.0.0.4", "b/other")
	w.expect("10.0.0.5", "")
	w.SetPodRanges(nil) // from now on, packets of 10.0.0.5 are not held
	w.expect("10.0.0.5", "a/behind")
}

// A pod that waits for a draft becomes known when the draft comes into force, and also when
// the draft is deleted, replaced or refused.
func TestWaitingPodsBecomeKnown(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(w starting)
	}{
		{"it is in force", starting.prepareNext},
		{"it is deleted", func(w starting) { w.DeletePolicy(netpol.Ref("a", "p")) }},
		{"it is deleted while it is read", func(w starting) { w.NextDraft(); w.DeletePolicy(netpol.Ref("a", "p")) }},
		{"a small version follows", func(w starting) { w.SetPolicy(w.policy("p", "web", 1)) }},
		{"it is too large", func(w starting) {
			prepare(w.t, w.Store)
			if names := refused(w.Store, "--policy-memory"); !slices.Equal(names, []string{"a/p"}) {
				w.t.Errorf("refused: %v", names)
			}
		}},
		{"all are too large", func(w starting) {
			w.prepareNext()
			w.Commit()
			if names := refused(w.Store, "--policies-memory"); !slices.Equal(names, []string{"a/p"}) {
				w.t.Errorf("refused: %v", names)
			}
		}},
		{"a later draft follows", func(w starting) { w.SetPolicy(w.policy("q", "web", 100)); w.prepareNext() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newStarting(t)
			cost := policy.CostOf(netpol.Read(w.policy("p", "web", 100)))
			switch tt.name {
			case "it is too large":
				w.SetLimits(policy.Limits{Policy: cost - 1})
			case "all are too large":
				w.SetLimits(policy.Limits{Policies: cost - 1})
			}
			w.SetPolicy(w.policy("small", "web", 1))
			w.SetPolicy(w.policy("p", "web", 100))
			w.SetPod(w.pod("a", "pod", "10.0.0.1"))
			w.expect("10.0.0.1", "")
			tt.end(w)
			w.expect("10.0.0.1", "a/pod")
		})
	}
}

// Pods are updated, deleted and replaced while a draft delays the pods of a namespace. If a
// pod had an address before the draft, the address stays known while that pod keeps it. If a
// new pod gets the address, it is unknown until the draft is in force.
func TestPodsChangeWhileTheyWait(t *testing.T) {
	w := newStarting(t)
	w.SetPolicy(w.policy("small", "web", 1))
	for _, o := range []*corev1.Pod{w.pod("a", "deleted", "10.0.0.2"), w.pod("a", "replaced", "10.0.0.3"), w.pod("a", "grows", "10.0.0.4"), w.pod("b", "old", "10.0.0.5")} {
		w.SetPod(o)
	}
	w.SetPolicy(w.policy("p", "web", 100))
	w.SetPod(w.pod("a", "pod", "10.0.0.1"))
	relabeled := w.pod("a", "pod", "10.0.0.1")
	relabeled.Labels["more"] = "labels"
	w.SetPod(relabeled)

	w.SetPod(w.pod("a", "gone", "10.0.0.6"))
	w.DeletePod("a", "gone")
	w.DeletePod("a", "deleted")
	w.SetPod(w.pod("a", "deleted", "10.0.0.2")) // a new pod with the same name
	replaced := w.pod("a", "replaced", "10.0.0.3")
	replaced.CreationTimestamp = metav1.Unix(1, 0)
	w.SetPod(replaced) // a new pod with the same name: its time of creation differs
	w.SetPod(w.pod("a", "grows", "10.0.0.4", "10.0.0.7"))
	heir := w.pod("a", "heir", "10.0.0.5")
	heir.CreationTimestamp = metav1.Unix(1, 0)
	w.SetPod(heir)

	for _, unknown := range []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.5", "10.0.0.6", "10.0.0.7"} {
		w.expect(unknown, "")
	}
	w.expect("10.0.0.4", "a/grows")
	w.prepareNext()
	for addr, pod := range map[string]string{
		"10.0.0.1": "a/pod", "10.0.0.2": "a/deleted", "10.0.0.3": "a/replaced", "10.0.0.4": "a/grows", "10.0.0.5": "a/heir", "10.0.0.6": "", "10.0.0.7": "a/grows",
	} {
		w.expect(addr, pod)
	}
	if n := w.Kept()["deferred"]; n > 0 {
		t.Errorf("the store still keeps deferred addresses of %d namespaces", n)
	}
}
