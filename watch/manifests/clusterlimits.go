package manifests

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"unicode/utf8"

	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy/clusterpolicy"
)

// The limits of the CustomResourceDefinition.
const (
	maxRules     = 25
	maxPeers     = 25
	maxProtocols = 25
	maxNetworks  = 25
	maxRuleName  = 100
	maxPriority  = 1000
)

// flaws are the problems of a rule or of a whole policy that its decoded form does not show.
type flaws uint8

const (
	// overLimit is a part whose meaning is certain, but that the API server refuses. A rule with
	// such a part lets nothing pass: if it accepts, it matches nothing; if it passes, it denies
	// what it matches instead.
	overLimit flaws = 1 << iota
	// unclear is a part whose meaning is not certain. A rule with such a part is closed: it
	// accepts nothing or, if it does not accept, denies everything.
	unclear
)

// clusterSpec checks the text of a spec. In the decoded spec, it applies the flaws that it
// finds to the rules (see flaws.apply).
func (c *checker) clusterSpec(out *v1beta1.ClusterNetworkPolicySpec, spec fields) {
	whole := c.priority(spec)
	if whole&unclear != 0 {
		out.Priority = clusterpolicy.First
	}
	if subject, ok := spec.get("subject"); ok {
		whole |= c.clusterPeer(object(subject), "spec.subject", false)
	}
	for i, f := range c.ruleFlaws(spec, filter.Ingress, "from", whole, len(out.Ingress)) {
		r := &out.Ingress[i]
		var closed bool
		if r.Action, closed = f.apply(r.Action); closed {
			r.From, r.Protocols = closedFrom(), nil
		}
	}
	for i, f := range c.ruleFlaws(spec, filter.Egress, "to", whole, len(out.Egress)) {
		r := &out.Egress[i]
		var closed bool
		if r.Action, closed = f.apply(r.Action); closed {
			r.To, r.Protocols = closedTo(), nil
		}
	}
}

// apply returns the action that a rule with these flaws gets, and whether the rule must be closed
// (see closedFrom).
func (f flaws) apply(action v1beta1.ClusterNetworkPolicyRuleAction) (_ v1beta1.ClusterNetworkPolicyRuleAction, closed bool) {
	switch {
	case f == 0:
		return action, false
	case f&unclear != 0, action == v1beta1.ClusterNetworkPolicyRuleActionAccept:
		return action, true
	case action == v1beta1.ClusterNetworkPolicyRuleActionPass:
		action = v1beta1.ClusterNetworkPolicyRuleActionDeny
	}
	return action, false
}

// unclear reports a problem of which that is the flaw.
func (c *checker) unclear(field, detail, hint string) flaws {
	effect := "its rules accept nothing or deny everything"
	if c.rule != "" {
		effect = clusterpolicy.ClosedRule(c.accepts)
	}
	return c.flaw(unclear, field, detail, effect, hint)
}

// overLimit reports a problem of which that is the flaw.
func (c *checker) overLimit(field, detail, hint string) flaws {
	var effect string
	switch {
	case c.rule == "":
		effect = "its rules accept nothing or deny what they match"
	case c.accepts:
		effect = clusterpolicy.ClosedRule(true)
	case c.passes:
		effect = "the rule denies what it matches"
	default:
		effect = "the rule still denies what it matches"
	}
	return c.flaw(overLimit, field, detail, effect, hint)
}

func (c *checker) flaw(f flaws, field, detail, effect, hint string) flaws {
	old := c.effect
	c.effect = effect
	c.problem(field, detail, hint)
	c.effect = old
	return f
}

func (c *checker) priority(spec fields) flaws {
	raw, ok := spec.get("priority")
	if !ok {
		return c.flaw(unclear, "spec.priority", "it is missing", "the policy is the first of its tier, and its rules accept nothing or deny everything", "write a number from 0 to 1000; policies with lower ones come first")
	}
	var n int64
	if err := json.Unmarshal(raw, &n); err == nil && (n < 0 || n > maxPriority) {
		return c.overLimit("spec.priority", fmt.Sprintf("%d is not a priority", n), "write a number from 0 to 1000; policies with lower ones come first")
	}
	return 0
}

// ruleFlaws returns the flaws of the n rules that a direction has in the decoded spec. list is
// the name of the field with the peers. whole are the flaws of the whole policy, which each rule
// has too.
func (c *checker) ruleFlaws(spec fields, d filter.Direction, list string, whole flaws, n int) []flaws {
	at := "spec." + d.String()
	raw, _ := spec.get(d.String())
	rules := values(raw)
	if len(rules) > maxRules {
		whole |= c.overLimit(at, fmt.Sprintf("it has %d rules, and the limit is %d", len(rules), maxRules), "write the others in another policy, of the next priority")
	}
	all := make([]flaws, n)
	for i := range all {
		if all[i] = whole; len(rules) == n { // otherwise the list of rules could not be decoded
			c.enterRule(d, i, rules[i])
			all[i] |= c.clusterRule(object(rules[i]), fmt.Sprintf("%s[%d]", at, i), list)
			c.leaveRule()
		}
	}
	return all
}

func (c *checker) clusterRule(f fields, at, list string) (found flaws) {
	if name, ok := text(f["name"]); ok && utf8.RuneCountInString(name) > maxRuleName {
		found |= c.overLimit(at+".name", fmt.Sprintf("it has %d characters, and the limit is %d", utf8.RuneCountInString(name), maxRuleName), "write a shorter one")
	}
	action, _ := text(f["action"])
	accepts := action == string(v1beta1.ClusterNetworkPolicyRuleActionAccept)
	peers := values(f[list])
	found |= c.atMost(len(peers), maxPeers, at+"."+list, "peers", "write the others in another rule")
	for i, raw := range peers {
		found |= c.clusterPeer(object(raw), fmt.Sprintf("%s.%s[%d]", at, list, i), accepts)
	}
	found |= c.clusterProtocols(f, at, accepts)
	if slices.ContainsFunc(peers, outsidePods) && slices.ContainsFunc(values(f["protocols"]), namesPort) {
		found |= c.unclear(at+".protocols", "nodes, networks and domainNames have no named ports", "write the port as a number, or the peers in another rule")
	}
	return found
}

// outsidePods reports whether a peer selects nodes, networks or domain names instead of pods.
// Only pods have named ports.
func outsidePods(peer json.RawMessage) bool {
	f := object(peer)
	return f.set("networks") || f.set("nodes") || f.set("domainNames")
}

func namesPort(protocol json.RawMessage) bool { return object(protocol).set("destinationNamedPort") }

func (c *checker) atMost(n, limit int, field, what, hint string) flaws {
	if n <= limit {
		return 0
	}
	return c.overLimit(field, fmt.Sprintf("it has %d %s, and the limit is %d", n, what, limit), hint)
}

// clusterPeer checks a peer or a subject. accepts reports whether it is part of a rule that
// accepts.
func (c *checker) clusterPeer(f fields, at string, accepts bool) (found flaws) {
	for _, name := range []string{"namespaces", "nodes"} {
		found |= c.clusterSelector(object(f[name]), at+"."+name, accepts)
	}
	if pods, ok := f.get("pods"); ok {
		found |= c.namespacedPod(object(pods), at+".pods", accepts)
	}
	for _, name := range []string{"networks", "domainNames"} {
		found |= c.set(f, name, at+"."+name)
	}
	return found
}

func (c *checker) namespacedPod(f fields, at string, accepts bool) (found flaws) {
	if f == nil {
		return 0 // decoding has already reported the wrong type
	}
	if !f.set("podSelector") {
		found = c.unclear(at+".podSelector", "it is missing", "write labels, or podSelector: {} for every pod")
	}
	if f.has("namespaceSelector") && !f.set("namespaceSelector") && accepts {
		c.hole(at+".namespaceSelector", "it is present but empty, which selects every namespace", "if every namespace is meant, omit namespaceSelector; otherwise write labels")
	}
	for _, name := range []string{"namespaceSelector", "podSelector"} {
		found |= c.clusterSelector(object(f[name]), at+"."+name, accepts)
	}
	return found
}

func (c *checker) clusterSelector(f fields, at string, accepts bool) (found flaws) {
	if f.has("matchLabels") && !f.set("matchLabels") && !f.set("matchExpressions") && accepts {
		c.hole(at+".matchLabels", "it is present but empty, which selects everything", "if everything is meant, write {} as the selector; otherwise write labels")
	}
	for label, value := range object(f["matchLabels"]) {
		if string(value) == "null" {
			found = c.unclear(at+".matchLabels."+label, "it has no value", "write the value in quotes; \"\" is the empty value")
		}
	}
	for i, e := range values(f["matchExpressions"]) {
		for j, value := range values(object(e)["values"]) {
			if string(value) == "null" {
				found = c.unclear(fmt.Sprintf("%s.matchExpressions[%d].values[%d]", at, i, j), "it is empty", "write the value in quotes; \"\" is the empty value")
			}
		}
	}
	return found
}

var domainName = regexp.MustCompile(`^(\*\.)?([a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.)+[a-zA-Z0-9]([-a-zA-Z0-9_]*[a-zA-Z0-9])?\.?$`)

// set checks a list of networks or domain names, in which each may be only once.
func (c *checker) set(f fields, name, at string) (found flaws) {
	raw, ok := f.get(name)
	if !ok {
		return 0
	}
	list := values(raw)
	if list != nil && len(list) == 0 {
		return c.unclear(at, "it is empty", "list at least one, or remove the peer")
	}
	found = c.atMost(len(list), maxNetworks, at, name, "write the others in another peer")
	seen := make(map[string]bool)
	for i, raw := range list {
		value, ok := text(raw) // null becomes "", which is neither a network nor a domain name
		field := fmt.Sprintf("%s[%d]", at, i)
		if ok && seen[value] {
			found |= c.overLimit(field, fmt.Sprintf("%q is in the list twice", value), "remove one of the two")
		}
		if seen[value] = true; name == "domainNames" && !domainName.MatchString(value) {
			found |= c.unclear(field, fmt.Sprintf("%q is not a domain name", value), "write a name of two or more labels, such as www.example.org or *.example.org")
		}
	}
	return found
}

func (c *checker) clusterProtocols(f fields, at string, accepts bool) (found flaws) {
	at += ".protocols"
	raw, ok := f.get("protocols")
	if !ok {
		if f.has("protocols") && accepts {
			c.hole(at, "it is present but empty, which accepts every protocol and port", "if every protocol is meant, omit protocols; otherwise list them")
		}
		return 0
	}
	list := values(raw)
	if list != nil && len(list) == 0 {
		return c.unclear(at, "it is empty", "list at least one, or omit protocols for all")
	}
	found = c.atMost(len(list), maxProtocols, at, "protocols", "write the others in another rule")
	for i, raw := range list {
		found |= c.clusterProtocol(object(raw), fmt.Sprintf("%s[%d]", at, i))
	}
	return found
}

// clusterProtocol reports fields that are present with a zero value: the decoded form does not
// show that they are present.
func (c *checker) clusterProtocol(f fields, at string) (found flaws) {
	if name, ok := text(f["destinationNamedPort"]); ok && name == "" {
		found = c.unclear(at+".destinationNamedPort", "it is empty", "write the name that the container declares")
	}
	for _, protocol := range []string{"tcp", "udp", "sctp"} {
		port := object(object(f[protocol])["destinationPort"])
		if raw, ok := port.get("number"); ok && string(raw) == "0" {
			found = c.unclear(at+"."+protocol+".destinationPort.number", "0 is not a port", "write a number from 1 to 65535")
		}
	}
	return found
}

// get returns the value of a field. It returns false for null, because the API server drops a
// field with the value null.
func (f fields) get(name string) (json.RawMessage, bool) {
	raw, there := f[name]
	return raw, there && string(raw) != "null"
}

func (f fields) set(name string) bool {
	_, there := f.get(name)
	return there
}

// values decodes a list. It returns nil if the value has another type or is null.
func values(raw json.RawMessage) (list []json.RawMessage) {
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil
	}
	return list
}

// text decodes a string.
func text(raw json.RawMessage) (value string, ok bool) {
	err := json.Unmarshal(raw, &value)
	return value, err == nil && len(raw) > 0 && raw[0] == '"'
}
