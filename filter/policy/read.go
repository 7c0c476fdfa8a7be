package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// policy is a NetworkPolicy, read once: selectors are interned, CIDRs are ranges.
type policy struct {
	objectKey
	id        uint64            // new with each version of the policy
	mark      mark              // of the id
	text      string            // "namespace/name"
	sum       [sha256.Size]byte // of its spec
	spec      []byte            // encoded; nil where it cannot be, or there is no room for it
	subject   *selector
	isolates  [2]bool // by filter.Direction
	rules     [2][]rule
	size      [2]int      // entries of the rules
	compiled  [2]*ruleSet // by themselves; nil until it is asked for
	uses      []*selector // of peers, once for each use
	problems  []Problem
	large     bool  // its rules are merged with no other's
	malformed bool  // its subject cannot be read
	cost      int64 // estimated, in bytes
	refused   bool  // its rules are not read, because it takes too much
	surplus   bool  // by itself it does not
}

// rule is one ingress or egress rule. The zero value allows nothing.
type rule struct {
	index  int         // in spec.ingress or spec.egress
	anyone bool        // every peer, outside ones too
	some   []*selector // pods by their labels
	whole  []*selector // all pods of some namespaces
	blocks []addrRange

	portless bool // every port, and protocols without ports
	ports    []portRange
}

// portRange is one item of a rule's ports.
type portRange struct {
	protocol filter.Protocol
	low      uint16
	high     uint16
	name     string // a named port; low and high mean nothing then
}

// all says whether the item names a protocol and no port.
func (p portRange) all() bool { return p.name == "" && p.low == 0 && p.high == 65535 }

// interner gives a policy that is read its selectors.
type interner interface {
	useNamespaces(labels.Selector) *selector
	usePeer(scope, labels.Selector) *selector
}

// reader reads one policy. Whatever it cannot understand allows nothing, and is
// noted as a problem.
type reader struct {
	in   interner
	p    *policy
	seen map[string]bool // rules that the policy has already, by their content
	more *int            // problems beyond mostProblems
}

// mostProblems is how many problems of a policy are told one by one. A policy of
// nothing but faults has a hundred thousand of them.
const mostProblems = 20

func (w *World) readPolicy(o *networkingv1.NetworkPolicy) *policy {
	p, subject := read(o, w)
	p.subject = w.useSubject(newSelector(selectorKey{scope{namespace: p.namespace}, subject.String()}, subject))
	return p
}

// read reads a policy, and which pods it selects.
func read(o *networkingv1.NetworkPolicy, in interner) (*policy, labels.Selector) {
	p := &policy{objectKey: objectKey{o.Namespace, o.Name}}
	p.text = p.objectKey.String()
	r := reader{in: in, p: p, more: new(int)}
	defer r.countRest()
	p.isolates = r.directions(&o.Spec)
	subject, ok := r.selector(&o.Spec.PodSelector, "spec.podSelector")
	if !ok {
		// Which pods it was meant for is unknown: to isolate all of them and
		// allow none is the reading that cannot let through what it forbids.
		subject = labels.Everything()
		p.malformed = true
	}
	if p.malformed {
		return p, subject
	}
	r.seen = make(map[string]bool)
	for i := range o.Spec.Ingress {
		from := &o.Spec.Ingress[i]
		r.rule(filter.Ingress, i, from.From, from.Ports, fmt.Sprintf("spec.ingress[%d]", i), "from")
	}
	clear(r.seen)
	for i := range o.Spec.Egress {
		to := &o.Spec.Egress[i]
		r.rule(filter.Egress, i, to.To, to.Ports, fmt.Sprintf("spec.egress[%d]", i), "to")
	}
	return p, subject
}

func (r reader) problem(field, detail, mend string) {
	if len(r.p.problems) == mostProblems {
		*r.more++
		return
	}
	r.p.problems = append(r.p.problems, Problem{Policy: r.p.text, Field: field, Detail: detail, Mend: mend})
}

// countRest tells how many problems were not told one by one.
func (r reader) countRest() {
	if *r.more > 0 {
		r.p.problems = append(r.p.problems, Problem{
			Policy: r.p.text, Field: "spec", Detail: fmt.Sprintf("it has %d more problems", *r.more), Mend: "correct the first, and the next are told",
		})
	}
}

// directions applies the defaulting of policyTypes that the API documents, for
// objects that did not pass through the API server.
func (r reader) directions(spec *networkingv1.NetworkPolicySpec) (isolates [2]bool) {
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

func (r reader) selector(sel *metav1.LabelSelector, field string) (labels.Selector, bool) {
	parsed, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		r.problem(field, err.Error(), "write matchLabels, or matchExpressions with key, operator (In, NotIn, Exists, DoesNotExist) and values")
		return nil, false
	}
	return parsed, true
}

func (r reader) rule(d filter.Direction, index int, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort, field, peersName string) {
	if !r.p.isolates[d] {
		return // rules of a direction that policyTypes leaves out mean nothing
	}
	out := rule{
		index:    index,
		anyone:   len(peers) == 0,
		portless: len(ports) == 0,
	}
	for i := range peers {
		r.peer(&out, &peers[i], fmt.Sprintf("%s.%s[%d]", field, peersName, i))
	}
	for i := range ports {
		if p, ok := r.port(&ports[i], fmt.Sprintf("%s.ports[%d]", field, i)); ok {
			out.ports = append(out.ports, p)
		}
	}
	r.add(d, &out)
}

// add keeps a rule unless it allows nothing that a rule before it does not allow:
// what rules take does not depend on how often they are repeated.
func (r reader) add(d filter.Direction, out *rule) {
	if !out.anyone && len(out.some)+len(out.whole)+len(out.blocks) == 0 || !out.portless && len(out.ports) == 0 {
		return // all of its peers or ports are malformed
	}
	key := out.content()
	if r.seen[string(key)] {
		return
	}
	r.seen[string(key)] = true
	out.some, out.whole, out.blocks, out.ports = fitted(out.some), fitted(out.whole), fitted(out.blocks), fitted(out.ports)
	r.p.rules[d] = append(r.p.rules[d], *out)
	r.p.size[d] += 1 + len(out.some) + len(out.whole) + len(out.blocks) + len(out.ports)
}

// content is what a rule allows: equal only for rules that allow the same.
func (r *rule) content() []byte {
	var key []byte
	if r.portless {
		key = append(key, 1)
	}
	for _, p := range r.ports {
		key = append(key, 2, byte(p.protocol), byte(p.low>>8), byte(p.low), byte(p.high>>8), byte(p.high), byte(len(p.name)>>8), byte(len(p.name)))
		key = append(key, p.name...)
	}
	if r.anyone {
		key = append(key, 3)
	}
	for _, list := range [][]*selector{r.some, r.whole} {
		key = binary.AppendUvarint(append(key, 4), uint64(len(list)))
		for _, s := range list {
			key = binary.LittleEndian.AppendUint32(key, s.id)
		}
	}
	for _, b := range r.blocks {
		low, high := b.low.As16(), b.high.As16()
		key = append(append(append(key, byte(b.low.BitLen())), low[:]...), high[:]...)
	}
	return key
}

func (r reader) peer(out *rule, peer *networkingv1.NetworkPolicyPeer, field string) {
	switch {
	case peer.IPBlock != nil && (peer.PodSelector != nil || peer.NamespaceSelector != nil):
		r.problem(field, "ipBlock stands beside a selector", "give each an item of its own")
	case peer.IPBlock != nil:
		if block, ok := r.block(peer.IPBlock, field+".ipBlock"); ok {
			out.blocks = append(out.blocks, block...)
		}
	case peer.PodSelector == nil && peer.NamespaceSelector == nil:
		r.problem(field, "it names no peer", "write a podSelector, a namespaceSelector or an ipBlock")
	default:
		r.pods(out, peer, field)
	}
}

// pods reads a peer that selects pods by labels.
func (r reader) pods(out *rule, peer *networkingv1.NetworkPolicyPeer, field string) {
	podSelector := labels.Everything()
	if peer.PodSelector != nil {
		var ok bool
		if podSelector, ok = r.selector(peer.PodSelector, field+".podSelector"); !ok {
			return
		}
	}
	in := scope{namespace: r.p.namespace}
	if peer.NamespaceSelector != nil {
		nsSelector, ok := r.selector(peer.NamespaceSelector, field+".namespaceSelector")
		if !ok {
			return
		}
		in = scope{selector: r.in.useNamespaces(nsSelector)}
	}
	s := r.in.usePeer(in, podSelector)
	r.p.uses = append(r.p.uses, s)
	if podSelector.Empty() {
		out.whole = append(out.whole, s)
	} else {
		out.some = append(out.some, s)
	}
}

// block reads an ipBlock as the ranges that are left of it. If any part of it is
// malformed all of it is left out: without its exceptions it would allow more.
func (r reader) block(b *networkingv1.IPBlock, field string) ([]addrRange, bool) {
	cidr, ok := r.prefix(b.CIDR, field+".cidr")
	var excepts []netip.Prefix
	for i, text := range b.Except {
		except, good := r.prefix(text, fmt.Sprintf("%s.except[%d]", field, i))
		ok = ok && good
		excepts = append(excepts, except)
	}
	if !ok {
		return nil, false
	}
	return subtract(cidr, excepts), true
}

func (r reader) prefix(text, field string) (netip.Prefix, bool) {
	p, ok := ReadPrefix(text)
	if !ok {
		r.problem(field, fmt.Sprintf("%q is not a CIDR", text), "write an address and a prefix length, without leading zeros, such as 10.0.0.0/8 or 2001:db8::/32")
	}
	return p, ok
}

func (r reader) port(p *networkingv1.NetworkPolicyPort, field string) (portRange, bool) {
	port, flaw := ReadPort(p)
	if flaw != nil {
		r.problem(field+flaw.Field, flaw.Detail, flaw.Mend)
		return portRange{}, false
	}
	return portRange{protocol: port.Protocol, low: port.Low, high: port.High, name: port.Name}, true
}

// useSubject interns a policy's podSelector and finds the pods it matches.
func (w *World) useSubject(s *selector) *selector {
	s, isNew := w.subjects.adopt(s)
	if isNew {
		s.members = make(map[*kin]struct{})
		s.subjects = make(map[*policy]struct{})
		w.namespaces[s.scope.namespace].kins.match(s, func(k *kin) {
			s.members[k] = struct{}{}
			k.subjects = append(k.subjects, s)
		})
	}
	return s
}

func (w *World) releaseSubject(s *selector) {
	if w.subjects.release(s, &w.subjects.unused) {
		for k := range s.members {
			k.subjects = without(k.subjects, s)
		}
	}
}

// useNamespaces interns a namespaceSelector.
func (w *World) useNamespaces(sel labels.Selector) *selector {
	s, isNew := w.nsSelectors.use(scope{}, sel)
	w.staleNS = w.staleNS || isNew || s.fresh
	return s
}

// usePeer interns a selector of peers; the pods that it matches learn of it with
// the next commit. No pod's epoch changes for it: verdicts change with the rules that
// use it, and so with the pods that those rules guard.
func (w *World) usePeer(in scope, sel labels.Selector) *selector {
	s, isNew := w.peers.use(in, sel)
	if isNew || s.fresh {
		w.added = append(w.added, s)
		s.fresh = false
	}
	return s
}

func (w *World) releasePeer(s *selector) {
	if w.peers.release(s, &w.peers.unused) {
		w.removed = append(w.removed, s)
	}
	if nsSel := s.scope.selector; nsSel != nil && w.nsSelectors.release(nsSel, &w.nsSelectors.unused) {
		w.staleNS = true
	}
}
