package policy_test

import (
	"slices"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
)

// coverage counts the kinds of rules and verdicts that random decisions reach, so that a
// test fails if the generator stops reaching one of them.
type coverage struct {
	reasons map[filter.Reason]int
	kinds   map[string]int
	forms   [5]int // sums of the counts that Store.Forms returns
}

func newCoverage() *coverage {
	return &coverage{reasons: map[filter.Reason]int{}, kinds: map[string]int{}}
}

func (s *coverage) add(o *coverage) {
	for i, n := range o.forms {
		s.forms[i] += n
	}
	for reason, n := range o.reasons {
		s.reasons[reason] += n
	}
	for kind, n := range o.kinds {
		s.kinds[kind] += n
	}
}

// countForms adds the counts that Store.Forms returns.
func (s *coverage) countForms(flat, trees, refer, apart, tables int) {
	for i, n := range []int{flat, trees, refer, apart, tables} {
		s.forms[i] += n
	}
}

// count counts one decision: its reason, and the parts of rules that match.
func (s *coverage) count(c *cluster, f flow, j judgement) {
	s.reasons[j.reason()]++
	if len(c.Cluster) > 0 {
		s.kinds["beside ClusterNetworkPolicies"]++
	}
	if j.exempt() {
		return
	}
	for d, side := range []sideJudgement{filter.Egress: j.Egress, filter.Ingress: j.Ingress} {
		if len(side.Isolating) > 1 {
			s.kinds["several policies"]++
		}
		for _, rule := range []*filter.Rule{side.Passed, side.Ordered} {
			if rule != nil {
				s.countOrdered(c, f, filter.Direction(d), rule, j.ToNode)
			}
		}
		for _, p := range c.Policies {
			if slices.Contains(side.Isolating, p.Namespace+"/"+p.Name) {
				for _, rule := range rulesOf(p, filter.Direction(d)) {
					s.countRule(c, f, filter.Direction(d), p.Namespace, rule)
				}
			}
		}
	}
}

// countRule counts the parts of a rule that match.
func (s *coverage) countRule(c *cluster, f flow, d filter.Direction, namespace string, rule policyRule) {
	src, dst := c.podAt(f.Src), c.podAt(f.Dst)
	peer, peerAddr := dst, f.Dst
	if d == filter.Ingress {
		peer, peerAddr = src, f.Src
	}
	if !anyPortMatches(rule.ports, f, dst) {
		return
	}
	for _, p := range rule.peers {
		if c.peerMatches(p, namespace, peerAddr, peer) {
			s.countPeer(p)
		} else if p.IPBlock != nil {
			if in, ok := cidrContains(p.IPBlock.CIDR, peerAddr); in && ok {
				s.kinds["except"]++
			}
			if _, ok := cidrContains(p.IPBlock.CIDR, peerAddr); !ok {
				s.kinds["malformed CIDR"]++
			}
		}
	}
	if !c.anyPeerMatches(rule.peers, namespace, peerAddr, peer) {
		return
	}
	if len(rule.peers) == 0 {
		s.kinds["every peer"]++
	}
	if len(rule.ports) == 0 {
		s.kinds["every port"]++
		s.kinds["every port, "+f.Transport.String()]++
	}
	for _, item := range rule.ports {
		if portMatches(item, f, dst) {
			s.kinds[portKind(item)]++
			s.kinds[f.Protocol.String()]++
		}
	}
}

// countOrdered counts a rule of a ClusterNetworkPolicy that matches, and its parts.
func (s *coverage) countOrdered(c *cluster, f flow, d filter.Direction, rule *filter.Rule, toNode bool) {
	s.kinds[rule.Tier.String()+" "+rule.Action.String()]++
	if toNode {
		s.kinds["to the own node: "+rule.Action.String()]++
	}
	src, dst := c.podAt(f.Src), c.podAt(f.Dst)
	peer := dst
	if d == filter.Ingress {
		peer = src
	}
	i := slices.IndexFunc(c.Cluster, func(p *v1beta1.ClusterNetworkPolicy) bool { return p.Name == rule.Policy })
	r := clusterRules(c.Cluster[i], d)[rule.Index]
	if r.malformed() {
		s.kinds["closed rule"]++
		return
	}
	for _, p := range r.peers {
		if !c.clusterPeerMatches([]v1beta1.ClusterNetworkPolicyEgressPeer{p}, d, f, peer) {
			continue
		}
		for kind, is := range map[string]bool{"namespaces": p.Namespaces != nil, "pods": p.Pods != nil, "nodes": p.Nodes != nil, "networks": p.Networks != nil} {
			if is {
				s.kinds["peer by "+kind]++
			}
		}
	}
	for _, p := range r.protocols {
		if p.DestinationNamedPort != "" && f.Transport == filter.Ported {
			s.kinds["destinationNamedPort"]++
		}
	}
}

func (s *coverage) countPeer(p networkingv1.NetworkPolicyPeer) {
	switch {
	case p.IPBlock != nil && len(p.IPBlock.Except) > 0:
		s.kinds["ipBlock beside its except"]++
	case p.IPBlock != nil:
		s.kinds["ipBlock"]++
	case p.PodSelector == nil:
		s.kinds["namespaceSelector"]++
	case p.NamespaceSelector == nil:
		s.kinds["podSelector"]++
	default:
		s.kinds["both selectors"]++
	}
	if p.PodSelector != nil {
		for _, e := range p.PodSelector.MatchExpressions {
			s.kinds[string(e.Operator)]++
		}
	}
}

func portKind(item networkingv1.NetworkPolicyPort) string {
	switch {
	case item.Port == nil:
		return "protocol without port"
	case item.Port.Type == intstr.String:
		return "named port"
	case item.EndPort != nil:
		return "port range"
	}
	return "port number"
}

// check fails the test if the decisions reached a reason, a kind or a form too rarely.
func (s *coverage) check(t *testing.T, decisions int) {
	t.Helper()
	t.Logf("%d decisions: %v, %v", decisions, s.reasons, s.kinds)
	for i, form := range []string{"flat", "trees", "with references", "in parts", "rank tables"} {
		if s.forms[i] < decisions/20_000 {
			t.Errorf("only %d compiled forms were %s", s.forms[i], form)
		}
	}
	for reason := filter.NotIsolated; reason <= filter.IngressDenied; reason++ {
		if s.reasons[reason] < decisions/200 {
			t.Errorf("only %d of %d decisions were %s", s.reasons[reason], decisions, reason)
		}
	}
	for _, kind := range []string{
		"several policies", "every peer", "podSelector", "namespaceSelector", "both selectors", "ipBlock", "ipBlock beside its except",
		"except", "malformed CIDR", "In", "NotIn", "Exists", "DoesNotExist",
		"every port", "every port, opaque", "every port, portless", "every port, ported",
		"protocol without port", "port number", "port range", "named port", "TCP", "UDP", "SCTP",
		"Admin accept", "Admin deny", "Admin pass", "Baseline accept", "Baseline deny", "Baseline pass", "closed rule",
		"peer by namespaces", "peer by pods", "peer by nodes", "peer by networks", "destinationNamedPort",
	} {
		if s.kinds[kind] < decisions/1000 {
			t.Errorf("only %d of %d decisions matched %q", s.kinds[kind], decisions, kind)
		}
	}
	for _, kind := range []string{"to the own node: accept", "to the own node: deny", "to the own node: pass"} {
		if s.kinds[kind] < decisions/5000 {
			t.Errorf("only %d of %d decisions matched %q", s.kinds[kind], decisions, kind)
		}
	}
}
