package policy_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
)

// ordered is a policy of the tier Admin or Baseline, made of a NetworkPolicy and an action
// for each of its rules.
type ordered struct {
	object  *networkingv1.NetworkPolicy
	tier    policy.Tier
	actions [2][]policy.Action // the actions of the rules, by direction
}

func (o *ordered) form() *policy.Policy {
	form := netpol.Read(o.object)
	form.Ref.Kind, form.Tier, form.Isolates = "Ordered", o.tier, [2]bool{}
	form.Digest, form.Source = [32]byte{}, policy.Source{}
	for d := range form.Rules {
		for i := range form.Rules[d] {
			form.Rules[d][i].Action = o.actions[d][i]
		}
	}
	return form
}

func (o *ordered) name() string { return o.object.Namespace + "/" + o.object.Name }

// tiered is a cluster with policies of all tiers.
type tiered struct {
	*cluster
	ordered []*ordered
}

func (r chance) tiered() *tiered {
	c := &tiered{cluster: r.cluster()}
	c.Policies = c.Policies[:min(len(c.Policies), r.IntN(6))]
	for i := range 1 + r.IntN(10) {
		o := &ordered{object: r.policy(fmt.Sprintf("o%d", i)), tier: oneOf(r, policy.Admin, policy.Baseline)}
		o.object.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
		r.act(o)
		c.ordered = append(c.ordered, o)
	}
	slices.SortFunc(c.ordered, func(a, b *ordered) int { return strings.Compare(a.name(), b.name()) })
	return c
}

// act sets random actions for the rules of a policy.
func (r chance) act(o *ordered) {
	for d, n := range [2]int{filter.Egress: len(o.object.Spec.Egress), filter.Ingress: len(o.object.Spec.Ingress)} {
		o.actions[d] = nil
		for range n {
			o.actions[d] = append(o.actions[d], oneOf(r, policy.Accept, policy.Deny, policy.Pass))
		}
	}
}

// first returns the first rule of a tier that matches the flow, with its action. If no rule
// matches, it returns Pass and nil. It is the oracle of ordered rules: it tries one rule
// after the other.
func (c *tiered) first(t policy.Tier, d filter.Direction, f flow, pod, peer, dst *corev1.Pod) (policy.Action, *filter.Rule) {
	addr := f.Dst
	if d == filter.Ingress {
		addr = f.Src
	}
	for _, o := range c.ordered {
		if o.tier != t || o.object.Namespace != pod.Namespace {
			continue
		}
		rules := rulesOf(o.object, d)
		selector, err := metav1.LabelSelectorAsSelector(&o.object.Spec.PodSelector)
		switch {
		case err != nil && len(rules) > 0: // it may mean any pod: all are denied
			return policy.Deny, &filter.Rule{Policy: o.name(), Tier: t, Direction: d, Action: policy.Deny}
		case err != nil || !selector.Matches(labels.Set(pod.Labels)):
			continue
		}
		form := o.form()
		for i, r := range rules {
			action, read := o.actions[d][i], form.Rules[d][i]
			peers := slices.ContainsFunc(read.Peers, func(p policy.Peer) bool { return p.Malformed != "" })
			ports := slices.ContainsFunc(read.Ports, func(p policy.PortRange) bool { return p.Malformed })
			if action == policy.Accept {
				peers, ports = false, false // a malformed part of a rule that accepts matches nothing
			} else if peers || ports {
				action = policy.Deny // any other malformed rule denies everything that it may be meant for
			}
			if (ports || anyPortMatches(r.ports, f, dst)) && (peers || c.anyPeerMatches(r.peers, o.object.Namespace, addr, peer)) {
				return action, &filter.Rule{Policy: o.name(), Tier: t, Direction: d, Action: action, Index: i}
			}
		}
	}
	return policy.Pass, nil
}

// side reports whether the tiers of one direction allow the flow. If an ordered tier
// decides, side also returns its rule.
func (c *tiered) side(d filter.Direction, f flow) (allows bool, rule *filter.Rule) {
	src, dst := c.podAt(f.Src), c.podAt(f.Dst)
	pod, peer := src, dst
	if d == filter.Ingress {
		pod, peer = dst, src
	}
	if pod == nil {
		return true, nil
	}
	if action, rule := c.first(policy.Admin, d, f, pod, peer, dst); action != policy.Pass {
		return action == policy.Accept, rule
	}
	if isolated := c.judgeSide(d, f, src, dst); len(isolated.Isolating) > 0 {
		return isolated.allows(), nil
	}
	if action, rule := c.first(policy.Baseline, d, f, pod, peer, dst); action != policy.Pass {
		return action == policy.Accept, rule
	}
	return true, nil
}

// ownNode returns whether the ordered tiers allow what a pod sends to its own node, and the
// rule that decides, if one does. NetworkPolicies never deny it, but a pod that they isolate
// does not come to the tier Baseline.
func (c *tiered) ownNode(f flow) (allows bool, rule *filter.Rule) {
	src := c.podAt(f.Src)
	if src == nil {
		return true, nil
	}
	tiers := []policy.Tier{policy.Admin, policy.Baseline}
	if len(c.judgeSide(filter.Egress, f, src, nil).Isolating) > 0 {
		tiers = tiers[:1]
	}
	for _, t := range tiers {
		// The destination is the node, even if a pod claims its address.
		if action, rule := c.first(t, filter.Egress, f, src, nil, nil); action != policy.Pass {
			return action == policy.Accept, rule
		}
	}
	return true, nil
}

// exemption is a group of flows for which other rules hold than between two pods.
type exemption uint8

const (
	notExempt exemption = iota
	allowed             // whatever the policies are
	toOwnNode           // from a pod to its node: only ordered rules can deny it
)

// exemption returns the exemption of a flow. What a node sends to its own pods is always
// allowed, so that probes reach them.
func (c *tiered) exemption(f flow) exemption {
	src, dst := c.podAt(f.Src), c.podAt(f.Dst)
	switch {
	case f.Src == f.Dst, slices.Contains(c.Node, f.Src), src == nil && runsOn(dst, f.Src):
		return allowed
	case slices.Contains(c.Node, f.Dst), dst == nil && runsOn(src, f.Dst):
		return toOwnNode
	}
	return notExempt
}

// ownNodeDisagreement is disagreement for a flow from a pod to its own node.
func (c *tiered) ownNodeDisagreement(v filter.Verdict, f flow) string {
	allows, rule := c.ownNode(f)
	switch {
	case (v.Action == filter.Allow) != allows:
		return fmt.Sprintf("%s to the own node, but the oracle allows the flow: %t (%v)", v.Action, allows, rule)
	case rule != nil && (v.Egress.Rule == nil || *v.Egress.Rule != *rule):
		return fmt.Sprintf("%v decides about a flow to the own node, want %v", v.Egress.Rule, *rule)
	}
	return ""
}

// disagreement describes how the snapshot's verdict differs from the oracle's. It is empty
// if they agree.
func (c *tiered) disagreement(s *policy.Snapshot, f flow) string {
	v := s.Decide(f.key())
	switch c.exemption(f) {
	case allowed:
		if v.Action != filter.Allow {
			return "an exempt flow is denied"
		}
		return ""
	case toOwnNode:
		return c.ownNodeDisagreement(v, f)
	}
	allows := true
	for d, got := range [2]filter.Side{filter.Egress: v.Egress, filter.Ingress: v.Ingress} {
		d := filter.Direction(d)
		want, rule := c.side(d, f)
		allows = allows && want
		e := s.Endpoint(f.Src)
		if d == filter.Ingress {
			e = s.Endpoint(f.Dst)
		}
		switch effect := e.Effect(d); {
		case got.Allows() != want:
			return fmt.Sprintf("%s: allows %t, want %t (%v)", d, got.Allows(), want, rule)
		case rule != nil && (got.Rule == nil || *got.Rule != *rule):
			return fmt.Sprintf("%s: %v decides, want %v", d, got.Rule, *rule)
		case effect == policy.Open && !want, effect == policy.Closed && want:
			return fmt.Sprintf("%s: the effect is %d, but the oracle allows the flow: %t", d, effect, want)
		}
	}
	if (v.Action == filter.Allow) != allows {
		return fmt.Sprintf("%s, but the oracle allows the flow: %t", v.Action, allows)
	}
	return ""
}

// store returns a store with the cluster and its ordered policies. In half of the cases, the
// policies had different actions at an earlier commit.
func (c *tiered) store(r chance) *policy.Store {
	w := c.newStore()
	if r.oneIn(2) {
		for _, o := range c.ordered {
			other := *o
			r.act(&other)
			w.SetPolicy(other.form())
		}
		w.Commit()
	}
	for _, o := range c.ordered {
		w.SetPolicy(o.form())
	}
	return w
}

// The number of clusters that TestTiersAgainstOracle generates, with flowsPerCluster
// decisions each.
const (
	tieredFull  = 5_000 // used if SLUICE_FULL_TEST is set
	tieredBrief = 500
)

// TestTiersAgainstOracle compares random decisions about policies of all tiers with the
// oracle. A verdict with Pair set must be the same for another port and protocol.
func TestTiersAgainstOracle(t *testing.T) {
	clusters := uint64(tieredBrief)
	if os.Getenv("SLUICE_FULL_TEST") != "" {
		clusters = tieredFull
	}
	var denied, decided, open, pairs atomic.Uint64
	inParallel(clusters, func(seed uint64) bool {
		r := newChance(seed)
		c := r.tiered()
		c.shape = int(seed % policy.Shapes)
		s, _ := c.store(r).Commit()
		for range flowsPerCluster {
			f := r.flow(c.cluster)
			if d := c.disagreement(s, f); d != "" {
				t.Errorf("seed %d: %s: %s", seed, f.key(), d)
				return false
			}
			v := s.Decide(f.key())
			if v.Pair {
				pairs.Add(1)
				other := f
				other.Protocol, other.Transport, other.Port = oneOf(r, filter.TCP, filter.UDP, filter.SCTP), filter.Ported, uint16(oneOf(r, portNumbers...))
				if again := s.Decide(other.key()); again.Action != v.Action {
					t.Errorf("seed %d: %s has Pair set, but %s has another verdict", seed, f.key(), other.key())
					return false
				}
			}
			if v.Egress.Rule != nil && v.Egress.Isolation == nil || v.Ingress.Rule != nil && v.Ingress.Isolation == nil {
				decided.Add(1)
			}
			if v.Action == filter.Deny {
				denied.Add(1)
			}
			if e := s.Endpoint(f.Src); e != nil && e.Effect(filter.Egress) == policy.Open {
				open.Add(1)
			}
		}
		return true
	})
	if t.Failed() {
		return
	}
	most := clusters * flowsPerCluster
	for what, n := range map[string]uint64{"denied": denied.Load(), "decided by an ordered rule": decided.Load(), "from an open endpoint": open.Load(), "the same for all ports": pairs.Load()} {
		t.Logf("%d of %d are %s", n, most, what)
		if n < most/50 {
			t.Errorf("only %d of %d are %s", n, most, what)
		}
	}
}

// A policy with an action or tier that this package does not know denies flows, and is
// reported as a problem. A later version of a package that reads policies may produce one.
func TestUnknownActionDenies(t *testing.T) {
	for name, form := range map[string]*policy.Policy{
		"action": {Tier: policy.Admin, Rules: [2][]policy.Rule{filter.Ingress: {{Action: 9}}}},
		"tier":   {Tier: 9, Rules: [2][]policy.Rule{filter.Ingress: {{Action: policy.Accept}}}},
		"none":   {Rules: [2][]policy.Rule{filter.Ingress: {{Action: policy.Accept}}}},
	} {
		form.Ref = policy.Ref{Kind: "Later", Namespace: "a", Name: "p"}
		form.Subject = policy.Subject{Namespace: "a", Pods: labels.Everything()}
		w := policy.NewStore()
		pod := &policy.Pod{Namespace: "a", Name: "x", Addrs: addrs("10.0.0.1")}
		w.SetPod(pod)
		w.SetPolicy(form)
		s, _ := w.Commit()
		f := flow{Src: outsideAddrs[0], Dst: pod.Addrs[0], Protocol: filter.TCP, Transport: filter.Ported, Port: 80}
		if v := s.Decide(f.key()); v.Action != filter.Deny || len(w.Problems()) != 1 {
			t.Errorf("%s: %s, problems %v", name, v.Action, w.Problems())
		}
	}
}
