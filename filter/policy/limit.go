package policy

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Limits bound what policies may take, in bytes of memory as estimated before they
// are compiled; 0 is no limit. A policy beyond allows nothing, for the pods that it
// selects and in the directions that it isolates, and is a problem with its name.
type Limits struct {
	// Policy bounds each policy.
	Policy int64
	// Policies bounds all together. Of the namespace whose policies take most, the
	// one that takes most goes first, and so on until the rest is within the bound.
	Policies int64
}

// DefaultLimits leave an agent of 512 MiB room for a large cluster's pods, and for
// compiling the largest policy that an API server keeps.
func DefaultLimits() Limits { return Limits{Policy: 160 << 20, Policies: 256 << 20} }

// mostRefused bounds the bytes that are kept of policies which are refused for what
// all take together, so that they come back when there is room. One that found no room
// here comes back when it is set again.
const mostRefused = 32 << 20

// SetLimits sets the limits of policies that are set from now on.
func (w *World) SetLimits(l Limits) { w.limits, w.recount = l, true }

// What parts of a policy take at most, in bytes. A test holds it against what they do
// take.
const (
	costOfPolicy   = 1200
	costOfRule     = 250
	costOfPort     = 350
	costOfRange    = 160
	costOfSelector = 1100
	costOfValue    = 500
	costOfEntry    = 14
)

// costOf estimates the bytes that a compiled policy takes, from its size only. It is an
// upper bound, even for a policy that shares no selector with others.
func costOf(spec *networkingv1.NetworkPolicySpec) int64 {
	c := costs{}
	c.selector(&spec.PodSelector)
	for i := range spec.Ingress {
		c.rule(spec.Ingress[i].From, spec.Ingress[i].Ports)
	}
	for i := range spec.Egress {
		c.rule(spec.Egress[i].To, spec.Egress[i].Ports)
	}
	size := c.ports + c.peers
	most := max(256+8*size, 2*size*bits.Len(uint(2*c.ports)))
	entries := 4*c.peers + min(most, (2*c.ports+1)*c.peers)
	return int64(spec.Size()) + c.bytes + costOfPolicy + costOfEntry*int64(entries)
}

// costs counts what is in a policy.
type costs struct {
	bytes        int64
	ports, peers int // peers in peer sets' entries
}

func (c *costs) rule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) {
	c.bytes += costOfRule + int64(len(ports))*costOfPort
	c.ports += len(ports)
	c.peers++
	for i := range peers {
		p := &peers[i]
		if p.IPBlock != nil {
			ranges := 1 + len(p.IPBlock.Except)
			c.peers += ranges
			c.bytes += costOfRange * int64(ranges)
			continue
		}
		c.peers++
		c.selector(p.PodSelector)
		c.selector(p.NamespaceSelector)
	}
}

func (c *costs) selector(s *metav1.LabelSelector) {
	if s == nil {
		return
	}
	c.bytes += costOfSelector + costOfValue*int64(len(s.MatchLabels))
	for i := range s.MatchExpressions {
		e := &s.MatchExpressions[i]
		c.bytes += costOfValue + int64(len(e.Key))
		for _, v := range e.Values {
			c.bytes += costOfValue + int64(len(v))
		}
	}
}

// admit reads a policy, or refuses it if it takes more than it may.
func (w *World) admit(o *networkingv1.NetworkPolicy) *policy {
	cost := costOf(&o.Spec)
	if most := w.limits.Policy; most > 0 && cost > most {
		return w.refuseTooLarge(o, cost)
	}
	if most := w.limits.Policies; most > 0 && w.cost+cost > most {
		w.recount = true
		return w.refuseForAll(o, cost)
	}
	p := w.readPolicy(o)
	p.cost = cost
	return p
}

// refuseTooLarge refuses a policy for what it takes alone.
func (w *World) refuseTooLarge(o *networkingv1.NetworkPolicy, cost int64) *policy {
	return w.refuse(o, cost, fmt.Sprintf("compiled it would take %s, and one policy may take %s", mebibytes(cost), mebibytes(w.limits.Policy)),
		"split it, name ranges and labels instead of single ports, addresses and pods, or raise --policy-memory")
}

// refuseForAll refuses a policy for what all take together.
func (w *World) refuseForAll(o *networkingv1.NetworkPolicy, cost int64) *policy {
	p := w.refuse(o, cost, fmt.Sprintf("compiled it would take %s, and all policies together %s at most", mebibytes(cost), mebibytes(w.limits.Policies)),
		"make fewer or smaller policies in the namespace whose policies take most, or raise --policies-memory")
	p.surplus = true
	return p
}

// refuseToWait refuses a policy for what waits to be compiled.
func (w *World) refuseToWait(o *networkingv1.NetworkPolicy) *policy {
	p := w.refuse(o, costOf(&o.Spec), fmt.Sprintf("it waits for other large policies of its namespace to be compiled, of which %s may wait", mebibytes(mostWaiting)),
		"change fewer large policies at a time")
	p.surplus = true
	return p
}

// refuse reads of a policy which pods it selects and in which directions, and leaves
// the rules away: it allows nothing.
func (w *World) refuse(o *networkingv1.NetworkPolicy, cost int64, detail, mend string) *policy {
	bare := *o
	bare.Spec.Ingress, bare.Spec.Egress = nil, nil
	p := w.readPolicy(&bare)
	p.isolates = reader{p: &policy{}, more: new(int)}.directions(&o.Spec)
	p.cost, p.refused = cost, true
	p.problems = append(p.problems, Problem{Policy: p.text, Field: "spec", Detail: detail, Mend: mend, TooLarge: true})
	return p
}

func mebibytes(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

// count takes a policy that comes into the sums, and with it what it takes to know it
// again.
func (w *World) count(p *policy, spec []byte) {
	switch {
	case !p.refused:
		w.cost += p.cost
		p.spec = spec
	case p.surplus && w.refused+len(spec) <= mostRefused:
		w.refused += len(spec)
		p.spec = spec
	}
	w.recount = w.recount || w.overdrawn
}

// discount takes a policy that goes out of the sums.
func (w *World) discount(p *policy) {
	if p.refused {
		w.refused -= len(p.spec)
	} else {
		w.cost -= p.cost
	}
	w.recount = w.recount || w.overdrawn
}

// balance decides which policies are refused for what all take together: by names
// and costs alone, so that the order in which they came decides nothing.
func (w *World) balance() {
	if !w.recount {
		return
	}
	w.recount = false
	out := w.surplus()
	w.overdrawn = len(out) > 0
	for _, p := range out {
		if !p.refused {
			w.replace(p, w.refuseForAll)
		}
	}
	var back []*policy
	for key, p := range w.policies {
		if _, is := out[key]; p.surplus && p.spec != nil && !is {
			back = append(back, p)
		}
	}
	slices.SortFunc(back, byText)
	waits := false
	for _, p := range back {
		if w.drafts.on && w.isLarge(p.spec) {
			waits = !w.draftBack(p) || waits
			continue
		}
		w.replace(p, func(o *networkingv1.NetworkPolicy, _ int64) *policy { return w.admit(o) })
	}
	w.recount = waits
}

// draftBack has a large policy that was refused wait to come back. It returns false if
// there is no room.
func (w *World) draftBack(p *policy) bool {
	newest, _ := w.newest(p.objectKey)
	d := w.drafts.current
	if newest != p.sum || w.drafts.waiting[p.objectKey] != nil || d != nil && d.key == p.objectKey && !d.dropped {
		return true // it comes, or a later version
	}
	return w.draft(&Draft{key: p.objectKey, spec: p.spec, sum: p.sum, reach: p.reach()})
}

func byText(a, b *policy) int { return cmp.Compare(a.text, b.text) }

// surplus picks the policies that are beyond what all may take.
func (w *World) surplus() map[objectKey]*policy {
	most := w.limits.Policies
	of := make(map[string][]*policy)
	sums := make(map[string]int64)
	var sum int64
	for _, p := range w.policies {
		if p.spec == nil {
			continue // refused for its own size, or until it is set again
		}
		of[p.namespace] = append(of[p.namespace], p)
		sums[p.namespace] += p.cost
		sum += p.cost
	}
	out := make(map[objectKey]*policy)
	if most <= 0 || sum <= most {
		return out
	}
	for _, list := range of {
		slices.SortFunc(list, func(a, b *policy) int { return cmp.Or(cmp.Compare(a.cost, b.cost), byText(a, b)) })
	}
	for sum > most {
		worst := ""
		for name, n := range sums {
			if worst == "" || n > sums[worst] || n == sums[worst] && name > worst {
				worst = name
			}
		}
		list := of[worst]
		p := list[len(list)-1]
		out[p.objectKey] = p
		of[worst] = list[:len(list)-1]
		sums[worst] -= p.cost
		sum -= p.cost
	}
	return out
}

// replace reads a policy again, in another way.
func (w *World) replace(p *policy, read func(*networkingv1.NetworkPolicy, int64) *policy) {
	o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: p.namespace, Name: p.name}}
	if err := o.Spec.Unmarshal(p.spec); err != nil {
		return // cannot be: it was encoded here
	}
	w.put(p.objectKey, p, p.spec, func() *policy { return read(o, p.cost) }).sum = p.sum
}
