package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// isUnknown reports whether the engine is permitted to deny everything to and from a pod because
// the labels of its namespace are not known. It does not check whether the engine must do so:
// TestUnknownNamespaceAllowsNothingByMistake does.
func (c *cluster) isUnknown(pod *corev1.Pod) bool {
	if !c.complete || pod == nil || named(c.Namespaces, "", pod.Namespace) >= 0 {
		return false
	}
	return slices.ContainsFunc(c.namespaceSelectors(), readsLabels)
}

// namespaceSelectors returns all namespace selectors of all policies.
func (c *cluster) namespaceSelectors() (all []*metav1.LabelSelector) {
	for _, p := range c.Policies {
		for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
			for _, r := range rulesOf(p, d) {
				for _, peer := range r.peers {
					all = append(all, peer.NamespaceSelector)
				}
			}
		}
	}
	for _, p := range c.Cluster {
		all = append(all, p.Spec.Subject.Namespaces)
		if s := p.Spec.Subject.Pods; s != nil {
			all = append(all, &s.NamespaceSelector)
		}
		for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
			for _, r := range clusterRules(p, d) {
				for _, peer := range r.peers {
					all = append(all, peer.Namespaces)
					if peer.Pods != nil {
						all = append(all, &peer.Pods.NamespaceSelector)
					}
				}
			}
		}
	}
	return all
}

// readsLabels reports whether a namespace selector depends on a label other than the name.
func readsLabels(s *metav1.LabelSelector) bool {
	if s == nil {
		return false
	}
	for key := range s.MatchLabels {
		if key != corev1.LabelMetadataName {
			return true
		}
	}
	return slices.ContainsFunc(s.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool { return r.Key != corev1.LabelMetadataName })
}

// A flow that is allowed while the Namespace of an end is not known stays allowed, whatever labels
// the Namespace turns out to have.
func TestUnknownNamespaceAllowsNothingByMistake(t *testing.T) {
	clusters := uint64(1_500)
	if raceEnabled || testing.Short() {
		clusters = 300
	}
	var allowed, denied int
	for seed := range clusters {
		r := newChance(seed)
		c := r.cluster()
		c.complete, c.shape = true, int(seed%policy.Shapes)
		s, _ := c.newStore().Commit()
		for range 60 {
			f := r.flow(c)
			v := s.Decide(f.key())
			if v.Reason == filter.NamespaceNotKnown {
				denied++
			}
			if v.Action != filter.Allow || !c.inMissing(f) {
				continue
			}
			allowed++
			for range 6 {
				full := r.withMissing(c)
				if j := full.judge(f); j.Action != filter.Allow {
					t.Fatalf("seed %d: %s is allowed, but denied with other labels\noracle: %s\n%s", seed, f.key(), j, full.shrunk(f))
				}
			}
		}
	}
	if allowed < 300 || denied < 300 {
		t.Errorf("only %d flows were allowed, and %d denied", allowed, denied)
	}
}

// inMissing reports whether an end of the flow is a pod in a namespace without an object.
func (c *cluster) inMissing(f flow) bool {
	return slices.ContainsFunc([]netip.Addr{f.Src, f.Dst}, func(a netip.Addr) bool {
		pod := c.podAt(a)
		return pod != nil && named(c.Namespaces, "", pod.Namespace) < 0
	})
}

// withMissing returns the cluster with a random object for each namespace that has none.
func (r chance) withMissing(c *cluster) *cluster {
	full := *c
	for _, name := range namespaceNames {
		if named(full.Namespaces, "", name) < 0 {
			full.Namespaces = append(slices.Clone(full.Namespaces), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: r.labels()}})
		}
	}
	return &full
}

const (
	adminPolicy = "metadata: {name: p}\nspec: {tier: Admin, priority: 1, "
	netPolicy   = "metadata: {name: p, namespace: known}\nspec: {podSelector: {}, "
)

// Only policies that may allow by mistake make the store deny everything to and from a pod whose
// Namespace is not known.
func TestPoliciesThatNeedNamespaces(t *testing.T) {
	for _, c := range []struct {
		policy string
		needs  bool
	}{
		{netPolicy + "ingress: [{from: [{namespaceSelector: {matchLabels: {a: x}}}]}]}", false},
		{netPolicy + "ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: a, operator: Exists}]}}]}]}", false},
		{netPolicy + "ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: a, operator: DoesNotExist}]}}]}]}", true},
		{netPolicy + "egress: [{to: [{podSelector: {}, namespaceSelector: {matchExpressions: [{key: a, operator: NotIn, values: [x]}]}}]}]}", true},
		{netPolicy + "egress: [{to: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}}]}]}", false},
		{netPolicy + "ingress: [{from: [{podSelector: {matchExpressions: [{key: a, operator: DoesNotExist}]}}]}]}", false},

		{adminPolicy + "subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}", false},
		{adminPolicy + "subject: {namespaces: {matchLabels: {a: x}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}", true},
		{adminPolicy + "subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: known}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}", false},
		{adminPolicy + "subject: {namespaces: {matchLabels: {a: x}}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]}", false},
		{adminPolicy + "subject: {namespaces: {matchLabels: {a: x}}}, ingress: [{action: Pass, from: [{namespaces: {}}]}]}", true},
		{adminPolicy + "subject: {namespaces: {matchExpressions: [{key: a, operator: DoesNotExist}]}}, ingress: [{action: Accept, from: [{namespaces: {}}]}]}", true},
		{adminPolicy + "subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {a: x}}}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}", false},
		{adminPolicy + "subject: {pods: {namespaceSelector: {matchLabels: {a: x}}, podSelector: {matchLabels: {a: x}}}}, egress: [{action: Deny, to: [{namespaces: {}}]}]}", true},
		{adminPolicy + "subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {matchLabels: {a: x}}}]}]}", true},
		{adminPolicy + "subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {a: x}}}]}]}", false},
		{adminPolicy + "subject: {namespaces: {}}, egress: [{action: Accept, to: [{pods: {namespaceSelector: {matchExpressions: [{key: a, operator: NotIn, values: [x]}]}, podSelector: {}}}]}]}", true},
		{adminPolicy + "subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}]}]}", false},
	} {
		w, key := unknownBed(t), filter.NewKey(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.2"), filter.TCP, 80)
		w.SetPolicy(readAny(t, c.policy))
		s, _ := w.Commit()
		if got := s.Decide(key).Reason == filter.NamespaceNotKnown; got != c.needs {
			t.Errorf("%s\nneeds the labels of all namespaces: %t, want %t", c.policy, got, c.needs)
		}
		if v := s.Decide(filter.NewKey(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.0.0.1"), filter.TCP, 80)); v.Reason == filter.NamespaceNotKnown {
			t.Errorf("%s\nto a pod of a known namespace: %v", c.policy, v.Reason)
		}
	}
}

func readAny(t *testing.T, text string) *policy.Policy {
	t.Helper()
	var np networkingv1.NetworkPolicy
	var cnp v1beta1.ClusterNetworkPolicy
	if err := yaml.Unmarshal([]byte(text), &cnp); err != nil {
		t.Fatal(err)
	}
	if cnp.Namespace == "" {
		return clusterpolicy.Read(&cnp)
	}
	if err := yaml.Unmarshal([]byte(text), &np); err != nil {
		t.Fatal(err)
	}
	return netpol.Read(&np)
}

// unknownBed returns a store with a pod of namespace "known" at 10.0.0.1, and one of namespace
// "late", which has no object, at 10.0.0.2.
func unknownBed(t *testing.T) *policy.Store {
	t.Helper()
	w := policy.NewStore()
	w.RequireNamespaces()
	w.SetNamespace("known", nil)
	for i, name := range []string{"known", "late"} {
		w.SetPod(kubepod.Read(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "web"},
			Status:     corev1.PodStatus{HostIPs: []corev1.HostIP{{IP: "10.9.0.1"}}, PodIPs: []corev1.PodIP{{IP: fmt.Sprintf("10.0.0.%d", i+1)}}},
		}))
	}
	return w
}

// A pod is denied everything while its Namespace is not known and a policy needs its labels.
// Whenever this begins or ends, Commit lists the pod's address among the changes, so that live
// connections and caches follow.
func TestNamespaceArrivesAfterItsPods(t *testing.T) {
	known, late, outside, node := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("10.9.0.1")
	quarantine := adminPolicy + "subject: {namespaces: {matchLabels: {quarantine: 'yes'}}}, "
	fromAll, toNetworks := quarantine+"ingress: [{action: Deny, from: [{namespaces: {}}]}]}", quarantine+"egress: [{action: Deny, to: [{networks: [192.0.2.0/24]}]}]}"
	w := unknownBed(t)
	was, _ := w.Commit()
	check := func(step string, changes bool, reasons map[[2]netip.Addr]filter.Reason) {
		t.Helper()
		now, changed := w.Commit()
		if got := slices.Contains(changed, late); got != changes {
			t.Errorf("%s: the address is among the changes: %t, want %t", step, got, changes)
		}
		for ends, want := range reasons {
			if v := now.Decide(filter.NewKey(ends[0], ends[1], filter.TCP, 80)); v.Reason != want {
				t.Errorf("%s: %s to %s: %s, %s; want %s", step, ends[0], ends[1], v.Action, v.Reason, want)
			}
		}
		if e := now.Endpoint(late); e.Effect(filter.Ingress) == policy.Closed || e.EffectToNode() == policy.Closed {
			t.Errorf("%s: a cache would deny what is to be held", step)
		}
		if before := was.Endpoint(late); before.Effect(filter.Ingress) == policy.Open && now.Endpoint(late).Effect(filter.Ingress) != policy.Open && !policy.MayRestrict(before, now.Endpoint(late)) {
			t.Errorf("%s: live connections would not be evaluated", step)
		}
		was = now
	}
	type ends = [2]netip.Addr
	toLate, fromLate, toKnown, lateToNode, nodeToLate := ends{known, late}, ends{late, outside}, ends{outside, known}, ends{late, node}, ends{node, late}

	check("no policy", false, map[ends]filter.Reason{toLate: filter.NotIsolated, lateToNode: filter.OwnNode})
	w.SetPolicy(readAny(t, fromAll))
	check("a policy that needs labels", true, map[ends]filter.Reason{
		toLate: filter.NamespaceNotKnown, fromLate: filter.NamespaceNotKnown, toKnown: filter.NotIsolated,
		lateToNode: filter.OwnNode, nodeToLate: filter.OwnNode,
	})
	w.SetPolicy(readAny(t, toNetworks))
	check("a policy that may deny the node", true, map[ends]filter.Reason{lateToNode: filter.NamespaceNotKnown, nodeToLate: filter.OwnNode})
	w.SetPolicy(readAny(t, fromAll))
	check("the first policy again", true, map[ends]filter.Reason{lateToNode: filter.OwnNode, toLate: filter.NamespaceNotKnown})
	w.SetNamespace("late", map[string]string{"quarantine": "yes"})
	check("the namespace with the label", true, map[ends]filter.Reason{toLate: filter.IngressDenied, fromLate: filter.NotIsolated})
	w.DeleteNamespace("late")
	check("the namespace deleted", true, map[ends]filter.Reason{toLate: filter.NamespaceNotKnown})
	w.SetNamespace("late", nil)
	check("the namespace without the label", true, map[ends]filter.Reason{toLate: filter.NotIsolated})
	w.DeleteNamespace("late")
	check("the namespace deleted again", true, map[ends]filter.Reason{toLate: filter.NamespaceNotKnown})
	w.DeletePolicy(clusterpolicy.Ref("p"))
	check("the policy deleted", true, map[ends]filter.Reason{toLate: filter.NotIsolated})
}
