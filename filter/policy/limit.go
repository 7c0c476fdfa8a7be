package policy

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// Limits bounds the memory of compiled policies, in bytes, as estimated before compiling; 0
// means no limit. A policy over a limit is refused: it still isolates its pods in the same
// directions, but allows nothing, and is reported as a Problem.
type Limits struct {
	// Policy bounds each policy.
	Policy int64
	// Policies bounds the memory of all policies together. If they need more, the store
	// refuses policies one by one until the rest is within the bound. Each time, it chooses the
	// namespace whose policies need most, and refuses the policy there that needs most.
	Policies int64
}

// DefaultLimits returns the limits for an agent with 512 MiB of memory. The rest of the memory
// is enough for the pods of a large cluster and for compiling the largest policy that an API
// server stores.
func DefaultLimits() Limits { return Limits{Policy: 160 << 20, Policies: 256 << 20} }

// mostRefused bounds the encoded bytes of the refused policies whose source the store keeps. As
// soon as there is room, the store reads such a source again and admits its policy. A refused
// policy without a kept source stays refused until it is set again.
const mostRefused = 32 << 20

// SetLimits sets the limits. Limits.Policies applies to all policies from the next Commit
// on, Limits.Policy only to policies that are read later.
func (w *Store) SetLimits(l Limits) { w.limits, w.recount = l, true }

// Upper bounds of the memory that the parts of a compiled policy take, in bytes. A test
// compares them with the memory that compiled policies really take.
const (
	costOfPolicy   = 1200
	costOfRule     = 250
	costOfPort     = 350
	costOfRange    = 320
	costOfSelector = 1100
	costOfValue    = 500
	costOfEntry    = 14
)

// costOf returns an upper bound of the bytes that a compiled policy takes, estimated from
// its size and the number of ranges of the nodes that its peers select. It holds even
// for a policy that shares no selector with others.
func (w *Store) costOf(p *Policy) int64 {
	return costOf(p, func(sel labels.Selector) int { return len(w.nodes.selector(sel).ranges) })
}

// costOf computes the result of Store.costOf. nodes returns how many address ranges the nodes
// that a selector matches have.
func costOf(p *Policy, nodes func(labels.Selector) int) int64 {
	c := costs{nodes: nodes}
	c.selector(p.Subject.Namespaces)
	c.selector(p.Subject.Pods)
	for d := range p.Rules {
		for i := range p.Rules[d] {
			c.rule(&p.Rules[d][i])
		}
	}
	size := c.ports + c.peers
	most := max(256+8*size, 2*size*bits.Len(uint(2*c.ports)))
	entries := 4*c.peers + min(most, (2*c.ports+1)*c.peers)
	return int64(len(p.Source.Encoded)) + c.bytes + costOfPolicy + costOfEntry*int64(entries)
}

// costs adds up the parts of a policy.
type costs struct {
	nodes        func(labels.Selector) int
	bytes        int64
	ports, peers int // peers counts the entries that the rules add to peer sets (see peerSet)
}

func (c *costs) rule(r *Rule) {
	c.bytes += costOfRule + int64(len(r.Ports))*costOfPort
	c.ports += len(r.Ports)
	c.peers++
	for i := range r.Peers {
		switch p := &r.Peers[i]; {
		case p.Block != nil:
			c.ranges(1 + len(p.Block.Except))
		case len(p.Networks) > 0:
			c.ranges(len(p.Networks))
		case p.Nodes != nil:
			c.selector(p.Nodes)
			c.ranges(c.nodes(p.Nodes))
		default:
			c.peers++
			c.selector(p.Pods)
			c.selector(p.Namespaces)
		}
	}
}

func (c *costs) ranges(n int) {
	c.peers += n
	c.bytes += costOfRange * int64(n)
}

func (c *costs) selector(s labels.Selector) {
	if s == nil {
		return
	}
	c.bytes += costOfSelector
	requirements, _ := s.Requirements()
	for _, r := range requirements {
		if r.Operator() == selection.Equals {
			c.bytes += costOfValue
			continue
		}
		c.bytes += costOfValue + int64(len(r.Key()))
		for _, v := range r.ValuesUnsorted() {
			c.bytes += costOfValue + int64(len(v))
		}
	}
}

// admit reads a policy, or refuses it if it is over a limit.
func (w *Store) admit(form *Policy) *policy {
	cost := w.costOf(form)
	if most := w.limits.Policy; most > 0 && cost > most {
		return w.refuseTooLarge(form, cost)
	}
	if most := w.limits.Policies; most > 0 && w.cost+cost > most {
		w.recount = true
		return w.refuseOverTotal(form, cost)
	}
	p := w.readPolicy(form)
	p.cost = cost
	return p
}

// refuseTooLarge refuses a policy that is over Limits.Policy by itself.
func (w *Store) refuseTooLarge(form *Policy, cost int64) *policy {
	return w.refuse(form, cost, fmt.Sprintf("compiled it would take %s, and one policy may take %s", mebibytes(cost), mebibytes(w.limits.Policy)),
		"split it, name ranges and labels instead of single ports, addresses and pods, or raise --policy-memory")
}

// refuseOverTotal refuses a policy because all policies together are over Limits.Policies.
func (w *Store) refuseOverTotal(form *Policy, cost int64) *policy {
	p := w.refuse(form, cost, fmt.Sprintf("compiled it would take %s, and all policies together %s at most", mebibytes(cost), mebibytes(w.limits.Policies)),
		"make fewer or smaller policies in the namespace whose policies take most, or raise --policies-memory")
	p.recoverable = true
	return p
}

// refuseOverBacklog refuses a large policy because too many bytes of its namespace's
// policies are already waiting to be compiled.
func (w *Store) refuseOverBacklog(form *Policy) *policy {
	p := w.refuse(form, w.costOf(form), fmt.Sprintf("at most %s of large policies of a namespace may wait to be compiled", mebibytes(mostWaiting)),
		"change fewer large policies at a time")
	p.recoverable = true
	return p
}

// refuse reads a policy without its rules. detail and hint describe the reason. A refused
// NetworkPolicy still isolates the same pods in the same directions, but allows nothing. A
// refused policy of another tier denies everything in the directions in which it has rules.
func (w *Store) refuse(form *Policy, cost int64, detail, hint string) *policy {
	bare := *form
	bare.Rules = form.closed()
	bare.Problems = append([]Problem{{Policy: form.Ref, Field: "spec", Detail: detail, Hint: hint, TooLarge: true}}, form.Problems...)
	p := w.readPolicy(&bare)
	p.cost, p.refused = cost, true
	w.useNodesOf(p, form)
	return p
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// count accounts for a new policy. An admitted policy adds its cost to w.cost, and keeps its
// source, so that replace can read the policy again. A refused policy keeps its source too if
// it is recoverable or its peers select nodes, and then adds the size of the source to
// w.refused, unless w.refused would exceed mostRefused.
func (w *Store) count(p *policy, from Source) {
	switch {
	case !p.refused:
		w.cost += p.cost
		p.kept = from
	case (p.recoverable || len(p.nodes) > 0) && w.refused+len(from.Encoded) <= mostRefused:
		w.refused += len(from.Encoded)
		p.kept = from
	}
	w.recount = w.recount || w.overdrawn
}

// discount undoes count for a policy that is no longer in force.
func (w *Store) discount(p *policy) {
	if p.refused {
		w.refused -= len(p.kept.Encoded)
	} else {
		w.cost -= p.cost
	}
	w.recount = w.recount || w.overdrawn
}

// balance refuses policies, and admits refused ones again, so that all admitted policies
// together are within Limits.Policies. The choice depends only on the names and costs of the
// policies, and not on the order in which they were set.
func (w *Store) balance() {
	if !w.recount {
		return
	}
	w.recount = false
	out := w.toRefuse()
	w.overdrawn = len(out) > 0
	for _, p := range out {
		if !p.refused {
			w.replace(p, w.refuseOverTotal)
		}
	}
	var back []*policy
	for key, p := range w.policies {
		if _, is := out[key]; p.recoverable && p.kept.Read != nil && !is {
			back = append(back, p)
		}
	}
	slices.SortFunc(back, byText)
	waits := false
	for _, p := range back {
		if w.drafted(p.ref, p.kept) {
			waits = !w.draftBack(p) || waits
			continue
		}
		w.replace(p, func(form *Policy, _ int64) *policy { return w.admit(form) })
	}
	w.recount = waits
}

// draftBack makes a draft of a large policy that was refused. The draft, once in force,
// replaces the refused policy. draftBack returns false if there is no room for the draft.
func (w *Store) draftBack(p *policy) bool {
	newest, _ := w.newest(p.ref)
	d := w.drafts.current
	if newest != p.sum || w.drafts.waiting[p.ref] != nil || d != nil && d.ref == p.ref && !d.dropped {
		return true // this version of the policy, or a later one, is already a draft
	}
	return w.draft(&Draft{ref: p.ref, from: p.kept, sum: p.sum, resource: p.resource, reach: p.reach()})
}

func byText(a, b *policy) int { return cmp.Compare(a.text, b.text) }

// byPriority is the order in which ordered rules decide. The API leaves the order of policies of
// equal priority open. byPriority orders them by name, so that every node decides alike.
func byPriority(a, b *policy) int { return cmp.Or(cmp.Compare(a.priority, b.priority), byText(a, b)) }

// toRefuse returns the policies to refuse so that all others are within Limits.Policies.
func (w *Store) toRefuse() map[Ref]*policy {
	most := w.limits.Policies
	of := make(map[string][]*policy)
	sums := make(map[string]int64)
	var sum int64
	for _, p := range w.policies {
		if p.kept.Read == nil || p.refused && !p.recoverable {
			continue // its source was not kept, or it is refused for its own size
		}
		of[p.ref.Namespace] = append(of[p.ref.Namespace], p)
		sums[p.ref.Namespace] += p.cost
		sum += p.cost
	}
	out := make(map[Ref]*policy)
	if most <= 0 || sum <= most {
		return out
	}
	for _, list := range of {
		slices.SortFunc(list, func(a, b *policy) int { return cmp.Or(cmp.Compare(a.cost, b.cost), byText(a, b)) })
	}
	for sum > most {
		worst := worstOf(sums)
		list := of[worst]
		p := list[len(list)-1]
		out[p.ref] = p
		of[worst] = list[:len(list)-1]
		sums[worst] -= p.cost
		sum -= p.cost
	}
	return out
}

// worstOf returns the namespace with the largest sum. Of several, it is the one whose name sorts
// last. It returns "", which stands for the policies in no namespace, only if the policies of
// all namespaces take nothing. If a policy in no namespace were refused, pods of every namespace
// might lose connections, and the policies of one namespace must not cause this.
func worstOf(sums map[string]int64) (worst string) {
	for name, n := range sums {
		if name != "" && n > 0 && (worst == "" || n > sums[worst] || n == sums[worst] && name > worst) {
			worst = name
		}
	}
	return worst
}

// replace decodes the kept source of a policy, passes the result to read, and puts the policy
// that read returns in the place of p.
func (w *Store) replace(p *policy, read func(*Policy, int64) *policy) {
	form, err := p.kept.Read(p.ref, p.kept.Encoded)
	if err != nil {
		return // cannot happen: the package of p.kept.Read has itself encoded the source
	}
	w.stamp(w.put(p.ref, p, p.kept, func() *policy { return read(form, p.cost) }), p.sum, p.resource)
}
