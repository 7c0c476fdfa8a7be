// Package netpol converts NetworkPolicies of the API to policy.Policy, the form that the
// rest of Sluice works on. No other package reads their fields.
//
// A malformed part of a policy allows nothing and is reported as a problem. The API server
// rejects most malformed parts today, but still returns objects that older versions stored.
package netpol

import (
	"crypto/sha256"
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
)

// Kind is the kind of the objects.
const Kind = "NetworkPolicy"

// Ref returns the reference of a NetworkPolicy.
func Ref(namespace, name string) policy.Ref {
	return policy.Ref{Kind: Kind, Namespace: namespace, Name: name}
}

// mostProblems bounds the problems of a policy that are reported one by one. A policy of
// only malformed parts can have 100,000 of them.
const mostProblems = 20

// Read converts a NetworkPolicy.
func Read(o *networkingv1.NetworkPolicy) *policy.Policy {
	p := readSpec(Ref(o.Namespace, o.Name), &o.Spec)
	e, err := encode(o)
	if err == nil { // without a digest, the policy counts as a new version each time
		p.Digest, p.Source = e.Digest, e.Source
	}
	e.Form = p
	e.Annotate(o.Annotations)
	return p
}

// ReadAll converts NetworkPolicies.
func ReadAll(objects []*networkingv1.NetworkPolicy) []*policy.Policy {
	all := make([]*policy.Policy, len(objects))
	for i, o := range objects {
		all[i] = Read(o)
	}
	return all
}

// largeSize is the largest encoded size, in bytes, of a policy that counts as small in Encode.
const largeSize = 16 << 10

// Encode encodes a NetworkPolicy for a Store. If the policy is small, Encode also sets
// Form; if it is large, it sets Reach. It takes milliseconds for a large policy, and may be
// called from any goroutine.
func Encode(o *networkingv1.NetworkPolicy) policy.Encoded {
	e, err := encode(o)
	if err != nil || len(e.Source.Encoded) <= largeSize {
		e.Form = readSpec(e.Ref, &o.Spec)
		e.Form.Digest, e.Form.Source = e.Digest, e.Source
		e.Annotate(o.Annotations)
		return e
	}
	e.Reach = reach(&o.Spec)
	e.Annotate(o.Annotations)
	return e
}

// reach describes the pods that the policy isolates. It does not read the rules.
func reach(spec *networkingv1.NetworkPolicySpec) policy.Reach {
	r := reader{p: new(policy.Policy)}
	pods, ok := r.selector(&spec.PodSelector, "spec.podSelector")
	if !ok {
		pods = labels.Everything()
	}
	return policy.Reach{Subject: pods.String(), Isolates: r.directions(spec)}
}

func encode(o *networkingv1.NetworkPolicy) (policy.Encoded, error) {
	e := policy.Encoded{Ref: Ref(o.Namespace, o.Name)}
	spec, err := o.Spec.Marshal() // sorts the keys of maps, so equal specs have equal digests
	if err != nil {
		return e, fmt.Errorf("encode %s: %w", e.Ref.Object(), err)
	}
	e.Digest, e.Source = sha256.Sum256(spec), policy.Source{Encoded: spec, Read: decode}
	return e, nil
}

// decode converts an encoded spec.
func decode(ref policy.Ref, encoded []byte) (*policy.Policy, error) {
	var spec networkingv1.NetworkPolicySpec
	if err := spec.Unmarshal(encoded); err != nil {
		return nil, fmt.Errorf("decode %s: %w", ref.Object(), err)
	}
	p := readSpec(ref, &spec)
	p.Digest, p.Source = sha256.Sum256(encoded), policy.Source{Encoded: encoded, Read: decode}
	return p, nil
}

// reader converts one policy.
type reader struct {
	p    *policy.Policy
	more int // problems beyond mostProblems
}

func readSpec(ref policy.Ref, spec *networkingv1.NetworkPolicySpec) *policy.Policy {
	r := reader{p: &policy.Policy{Ref: ref, Tier: policy.NetworkPolicy}}
	p := r.p
	p.Isolates = r.directions(spec)
	p.Subject.Namespace = ref.Namespace
	if pods, ok := r.selector(&spec.PodSelector, "spec.podSelector"); ok {
		p.Subject.Pods = pods
	} else {
		// The policy may be meant for any pods of its namespace, so it isolates all of them
		// and allows nothing. Anything less could allow more than intended.
		p.Subject.Pods, p.Subject.Malformed = labels.Everything(), true
	}
	for i := range spec.Ingress {
		from := &spec.Ingress[i]
		r.rule(filter.Ingress, i, "from", from.From, from.Ports)
	}
	for i := range spec.Egress {
		to := &spec.Egress[i]
		r.rule(filter.Egress, i, "to", to.To, to.Ports)
	}
	r.countRest()
	return p
}

// problem adds a problem. If the subject is malformed, no rule is in force, and problems of
// the rules are not reported.
func (r *reader) problem(field, detail, hint string) {
	if r.p.Subject.Malformed {
		return
	}
	if len(r.p.Problems) == mostProblems {
		r.more++
		return
	}
	r.p.Problems = append(r.p.Problems, policy.Problem{Policy: r.p.Ref, Field: field, Detail: detail, Hint: hint})
}

// countRest adds a problem that states how many problems there are beyond mostProblems.
func (r *reader) countRest() {
	if r.more > 0 {
		r.p.Problems = append(r.p.Problems, policy.Problem{
			Policy: r.p.Ref, Field: "spec", Detail: fmt.Sprintf("it has %d more problems", r.more), Hint: "correct the first ones, and the next ones are reported",
		})
	}
}

// directions returns the directions in which the policy isolates. It applies the API's
// default of policyTypes, for objects that did not pass through the API server.
func (r *reader) directions(spec *networkingv1.NetworkPolicySpec) (isolates [2]bool) {
	for i, t := range spec.PolicyTypes {
		switch t {
		case networkingv1.PolicyTypeIngress:
			isolates[filter.Ingress] = true
		case networkingv1.PolicyTypeEgress:
			isolates[filter.Egress] = true
		default:
			r.problem(fmt.Sprintf("spec.policyTypes[%d]", i), fmt.Sprintf("%q is not a policy type", t), "write Ingress or Egress")
			return [2]bool{true, true}
		}
	}
	if len(spec.PolicyTypes) == 0 {
		isolates[filter.Ingress] = true
		isolates[filter.Egress] = len(spec.Egress) > 0
	}
	return isolates
}

func (r *reader) selector(sel *metav1.LabelSelector, field string) (labels.Selector, bool) {
	parsed, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		r.problem(field, err.Error(), "write matchLabels, or matchExpressions with key, operator (In, NotIn, Exists, DoesNotExist) and values")
		return nil, false
	}
	return parsed, true
}

// rule converts a rule. "list" is the name of the field with its peers, "from" or "to".
func (r *reader) rule(d filter.Direction, index int, list string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
	if !r.p.Isolates[d] {
		r.p.Ignored[d]++ // policyTypes leaves the direction out
		return
	}
	field := fmt.Sprintf("spec.%s[%d]", d, index)
	out := policy.Rule{Action: policy.Accept}
	if len(peers) > 0 {
		out.Peers = make([]policy.Peer, len(peers))
	}
	for i := range peers {
		out.Peers[i] = r.peer(&peers[i], fmt.Sprintf("%s.%s[%d]", field, list, i))
	}
	if len(ports) > 0 {
		out.Ports = make([]policy.PortRange, len(ports))
	}
	for i := range ports {
		out.Ports[i] = r.port(&ports[i], fmt.Sprintf("%s.ports[%d]", field, i))
	}
	r.p.Rules[d] = append(r.p.Rules[d], out)
}

func (r *reader) peer(peer *networkingv1.NetworkPolicyPeer, field string) policy.Peer {
	switch {
	case peer.IPBlock != nil && (peer.PodSelector != nil || peer.NamespaceSelector != nil):
		r.problem(field, "it has an ipBlock and a selector, and only one of them is allowed", "give each an item of its own; the rule then allows all that either selects")
		return policy.Peer{Malformed: "."}
	case peer.IPBlock != nil:
		return r.block(peer.IPBlock, field)
	case peer.PodSelector == nil && peer.NamespaceSelector == nil:
		r.problem(field, "it names no peer", "write a podSelector, a namespaceSelector or an ipBlock")
		return policy.Peer{Malformed: "."}
	}
	return r.pods(peer, field)
}

// pods converts a peer that selects pods by labels.
func (r *reader) pods(peer *networkingv1.NetworkPolicyPeer, field string) (out policy.Peer) {
	var ok bool
	if peer.PodSelector != nil {
		if out.Pods, ok = r.selector(peer.PodSelector, field+".podSelector"); !ok {
			return policy.Peer{Malformed: ".podSelector"}
		}
	}
	if peer.NamespaceSelector != nil {
		if out.Namespaces, ok = r.selector(peer.NamespaceSelector, field+".namespaceSelector"); !ok {
			return policy.Peer{Malformed: ".namespaceSelector"}
		}
	}
	return out
}

// block converts an ipBlock. If any part is malformed, the whole block counts as malformed:
// without one of its exceptions, it would allow more.
func (r *reader) block(b *networkingv1.IPBlock, field string) policy.Peer {
	out := policy.Peer{Block: new(policy.Block)}
	var ok bool
	if out.Block.CIDR, ok = r.prefix(b.CIDR, field+".ipBlock.cidr"); !ok {
		out.Malformed = ".ipBlock.cidr"
	}
	if len(b.Except) > 0 {
		out.Block.Except = make([]netip.Prefix, len(b.Except))
	}
	for i, text := range b.Except {
		at := fmt.Sprintf(".ipBlock.except[%d]", i)
		if out.Block.Except[i], ok = r.prefix(text, field+at); !ok && out.Malformed == "" {
			out.Malformed = at
		}
	}
	if out.Malformed != "" {
		out.Block = nil
	}
	return out
}

// prefix parses a CIDR, and keeps its host bits.
func (r *reader) prefix(text, field string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		r.problem(field, fmt.Sprintf("%q is not a CIDR", text), "write an address and a prefix length, without leading zeros, such as 10.0.0.0/8 or 2001:db8::/32")
		return netip.Prefix{}, false
	}
	return p, true
}
