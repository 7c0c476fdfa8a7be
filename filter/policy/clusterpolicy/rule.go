package clusterpolicy

import (
	"fmt"

	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
)

// ruleReader converts one rule.
type ruleReader struct {
	*reader
	field  string // field of the rule, as in "spec.ingress[0]"
	title  string // title of the rule in hints, as in `ingress rule 2 "to-teams"`
	action policy.Action
	peers  []policy.Peer
	ports  []policy.PortRange
	// Malformed peers and ports. If there are any, the rule accepts nothing or denies everything
	// (see addRule).
	badPeers []policy.Peer
	badPorts []policy.PortRange
}

func (r *reader) ingress(index int, from *v1beta1.ClusterNetworkPolicyIngressRule) {
	x := r.rule(filter.Ingress, index, from.Name)
	action := x.readAction(from.Action)
	for i := range from.From {
		x.addPeer(&v1beta1.ClusterNetworkPolicyEgressPeer{Namespaces: from.From[i].Namespaces, Pods: from.From[i].Pods}, fmt.Sprintf(".from[%d]", i), ingressFields)
	}
	x.needPeers(".from", len(from.From))
	x.protocols(from.Protocols)
	x.addRule(filter.Ingress, from.Name, action)
}

func (r *reader) egress(index int, to *v1beta1.ClusterNetworkPolicyEgressRule) {
	x := r.rule(filter.Egress, index, to.Name)
	action := x.readAction(to.Action)
	for i := range to.To {
		x.addPeer(&to.To[i], fmt.Sprintf(".to[%d]", i), egressFields)
	}
	x.needPeers(".to", len(to.To))
	x.protocols(to.Protocols)
	x.addRule(filter.Egress, to.Name, action)
}

func (r *reader) rule(d filter.Direction, index int, name string) *ruleReader {
	return &ruleReader{reader: r, field: fmt.Sprintf("spec.%s[%d]", d, index), title: RuleTitle(d, index, name)}
}

// readAction reads the action. An unknown action may be meant to deny more flows than the rule
// matches, so a rule with one denies everything.
func (x *ruleReader) readAction(a v1beta1.ClusterNetworkPolicyRuleAction) (known bool) {
	switch a {
	case v1beta1.ClusterNetworkPolicyRuleActionAccept:
		x.action = policy.Accept
	case v1beta1.ClusterNetworkPolicyRuleActionDeny:
		x.action = policy.Deny
	case v1beta1.ClusterNetworkPolicyRuleActionPass:
		x.action = policy.Pass
	default:
		x.action = policy.Deny
		hint := like(string(a), "Accept", "Deny", "Pass")
		if a == "Allow" || a == "allow" {
			hint = "write Accept"
		}
		x.problem(".action", fmt.Sprintf("%q is not an action", a), hint)
		return false
	}
	return true
}

// needPeers reports a problem if a rule has no peers: the API requires at least one.
func (x *ruleReader) needPeers(field string, n int) {
	if n > 0 {
		return
	}
	x.problem(field, "it has no peers", "list at least one")
	x.badPeers = []policy.Peer{{Malformed: "."}}
}

// addRule adds the rule. A rule with a malformed peer or port is closed: if its action is
// Accept, it accepts nothing, and otherwise it denies everything. If its list of peers or of
// ports has malformed elements, a closed rule keeps only these.
func (x *ruleReader) addRule(d filter.Direction, name string, known bool) {
	out := policy.Rule{Name: name, Action: x.action, Peers: x.peers, Ports: x.ports}
	closed := len(x.badPeers)+len(x.badPorts) > 0
	switch {
	case !known:
		out.Peers, out.Ports = nil, nil
	case closed && x.action != policy.Accept:
		out.Action, out.Peers, out.Ports = policy.Deny, x.badPeers, x.badPorts
	case closed:
		if len(x.badPeers) > 0 {
			out.Peers = x.badPeers
		}
		if len(x.badPorts) > 0 {
			out.Ports = x.badPorts
		}
	}
	x.p.Rules[d] = append(x.p.Rules[d], out)
}

// problem adds a problem of the rule. field is relative to the rule.
func (x *ruleReader) problem(field, detail, hint string) {
	x.reader.problem(x.field+field, detail, ClosedRule(x.action == policy.Accept), "in "+x.title+", "+hint)
}

// ClosedRule returns the effect of a problem that closes a rule.
func ClosedRule(accepts bool) string {
	if accepts {
		return "the rule accepts nothing"
	}
	return "the rule denies everything"
}
