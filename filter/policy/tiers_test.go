package policy_test

import (
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
)

// onePod returns a store with the pod a/x at 10.0.0.1.
func onePod() *policy.Store {
	w := policy.NewStore()
	w.SetPod(&policy.Pod{Namespace: "a", Name: "x", Addrs: addrs("10.0.0.1")})
	return w
}

// toPod is a flow from outside the cluster to the pod of onePod. fromPod is a flow from this
// pod to the outside.
var (
	toPod   = flow{Src: outsideAddrs[0], Dst: netip.MustParseAddr("10.0.0.1"), Protocol: filter.TCP, Transport: filter.Ported, Port: 80}
	fromPod = flow{Src: netip.MustParseAddr("10.0.0.1"), Dst: outsideAddrs[0], Protocol: filter.TCP, Transport: filter.Ported, Port: 80}
)

// A policy with an unknown action or tier denies, and is reported as a problem. A reader of a
// later version may produce such a policy.
func TestUnknownActionDenies(t *testing.T) {
	for name, form := range map[string]*policy.Policy{
		"action": {Tier: policy.Admin, Rules: [2][]policy.Rule{filter.Ingress: {{Action: 9}}}},
		"tier":   {Tier: 9, Rules: [2][]policy.Rule{filter.Ingress: {{Action: policy.Accept}}}},
		"none":   {Rules: [2][]policy.Rule{filter.Ingress: {{Action: policy.Accept}}}},
	} {
		for _, clusterWide := range []bool{false, true} {
			form.Ref = policy.Ref{Kind: "Later", Namespace: "a", Name: "p"}
			form.Subject = policy.Subject{Namespace: "a", Pods: labels.Everything()}
			if clusterWide {
				form.Ref.Namespace, form.Subject = "", policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()}
			}
			w := onePod()
			w.SetPolicy(form)
			s, _ := w.Commit()
			if v := s.Decide(toPod.key()); v.Action != filter.Deny || len(w.Problems()) != 1 {
				t.Errorf("%s: %s, problems %v", name, v.Action, w.Problems())
			}
		}
	}
}

// A peer or port that cannot be understood matches nothing in a rule that accepts. Any other
// rule with such a part denies everything that the part may mean.
func TestPartsThatCannotBeUnderstood(t *testing.T) {
	everywhere := policy.Peer{Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}}
	for name, part := range map[string]policy.Rule{
		"a malformed peer":     {Peers: []policy.Peer{{Malformed: "."}}},
		"a peer with no field": {Peers: []policy.Peer{{}}},
		"a peer by name":       {Peers: []policy.Peer{{Names: []string{"example.com"}}}},
		"no network":           {Peers: []policy.Peer{{Networks: []netip.Prefix{{}}}}},
		"a mapped network":     {Peers: []policy.Peer{{Networks: []netip.Prefix{netip.MustParsePrefix("::ffff:0.0.0.0/96")}}}},
		"a malformed port":     {Ports: []policy.PortRange{{Malformed: true}}},
		"beside what matches":  {Peers: []policy.Peer{everywhere}, Ports: []policy.PortRange{{Malformed: true}}},
	} {
		for action, want := range map[policy.Action]filter.Action{policy.Accept: filter.Deny, policy.Deny: filter.Deny, policy.Pass: filter.Deny} {
			rule := part
			rule.Action = action
			w := onePod()
			w.SetPolicy(&policy.Policy{
				Ref: policy.Ref{Kind: "Cluster", Name: "p"}, Tier: policy.Admin, Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
				Rules: [2][]policy.Rule{filter.Egress: {rule}},
			})
			w.SetPolicy(&policy.Policy{ // comes after p and denies everything: it decides if the rule of p matches nothing
				Ref: policy.Ref{Kind: "Cluster", Name: "q"}, Tier: policy.Admin, Priority: 1, Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
				Rules: [2][]policy.Rule{filter.Egress: {{Action: map[policy.Action]policy.Action{policy.Accept: policy.Deny}[action]}}},
			})
			s, _ := w.Commit()
			v := s.Decide(fromPod.key())
			if v.Action != want {
				t.Errorf("%s in a rule that should %s: %s", name, action, v.Action)
			}
			if by := map[policy.Action]string{policy.Accept: "q", policy.Deny: "p", policy.Pass: "p"}[action]; v.Egress.Rule == nil || v.Egress.Rule.Policy != by {
				t.Errorf("%s in a rule that should %s: decided by %s, want %s", name, action, ruleText(v.Egress.Rule), by)
			}
		}
	}
}

// tiered is a cluster with ClusterNetworkPolicies.
type tiered struct{ *cluster }

func (r chance) tiered() *tiered {
	c := &tiered{r.cluster()}
	if len(c.Cluster) == 0 {
		r.addClusterPolicies(c.cluster)
	}
	return c
}

// store returns a store with the objects of the cluster and its ordered policies, not
// committed. In half of the calls, it first commits versions of the ordered policies with
// other actions.
func (c *tiered) store(r chance) *policy.Store {
	w := c.newStore()
	if r.oneIn(2) {
		for _, o := range c.Cluster {
			w.SetPolicy(clusterpolicy.Read(r.clusterPolicy(o.Name)))
		}
		w.Commit()
		c.into(w)
	}
	return w
}

// ownNode reports whether the ordered tiers allow what a pod sends to its own node, and
// returns the rule that decides, if one does.
func (c *tiered) ownNode(f flow) (allows bool, rule *filter.Rule) {
	side := c.judgeOwnNode(f)
	return side.allows(), side.Ordered
}
