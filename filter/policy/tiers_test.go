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
		case err != nil && len(rules) > 0: // an invalid selector may be meant for any pod, so the flow is denied
			return policy.Deny, &filter.Rule{Policy: o.name(), Direction: d, Denies: true}
		case err != nil || !selector.Matches(labels.Set(pod.Labels)):
			continue
		}
		form := o.form()
		for i, r := range rules {
			action, read := o.actions[d][i], form.Rules[d][i]
			peers := slices.ContainsFunc(read.Peers, func(p policy.Peer) bool { return p.Malformed != "" })
			ports := slices.ContainsFunc(read.Ports, func(p policy.PortRange) bool { return p.Malformed })
			if action == policy.Accept {
				peers, ports = false, false // in a rule that accepts, a malformed peer or port matches nothing
			} else if peers || ports {
				action = policy.Deny // with the action Deny or Pass, a malformed rule denies all flows that it may be meant for
			}
			if (ports || anyPortMatches(r.ports, f, dst)) && (peers || c.anyPeerMatches(r.peers, o.object.Namespace, addr, peer)) {
				return action, &filter.Rule{Policy: o.name(), Direction: d, Denies: action == policy.Deny, Index: i}
			}
		}
	}
	return policy.Pass, nil
}

// side reports whether the tiers of one direction allow the flow. If the tier Admin or Baseline
// decides, side also returns the rule that decides.
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

// disagreement describes how the snapshot's verdict differs from the oracle's. It is empty
// if they agree.
func (c *tiered) disagreement(s *policy.Snapshot, f flow) string {
	v := s.Decide(f.key())
	if c.judge(f).exempt() {
		if v.Action != filter.Allow {
			return "an exempt flow is denied"
		}
		return ""
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

// store returns a store with the objects of the cluster and its ordered policies, not
// committed. In half of the calls, it first commits versions of the ordered policies with
// other actions.
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
