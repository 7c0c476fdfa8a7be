package policy

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// policy is a Policy prepared for compiling: selectors are interned, and CIDRs are ranges
// of addresses.
type policy struct {
	ref      Ref
	tier     Tier
	priority int32             // lower ones decide first
	id       uint64            // new with each version of the policy
	mark     mark              // pseudo-random bits: two hashes of the id
	text     string            // "namespace/name" of the policy
	sum      [sha256.Size]byte // digest of this version of the policy
	resource string            // resourceVersion of the object; empty if it is not from the API
	kept     Source            // encoded policy, to read the rules again; zero if Store.count has not stored it
	subject  *selector
	place    int     // index in subject.policies
	isolates [2]bool // the directions in which the policy isolates
	rules    [2][]rule
	size     [2]int          // entries of the rules, by direction
	compiled [2]*ruleSet     // rule sets of this policy only; nil until they are needed
	uses     []*selector     // selectors of peers, once for each use
	nodes    []*nodeSelector // selectors of nodes in peers, once for each use
	named    []netip.Prefix  // prefixes that its rules name and that are not in the list "prefixes" yet
	prefixes []*prefix       // prefixes that its rules name, once for each use
	problems []Problem
	denial   filter.Denial
	unsafe   bool  // result of needsNamespaces
	large    bool  // isLarge is true of it, so its rules are never merged with others
	cost     int64 // estimated memory, in bytes
	refused  bool  // the policy is over a limit, so its rules were not read
	// recoverable is set if the policy is refused only because it and other policies together
	// exceed Limits.Policies or mostWaiting. When there is room for it, the store may read the
	// policy again.
	recoverable bool
}

// rule is one ingress or egress rule. The zero value allows nothing.
type rule struct {
	is     filter.Rule // rule sets point to it, so that it is stored once
	anyone bool        // every peer, also outside the cluster
	some   []*selector // pods by their labels
	whole  []*selector // all pods of some namespaces
	blocks []addrRange

	portless bool // the rule is for every port, and for protocols without ports
	ports    []PortRange
}

// interner provides the selectors for a policy that is being read.
type interner interface {
	useNamespaces(labels.Selector) *selector
	usePeer(scope, labels.Selector) *selector
	useNodes(labels.Selector) *nodeSelector
}

// reader turns a Policy into a policy. Malformed parts allow nothing.
type reader struct {
	in   interner
	form *Policy
	p    *policy
	seen map[string]bool // rule.content of each rule that was added in the current direction
}

func (w *Store) readPolicy(form *Policy) *policy {
	p := read(form, w)
	p.subject = w.useSubject(subjectOf(form))
	return p
}

// read turns a Policy into a policy, without its subject.
func read(form *Policy, in interner) *policy {
	p := &policy{ref: form.Ref, tier: form.Tier, priority: form.Priority, text: form.Ref.String(), isolates: form.Isolates, denial: form.Denial, problems: form.Problems}
	rules := form.Rules
	switch {
	case form.Tier < Admin || form.Tier >= numTiers:
		p.tier, p.isolates, rules = NetworkPolicy, [2]bool{true, true}, [2][]Rule{}
		p.problems = append(slices.Clip(p.problems), Problem{
			Policy: form.Ref, Field: "spec", Detail: form.Tier.String() + " is not known, and the policy isolates all its pods", Hint: "report this to the developers",
		})
	case form.Subject.Malformed:
		rules = form.closed()
	}
	r := reader{in: in, form: form, p: p, seen: make(map[string]bool)}
	for d := range rules {
		clear(r.seen)
		for i := range rules[d] {
			r.rule(filter.Direction(d), i, rules[d][i])
		}
	}
	return p
}

// closed returns substitutes for rules that cannot be used. A policy of the NetworkPolicy
// tier gets no rules, because it isolates its pods. Any other policy gets a rule that denies
// everything, in each direction in which it has rules.
func (p *Policy) closed() (rules [2][]Rule) {
	for d := range p.Rules {
		if p.Tier != NetworkPolicy && len(p.Rules[d]) > 0 {
			rules[d] = []Rule{{Action: Deny}}
		}
	}
	return rules
}

// decides reports whether the policy can decide about flows in a direction.
func (p *policy) decides(d filter.Direction) bool {
	if p.tier == NetworkPolicy {
		return p.isolates[d]
	}
	return len(p.rules[d]) > 0
}

// mayDenyToNode reports whether the policy may deny what its pods send to their node.
func (p *policy) mayDenyToNode() bool {
	return p.tier != NetworkPolicy && slices.ContainsFunc(p.rules[filter.Egress], func(r rule) bool { return r.is.Action != Accept && r.is.Action != Pass })
}

// rule adds a rule in the form that fails closed (see Policy.effective).
func (r reader) rule(d filter.Direction, index int, from Rule) {
	if from.Action > Pass {
		r.problem(d, index, fmt.Sprintf("action %d is not known, and the rule denies", from.Action))
	}
	if r.p.tier == NetworkPolicy && from.Action != Accept {
		r.problem(d, index, "a NetworkPolicy can only have rules that accept")
		return
	}
	from, matches := r.form.effective(from)
	if !matches {
		return
	}
	out := rule{
		is:       filter.Rule{Policy: r.p.text, Name: from.Name, Tier: r.p.tier, Direction: d, Action: from.Action, Denial: r.p.denial, Index: index},
		anyone:   len(from.Peers) == 0,
		portless: len(from.Ports) == 0,
		ports:    from.Ports,
	}
	for i := range from.Peers {
		r.peer(&out, &from.Peers[i])
	}
	r.add(d, &out)
}

func (r reader) problem(d filter.Direction, index int, detail string) {
	r.p.problems = append(slices.Clip(r.p.problems), Problem{
		Policy: r.p.ref, Field: fmt.Sprintf("spec.%s[%d]", d, index), Detail: detail, Hint: "report this to the developers",
	})
}

// add adds a rule, unless the rule cannot match or an earlier rule matches the same flows,
// so that repeated rules take no memory.
func (r reader) add(d filter.Direction, out *rule) {
	if !out.anyone && len(out.some)+len(out.whole)+len(out.blocks) == 0 {
		return // its blocks are empty, or no node matches
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

// content encodes the flows that a rule matches. Rules with equal encodings match the same
// flows.
func (r *rule) content() []byte {
	var key []byte
	if r.portless {
		key = append(key, 1)
	}
	for _, p := range r.ports {
		key = append(key, 2, byte(p.Protocol), byte(p.Low>>8), byte(p.Low), byte(p.High>>8), byte(p.High), byte(len(p.Name)>>8), byte(len(p.Name)))
		key = append(key, p.Name...)
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

func (r reader) peer(out *rule, peer *Peer) {
	switch {
	case peer.Block != nil:
		r.block(out, peer.Block)
		return
	case len(peer.Networks) > 0:
		for _, network := range peer.Networks {
			r.block(out, &Block{CIDR: network})
		}
		return
	case peer.Nodes != nil:
		if s := r.in.useNodes(peer.Nodes); s != nil {
			r.p.nodes = append(r.p.nodes, s)
			out.blocks = append(out.blocks, s.ranges...)
			for _, of := range s.ranges {
				r.p.named = prefixesOf(r.p.named, of)
			}
		}
		return
	}
	podSelector := peer.Pods
	if podSelector == nil {
		podSelector = labels.Everything()
	}
	in := scope{namespace: r.p.ref.Namespace}
	if peer.Namespaces != nil {
		in = scope{selector: r.in.useNamespaces(peer.Namespaces)}
	}
	s := r.in.usePeer(in, podSelector)
	r.p.uses = append(r.p.uses, s)
	if podSelector.Empty() {
		out.whole = append(out.whole, s)
	} else {
		out.some = append(out.some, s)
	}
}

// block adds a block to a rule.
func (r reader) block(out *rule, b *Block) {
	ranges := subtract(b.CIDR, b.Except)
	if len(ranges) == 0 {
		return
	}
	out.blocks = append(out.blocks, ranges...)
	in := b.CIDR.Masked()
	r.p.named = append(r.p.named, in)
	for _, e := range b.Except {
		if in.Overlaps(e) {
			r.p.named = append(r.p.named, e.Masked())
		}
	}
}

// useNamespaces interns a namespace selector.
func (w *Store) useNamespaces(sel labels.Selector) *selector {
	s, isNew := w.nsSelectors.use(scope{}, sel)
	w.staleNS = w.staleNS || isNew || s.fresh
	return s
}

// usePeer interns a peer selector. The next call of Store.match finds the pods that the selector
// matches. These pods keep their epochs: a verdict changes only if a rule uses the selector, and
// the pods to which that rule applies get new epochs.
func (w *Store) usePeer(in scope, sel labels.Selector) *selector {
	s, isNew := w.peers.use(in, sel)
	if isNew || s.fresh {
		w.added = append(w.added, s)
		s.fresh = false
	}
	return s
}

func (w *Store) releasePeer(s *selector) {
	if w.peers.release(s, &w.peers.unused) {
		w.removed = append(w.removed, s)
	}
	if nsSel := s.scope.selector; nsSel != nil && w.nsSelectors.release(nsSel, &w.nsSelectors.unused) {
		w.staleNS = true
	}
}
