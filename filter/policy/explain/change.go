package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/netpol"
)

// Change is a suggestion to the user, after which one side (egress or ingress) allows the flow:
// an addition to a policy, or a whole new one.
//
// It goes to the policy that selects the fewest pods, and never to one that selects every pod of
// its namespace. It never adds a port to a rule for every peer, or a peer to a rule for every
// port: both would allow flows that have nothing to do with the question.
type Change struct {
	Policy    policy.Ref
	Direction filter.Direction
	// Field is the list to add to, as in "spec.ingress[0].from". It is empty if New is set.
	Field string
	// New is the policy to add, or nil. Rule is then its only rule.
	New *policy.Policy
	// Before is the rule that the addition must come before. It is nil if the order of rules
	// has no meaning. If Before is set, Rule is the rule to add.
	Before *filter.Rule
	Notes  []string // what else the addition allows, and other ways to allow the flow
	// Rule is the rule to add. If To is set, only its peers or its ports are added to that rule.
	Rule policy.Rule
	To   *filter.Rule
	// Problem is set if an addition would not take effect. The problem must then be corrected
	// instead.
	Problem *policy.Problem
	// Hint tells what to do if the change cannot be written as a policy, because something is not
	// known; otherwise it is empty.
	Hint string
}

// Written reports whether the change is written as a policy or a part of one, rather than a Problem or
// a Hint.
func (c *Change) Written() bool { return c != nil && c.Problem == nil && c.Hint == "" }

// Add returns what to add, in the form of the API: items of the list Field, or the new policy.
func (c *Change) Add() (items []any) {
	switch {
	case c.New != nil:
		return []any{netpol.WritePolicy(c.New)}
	case c.Before != nil:
		return []any{clusterpolicy.WriteRule(c.Direction, c.Rule)}
	case c.To == nil:
		return []any{netpol.WriteRule(c.Direction, c.Rule)}
	}
	for _, p := range c.Rule.Peers {
		items = append(items, netpol.WritePeer(p))
	}
	for _, p := range c.Rule.Ports {
		items = append(items, netpol.WritePort(p))
	}
	return items
}

// change returns the smallest change that allows the flow: an addition to a rule if that rule has only
// one mismatch; otherwise a new rule, or a new policy.
func (c *Cluster) change(s *Side, f Flow) *Change {
	if p := c.inTheWay(s); p != nil {
		return &Change{Policy: c.refOf(s.Nearest[0].Rule.Policy), Direction: s.Direction, Problem: p}
	}
	if !slices.ContainsFunc(s.Policies, c.takesRules) && len(s.Nearest) == 0 {
		if p := c.problems[s.Policies[0]]; len(p) > 0 {
			return &Change{Policy: c.refOf(s.Policies[0]), Direction: s.Direction, Problem: &p[0]}
		}
	}
	if hint := unknownPeer(s, f); hint != "" {
		return &Change{Direction: s.Direction, Hint: hint}
	}
	targets := c.targets(s)
	nearest := c.nearestOf(s, f, targets)
	if nearest != nil {
		if add := c.addition(s, f, nearest); add != nil {
			return add
		}
	}
	if len(targets) == 0 {
		return c.newPolicy(s, f)
	}
	return c.newRule(s, f, targets[0], nearest)
}

// unknownPeer returns what to do if no peer can match the other end of the flow, because it is a pod of
// the host network, which no selector matches, on a node with unknown addresses. Otherwise it returns
// "".
func unknownPeer(s *Side, f Flow) string {
	peer, list := peerEnd(s.Direction, f)
	if !peer.Node || !peer.Assumed {
		return ""
	}
	return fmt.Sprintf("add a rule whose %q has an ipBlock with the addresses of the nodes that %s runs on: it is in the host network, and they are not known here", list, peer.Name)
}

// peerEnd returns the end that is the peer in rules of direction d, and the name of the field for
// peers.
func peerEnd(d filter.Direction, f Flow) (*End, string) {
	if d == filter.Egress {
		return f.To, "to"
	}
	return f.From, "from"
}

// targets returns the policies that may take an addition: those that select the fewest pods among the
// policies that isolate the pod. It excludes policies with problems, and policies that select every pod
// of their namespace.
func (c *Cluster) targets(s *Side) (best []string) {
	fewest := 0
	for _, name := range s.Policies {
		if !c.takesRules(name) || c.policies[name].Subject.Pods.Empty() {
			continue
		}
		n := c.selected(c.policies[name])
		if best == nil || n < fewest {
			best, fewest = nil, n
		}
		if n == fewest {
			best = append(best, name)
		}
	}
	return best
}

// selected counts the pods that a policy selects.
func (c *Cluster) selected(p *policy.Policy) (n int) {
	for _, pod := range c.inventory.AllPods() {
		if c.selects(p, pod) {
			n++
		}
	}
	return n
}

// nearestOf returns the rule with the fewest mismatches among the rules of the given policies, or nil
// if they have no rules.
func (c *Cluster) nearestOf(s *Side, f Flow, policies []string) *RuleMatch {
	all := c.matchAll(s.Direction, f, policies)
	if len(all) == 0 {
		return nil
	}
	r := slices.MinFunc(all, func(a, b RuleMatch) int { return len(a.Mismatches) - len(b.Mismatches) })
	return &r
}

// addition returns an addition to a rule. It returns nil if the rule has several mismatches, or if the
// addition would widen the rule for every peer or every port.
func (c *Cluster) addition(s *Side, f Flow, r *RuleMatch) *Change {
	if len(r.Mismatches) != 1 {
		return nil
	}
	rule := c.rules(s.Direction, r.Rule.Policy)[r.Rule.Index]
	out := &Change{Policy: c.refOf(r.Rule.Policy), Direction: s.Direction, To: &r.Rule}
	switch {
	case r.mismatches("port") && f.Key.Transport == filter.Ported && len(rule.Peers) > 0:
		out.Field, out.Rule.Ports = ruleField(r.Rule)+".ports", portsOf(f.Key)
	case r.mismatches("peer") && (len(rule.Ports) > 0 || f.Key.Transport != filter.Ported):
		_, list := peerEnd(s.Direction, f)
		out.Field, out.Rule.Peers = ruleField(r.Rule)+"."+list, []policy.Peer{c.peerOf(s.Direction, f, r.Rule.Policy, r)}
		out.Notes = portless(f, "ports")
	default:
		return nil
	}
	return out
}

// newRule returns a change that adds a rule to a policy. nearest is the policy's rule with the fewest
// mismatches, or nil.
func (c *Cluster) newRule(s *Side, f Flow, name string, nearest *RuleMatch) *Change {
	if nearest != nil {
		name = nearest.Rule.Policy
	}
	return &Change{
		Policy: c.refOf(name), Direction: s.Direction, Field: "spec." + s.Direction.String(),
		Rule:  policy.Rule{Action: policy.Accept, Peers: []policy.Peer{c.peerOf(s.Direction, f, name, nearest)}, Ports: portsOf(f.Key)},
		Notes: portless(f, "ports"),
	}
}

// inTheWay returns the problem of the nearest rule (a malformed port or peer), or nil if it has
// none. The user must correct this problem before an addition to the rule can help, because the
// API server, and an agent that reads manifests, refuse a policy with a malformed item. Often
// the correction alone is enough: for example, the rule names the right port, but in quotes.
func (c *Cluster) inTheWay(s *Side) *policy.Problem {
	if len(s.Nearest) == 0 {
		return nil
	}
	r := &s.Nearest[0]
	part := ruleField(r.Rule)
	if r.mismatches("port") {
		part += ".ports"
	}
	return c.problemOf(r.Rule, part)
}

// refOf returns the reference of a policy that a verdict names.
func (c *Cluster) refOf(name string) policy.Ref {
	if p := c.policies[name]; p != nil {
		return p.Ref
	}
	return c.problems[name][0].Policy
}

// takesRules reports whether a rule that is added to the policy would take effect.
func (c *Cluster) takesRules(name string) bool {
	return c.policies[name] != nil && len(c.problems[name]) == 0
}

// portsOf returns the ports of a rule for a flow. It returns none for a protocol without ports, because
// only a rule for every port allows such a flow.
func portsOf(k filter.Key) []policy.PortRange {
	if k.Transport != filter.Ported {
		return nil
	}
	return []policy.PortRange{{Protocol: k.Protocol, Low: k.Port, High: k.Port}}
}

// peerOf returns a peer that matches the other end of the flow, for a rule of the given policy. If the
// other end is a pod, the peer has those of the pod's labels whose keys the nearest rule uses too. If
// there are none, it has the labels by which the pod's workload selects. If the other end is not a pod,
// the peer is a block with its addresses.
func (c *Cluster) peerOf(d filter.Direction, f Flow, name string, nearest *RuleMatch) policy.Peer {
	peer, _ := peerEnd(d, f)
	switch {
	case peer.Range != nil:
		return policy.Peer{Block: c.blockOf(peer)}
	case peer.Pod == nil:
		addr := f.Key.DstAddr()
		if d == filter.Ingress {
			addr = f.Key.SrcAddr()
		}
		return policy.Peer{Block: &policy.Block{CIDR: netip.PrefixFrom(addr, addr.BitLen())}}
	}
	chosen := make(labels.Set)
	if nearest != nil {
		for _, l := range nearest.Mismatches {
			for _, k := range l.keys {
				if v, ok := peer.Pod.Labels[k]; ok {
					chosen[k] = v
				}
			}
		}
	}
	if len(chosen) == 0 {
		chosen = c.labelsOf(peer.Pod)
	}
	p := policy.Peer{Pods: labels.SelectorFromSet(chosen)}
	if of := c.policies[name]; of == nil && namespaceOf(name) != peer.Pod.Namespace || of != nil && (of.Tier != policy.NetworkPolicy || of.Subject.Namespace != peer.Pod.Namespace) {
		p.Namespaces = labels.SelectorFromSet(labels.Set{corev1.LabelMetadataName: peer.Pod.Namespace})
	}
	return p
}

// blockOf returns a block with the addresses of a range. If the range is outside the cluster, the block
// excludes the known ranges of pods.
func (c *Cluster) blockOf(e *End) *policy.Block {
	out := &policy.Block{CIDR: e.Range.Prefix, Except: slices.Clone(e.Range.Except)}
	for _, p := range c.inventory.KnownPodRanges() {
		within := func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Contains(p.Addr()) }
		if p.Bits() > out.CIDR.Bits() && out.CIDR.Contains(p.Addr()) && !p.Contains(e.Addrs[0]) && !slices.ContainsFunc(out.Except, within) {
			out.Except = slices.DeleteFunc(out.Except, func(o netip.Prefix) bool { return p.Contains(o.Addr()) })
			out.Except = append(out.Except, p.Masked())
		}
	}
	slices.SortFunc(out.Except, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

// joinBlocks merges two changes that differ only in the blocks of their peers. It returns false if they
// differ in anything else.
func joinBlocks(a, b *Change) (*Change, bool) {
	if a == nil || b == nil {
		return a, a == b
	}
	block := func(p policy.Peer) bool { return p.Block != nil }
	if sameText(a, b) {
		return a, true
	}
	if !a.Written() || !b.Written() || !slices.ContainsFunc(a.Rule.Peers, block) || !slices.ContainsFunc(b.Rule.Peers, block) {
		return nil, false
	}
	x, y := a.withPeers(nil), b.withPeers(nil)
	if y.New != nil && x.New != nil {
		y.New.Ref, y.Policy = x.New.Ref, x.Policy // the name of a new policy contains its first peer, so ignore it
	}
	if !sameText(x, y) {
		return nil, false
	}
	var ranges []inventory.Range
	for _, p := range slices.Concat(a.Rule.Peers, b.Rule.Peers) {
		ranges = append(ranges, inventory.Range{Prefix: p.Block.CIDR, Except: p.Block.Except})
	}
	var peers []policy.Peer
	for _, r := range joinRanges(ranges) {
		peers = append(peers, policy.Peer{Block: &policy.Block{CIDR: r.Prefix, Except: r.Except}})
	}
	return a.withPeers(peers), true
}

// withPeers returns a copy of the change with the given peers.
func (c *Change) withPeers(peers []policy.Peer) *Change {
	out := *c
	out.Rule.Peers = peers
	if c.New != nil {
		p := *c.New
		p.Rules[c.Direction] = []policy.Rule{out.Rule}
		out.New = &p
	}
	return &out
}

func sameText(a, b *Change) bool { return a.text() == b.text() }

// joinRanges joins ranges: a range that is an exception of another one is added to it.
func joinRanges(all []inventory.Range) []inventory.Range {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b inventory.Range) int { return cmp.Compare(b.Prefix.Bits(), a.Prefix.Bits()) })
	for i := 0; i < len(all); {
		at := slices.IndexFunc(all[i+1:], func(o inventory.Range) bool {
			return slices.Contains(o.Except, all[i].Prefix) || o.Prefix == all[i].Prefix && slices.Equal(o.Except, all[i].Except)
		})
		if at < 0 {
			i++
			continue
		}
		outer := &all[i+1+at]
		if outer.Prefix != all[i].Prefix {
			gap := slices.Index(outer.Except, all[i].Prefix)
			outer.Except = slices.Concat(outer.Except[:gap:gap], all[i].Except, outer.Except[gap+1:])
		}
		all = slices.Delete(all, i, i+1)
	}
	slices.SortFunc(all, func(a, b inventory.Range) int {
		return cmp.Or(cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	return all
}
