package lint

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// orderedRule prepares a rule of the tier Admin or Baseline. Each network of a peer becomes
// a peer of its own. whole is false for a rule without peers, because readers return such a rule
// in place of one that they cannot understand.
func (p *lintPolicy) orderedRule(d filter.Direction, index int, o policy.Rule) rule {
	list := "from"
	if d == filter.Egress {
		list = "to"
	}
	r := rule{field: fmt.Sprintf("spec.%s[%d]", d, index), index: index, direction: d, name: o.Name, action: o.Action, anyPort: len(o.Ports) == 0, whole: len(o.Peers) > 0}
	for i := range o.Peers {
		found, whole := orderedPeers(&o.Peers[i], fmt.Sprintf("%s.%s[%d]", r.field, list, i))
		r.peers, r.whole = append(r.peers, found...), r.whole && whole
	}
	r.anyone = len(o.Peers) == 0 || r.everywhere()
	item := -1
	for _, x := range o.Ports {
		// o.Ports has a named port once for each protocol, TCP first; the three are one item of
		// the field "protocols".
		if x.Name == "" || x.Protocol == filter.TCP {
			item++
		}
		if x.Malformed {
			r.whole = false
			continue
		}
		r.ports = append(r.ports, port{x, fmt.Sprintf("%s.protocols[%d].destinationNamedPort", r.field, item)})
	}
	return r
}

// orderedPeers prepares a peer of an ordered rule. whole is false if a part of the peer matches
// nothing.
func orderedPeers(o *policy.Peer, field string) (peers []peer, whole bool) {
	switch {
	case o.Malformed != "" || len(o.Names) > 0:
		return nil, false
	case o.Nodes != nil:
		return []peer{{field: field, nodes: o.Nodes}}, true
	case o.Namespaces == nil:
		for i, n := range o.Networks {
			peers = append(peers, peer{field: fmt.Sprintf("%s.networks[%d]", field, i), block: &block{cidr: n.Masked()}})
		}
		return peers, len(peers) > 0
	case o.Pods == nil:
		return []peer{{field: field, namespace: o.Namespaces, pods: labels.Everything(), nsField: ".namespaces", podField: ".namespaces"}}, true
	}
	return []peer{{field: field, namespace: o.Namespaces, pods: o.Pods, nsField: ".pods.namespaceSelector", podField: ".pods.podSelector"}}, true
}

// everywhere reports whether the networks of the rule contain every address.
func (r *rule) everywhere() bool {
	has := func(addr netip.Addr) bool {
		return slices.ContainsFunc(r.peers, func(x peer) bool { return x.block != nil && x.block.cidr == netip.PrefixFrom(addr, 0) })
	}
	return has(netip.IPv4Unspecified()) && has(netip.IPv6Unspecified())
}

// orderedSubjectMatches reports a subject that matches no pod.
func (l *linter) orderedSubjectMatches(p *lintPolicy) {
	if p.subject == nil || slices.ContainsFunc(l.pods, p.selects) {
		return
	}
	var inside []string
	for _, ns := range l.namespaces {
		if p.includes(ns) {
			inside = append(inside, ns.name)
		}
	}
	slices.Sort(inside)
	onHost := func(o *pod) bool { return o.host && p.includes(o.ns) && p.subject.Matches(o.labels) }
	switch {
	case len(inside) == 0 && p.spaces != nil:
		l.found(NoMatch, p, "spec.subject", "write labels that the namespace has"+l.nearLabels(p.spaces, l.namespaceLabels()), "no namespace matches %s", p.spaces)
	case slices.ContainsFunc(l.pods, onHost):
		l.found(NoMatch, p, "spec.subject", "select pods that have an address of their own", "it matches only pods of the host network, which are no subjects")
	case !p.subject.Empty():
		l.found(NoMatch, p, "spec.subject.pods.podSelector", "write labels that the pods have"+l.nearLabels(p.subject, l.labelsIn(inside...)),
			"no pod of namespace %s matches %s", strings.Join(inside, ", "), p.subject)
	}
}

// nodesMatch reports selectors of nodes that match no node. Without any known nodes, it reports
// nothing.
func (l *linter) nodesMatch(p *lintPolicy) {
	if len(l.nodes) == 0 {
		return
	}
	have := make([]labels.Set, len(l.nodes))
	for i, n := range l.nodes {
		have[i] = n.Labels
	}
	for d := range p.rules {
		for i := range p.rules[d] {
			for _, x := range p.rules[d][i].peers {
				if x.nodes != nil && !slices.ContainsFunc(have, func(s labels.Set) bool { return x.nodes.Matches(s) }) {
					l.found(NoMatch, p, x.field+".nodes", "write labels that the nodes have"+l.nearLabels(x.nodes, have), "no node matches %s", x.nodes)
				}
			}
		}
	}
}

// after reports whether the rules of p are evaluated after those of o.
func (p *lintPolicy) after(o *lintPolicy) bool {
	return cmp.Or(cmp.Compare(o.Tier, p.Tier), cmp.Compare(o.Priority, p.Priority), cmp.Compare(o.text, p.text)) < 0
}

// priority reports p if another policy of its tier has the same priority and an earlier name,
// both select the same pod, and their order matters. Negative priorities are those of policies
// whose place in the order cannot be understood.
func (l *linter) priority(p *lintPolicy) {
	for _, o := range l.policies {
		if !p.ordered() || p.Priority < 0 || o.Tier != p.Tier || o.Priority != p.Priority || o.text >= p.text || !p.conflicts(o) {
			continue
		}
		common, found := l.common(p, o)
		if !found {
			continue
		}
		l.found(SamePriority, p, "spec.priority", "give one of them another priority",
			"it has the priority %d of %s in the tier %s, and both select %s: the API leaves their order open, and this agent orders them by name", p.Priority, o.Ref.Object(), p.Tier, common)
		return
	}
}

// conflicts reports whether the order of two policies can matter: they have rules with
// different actions in one direction.
func (p *lintPolicy) conflicts(o *lintPolicy) bool {
	for d := range p.rules {
		for i := range p.rules[d] {
			if slices.ContainsFunc(o.rules[d], func(r rule) bool { return r.action != p.rules[d][i].action }) {
				return true
			}
		}
	}
	return false
}

// common describes pods that both policies select. The second result reports whether there are
// any. Without pods, the linter compares the subjects: the result is true if one subject
// contains the other.
func (l *linter) common(p, o *lintPolicy) (string, bool) {
	if p.subject == nil || o.subject == nil {
		return "", false
	}
	for _, x := range l.pods {
		if p.selects(x) && o.selects(x) {
			return "pod " + x.ns.name + "/" + x.name, true
		}
	}
	return "the same pods", len(l.pods) == 0 && (l.subjectsWithin(p, o) || l.subjectsWithin(o, p))
}

// subjectsWithin reports whether o selects every pod that p selects.
func (l *linter) subjectsWithin(p, o *lintPolicy) bool {
	if p.subject == nil || o.subject == nil || !within(p.subject, o.subject) {
		return false
	}
	switch {
	case p.spaces != nil && o.spaces != nil:
		return within(p.spaces, o.spaces)
	case p.spaces != nil:
		return false
	case o.spaces == nil:
		return p.namespace == o.namespace
	}
	return o.spaces.Matches(l.namespace(p.namespace).labels)
}

// namespace returns the namespace with a name. If the objects do not include it, the result has
// only the label with its name.
func (l *linter) namespace(name string) *namespace {
	if ns := l.namespaces[name]; ns != nil {
		return ns
	}
	return newNamespace(name, nil)
}

// shadowed reports a rule that never decides, because an earlier rule matches all that it
// matches. Rules of NetworkPolicies have no order among themselves: only rules of the tier
// Admin come before them.
func (l *linter) shadowed(p *lintPolicy, r *rule) {
	if !r.whole {
		return
	}
	passed := false // an Admin rule may leave some of the flows to the next tiers
	for _, o := range l.inOrder() {
		if o != p && !p.after(o) || passed && o.Tier != p.Tier {
			continue
		}
		for i := range o.rules[r.direction] {
			by := &o.rules[r.direction][i]
			switch {
			case o == p && i >= r.index:
				return
			case passed && o.Tier != p.Tier:
			case o.Tier != p.Tier && by.action == policy.Pass:
				passed = by.mayShare(r)
			case l.subjectsWithin(p, o) && l.covers(by, r, p):
				l.shadow(p, r, o, by)
				return
			}
		}
	}
}

// shadow reports that the rule r of p never decides, because the rule "by" of the policy o comes
// first and matches everything that r matches.
func (l *linter) shadow(p *lintPolicy, r *rule, o *lintPolicy, by *rule) {
	whose := filter.Rule{Policy: o.text, Tier: o.Tier}
	title := fmt.Sprintf("%s rule %d", whose.PolicyTitle(), by.index+1)
	if by.name != "" {
		title += fmt.Sprintf(" %q", by.name)
	}
	what := map[policy.Action]string{policy.Accept: "accepts", policy.Deny: "denies", policy.Pass: "passes"}[by.action]
	place := by.field + " of " + o.Ref.Object()
	hint := "remove it, or narrow " + place
	switch {
	case o == p:
		hint = "remove it, move it before " + by.field + ", or narrow that one"
	case o.Tier != p.Tier:
		hint = fmt.Sprintf("remove it, or narrow %s: the tier %s does not override the tier %s", place, p.Tier, o.Tier)
	case o.Priority > 0:
		hint = fmt.Sprintf("remove it, give its policy a priority below %d, or narrow %s", o.Priority, place)
	}
	l.found(Shadowed, p, r.field, hint, "it never decides: %s %s everything that it matches, and comes first", title, what)
}

// inOrder returns the policies with ordered rules, in the order of their evaluation.
func (l *linter) inOrder() []*lintPolicy {
	if l.order == nil {
		l.order = slices.DeleteFunc(slices.Clone(l.policies), func(p *lintPolicy) bool { return !p.ordered() })
		slices.SortFunc(l.order, func(a, b *lintPolicy) int {
			switch {
			case a.after(b):
				return 1
			case b.after(a):
				return -1
			}
			return 0
		})
	}
	return l.order
}

// covers reports whether the ordered rule "by" matches everything that r, a rule of p, matches.
// If a peer of a NetworkPolicy means the policy's own namespace, covers represents the namespace
// by a selector of all its labels.
func (l *linter) covers(by, r *rule, p *lintPolicy) bool {
	mine := *r
	mine.peers = slices.Clone(r.peers)
	for i := range mine.peers {
		if x := &mine.peers[i]; x.own {
			x.namespace = labels.SelectorFromSet(l.namespace(p.namespace).labels)
		}
	}
	return by.whole && by.covers(&mine)
}

// mayShare reports whether two rules may match the same flows. It compares only their ports.
func (r *rule) mayShare(o *rule) bool {
	return r.anyPort || o.anyPort || slices.ContainsFunc(r.ports, func(x port) bool {
		return slices.ContainsFunc(o.ports, func(y port) bool {
			return x.Protocol == y.Protocol && (x.Name != "" || y.Name != "" || x.Low <= y.High && y.Low <= x.High)
		})
	})
}

// isolated reports rules of the tier Baseline if NetworkPolicies isolate all pods that the
// policy selects.
func (l *linter) isolated(p *lintPolicy) {
	if p.Tier != policy.Baseline {
		return
	}
	for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
		if len(p.rules[d]) == 0 {
			continue
		}
		n, example := 0, ""
		for _, o := range l.pods {
			if !p.selects(o) {
				continue
			}
			by := slices.IndexFunc(l.policies, func(q *lintPolicy) bool { return !q.ordered() && q.Isolates[d] && q.selects(o) })
			if by < 0 {
				n = 0
				break
			}
			n, example = n+1, cmp.Or(example, fmt.Sprintf("%s/%s by %s", o.ns.name, o.name, l.policies[by].text))
		}
		if n > 0 {
			l.found(Unreachable, p, "spec."+d.String(), "remove them, or keep them only for pods that no NetworkPolicy will select",
				"NetworkPolicies isolate every pod that it selects in %s (%s), and the tier Baseline is only for others", d, example)
		}
	}
}
