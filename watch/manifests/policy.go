package manifests

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"sluice/filter"
	"sluice/filter/policy"
)

// checkNetworkPolicy applies the API server's defaulting. The netpol package checks everything
// that depends on the meaning of rules: CIDRs, port ranges, selectors.
//
// A rule with an unreadable part allows nothing: without that part, it could allow more
// than was meant. If the pod selector or the policy types cannot be read, the policy
// selects every pod of its namespace, isolates both directions, and allows nothing.
func checkNetworkPolicy(o *networkingv1.NetworkPolicy, c *checker) {
	if c.uncertain && !c.closed {
		c.specByParts(o)
	}
	if c.closed {
		closePolicy(&o.Spec)
	}
	if len(o.Spec.PolicyTypes) == 0 {
		o.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(o.Spec.Egress) > 0 {
			o.Spec.PolicyTypes = append(o.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		}
	}
	for i := range o.Spec.Ingress {
		defaultPorts(o.Spec.Ingress[i].Ports)
	}
	for i := range o.Spec.Egress {
		defaultPorts(o.Spec.Egress[i].Ports)
	}
	c.findHoles()
}

// closePolicy removes all rules, and isolates both directions.
func closePolicy(spec *networkingv1.NetworkPolicySpec) {
	spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyTypeEgress}
	spec.Ingress, spec.Egress = nil, nil
}

func defaultPorts(ports []networkingv1.NetworkPolicyPort) {
	tcp := corev1.ProtocolTCP
	for i := range ports {
		if ports[i].Protocol == nil {
			ports[i].Protocol = &tcp
		}
	}
}

// decode handles err, which means that a value of an object has the wrong type. It reports the
// value, unless the value is in the spec of a policy: specByParts reports those.
func (c *checker) decode(object any, err error) {
	c.uncertain = true
	if c.kind != nil {
		var outside struct {
			metav1.TypeMeta   `json:",inline"`
			metav1.ObjectMeta `json:"metadata"`
		}
		if err = kjson.UnmarshalCaseSensitivePreserveInts(c.text, &outside); err == nil {
			return // the value with the wrong type is in the spec
		}
		object = &outside
	}
	c.undecodable(c.text, object, "", err)
}

// specByParts decodes an invalid spec rule by rule. It closes only the broken rules. The other
// rules stay in force.
func (c *checker) specByParts(o *networkingv1.NetworkPolicy) {
	var whole struct {
		Spec json.RawMessage `json:"spec"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(c.text, &whole); err != nil {
		c.closed = true
		c.problem("", err.Error(), "write the object as the API documents it")
		return
	}
	if len(whole.Spec) == 0 {
		return
	}
	var parts struct {
		PodSelector json.RawMessage `json:"podSelector"`
		PolicyTypes json.RawMessage `json:"policyTypes"`
		Ingress     json.RawMessage `json:"ingress"`
		Egress      json.RawMessage `json:"egress"`
	}
	if !part(c, whole.Spec, "spec", &parts) {
		c.closed = true
	}
	o.Spec = networkingv1.NetworkPolicySpec{}
	if !part(c, parts.PodSelector, "spec.podSelector", &o.Spec.PodSelector) {
		c.closed = true
		o.Spec.PodSelector = metav1.LabelSelector{}
	}
	if !part(c, parts.PolicyTypes, "spec.policyTypes", &o.Spec.PolicyTypes) {
		c.closed = true
	}
	closed := []networkingv1.NetworkPolicyPeer{{}} // an invalid peer, which matches nothing
	o.Spec.Ingress = rulesByParts(c, parts.Ingress, filter.Ingress, func(json.RawMessage) networkingv1.NetworkPolicyIngressRule {
		return networkingv1.NetworkPolicyIngressRule{From: closed}
	})
	o.Spec.Egress = rulesByParts(c, parts.Egress, filter.Egress, func(json.RawMessage) networkingv1.NetworkPolicyEgressRule {
		return networkingv1.NetworkPolicyEgressRule{To: closed}
	})
}

// rulesByParts decodes the rules of one direction. It replaces each rule that it cannot decode
// with the result of the function "closed", so that the other rules keep their indexes.
func rulesByParts[T any](c *checker, raw json.RawMessage, d filter.Direction, closed func(json.RawMessage) T) []T {
	at := "spec." + d.String()
	var items []json.RawMessage
	if c.kind.cluster {
		c.effect = "the policy denies everything in this direction"
	}
	readable := part(c, raw, at, &items)
	c.effect = ""
	if !readable {
		return []T{closed(nil)} // one closed rule, so that the direction is isolated
	}
	rules := make([]T, len(items))
	for i := range items {
		c.enterRule(d, i, items[i])
		if !part(c, items[i], fmt.Sprintf("%s[%d]", at, i), &rules[i]) {
			rules[i] = closed(items[i])
		}
		c.leaveRule()
	}
	return rules
}

// part decodes a part of a spec strictly, and reports whether that succeeded.
func part[T any](c *checker, raw json.RawMessage, at string, into *T) bool {
	if len(raw) == 0 {
		return true
	}
	unknown, err := kjson.UnmarshalStrict(raw, into)
	for _, e := range unknown {
		var f kjson.FieldError
		path, detail := "", e.Error()
		if errors.As(e, &f) {
			path, detail = f.FieldPath(), "there is no such field"
		}
		path = strings.Trim(at+"."+path, ".")
		c.problem(path, detail, c.kind.suggest(path))
	}
	if err != nil {
		c.undecodable(raw, into, at, err)
	}
	return len(unknown) == 0 && err == nil
}

// CausedBy reports whether the problem p is a consequence of one of the problems in from. If a rule
// cannot be read, from has a problem about the rule. rulesByParts then replaces the rule with one
// whose only peer is invalid, and p may be the problem about this peer.
func CausedBy(p policy.Problem, from []Problem) bool {
	rule := ruleOf(p.Field)
	if p.Field != rule+".from[0]" && p.Field != rule+".to[0]" {
		return false
	}
	list, _, _ := strings.Cut(rule, "[")
	return slices.ContainsFunc(from, func(o Problem) bool {
		if o.Object != p.Policy.Object() {
			return false
		}
		at := strings.Index(o.Field, "spec") // skip the prefix of an object in a list
		if at < 0 {
			return strings.HasSuffix(o.Field, "apiVersion") || strings.HasSuffix(o.Field, "kind")
		}
		o.Field = o.Field[at:]
		return ruleOf(o.Field) == rule || o.Field == list || !strings.HasPrefix(o.Field, "spec.ingress") && !strings.HasPrefix(o.Field, "spec.egress")
	})
}

// ruleOf returns the part of a field path that names a rule, as in spec.ingress[0].
func ruleOf(field string) string {
	if end := strings.IndexByte(field, ']'); end >= 0 {
		return field[:end+1]
	}
	return field
}
