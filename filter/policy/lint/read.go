package lint

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/sets"

	"sluice/filter"
	"sluice/filter/policy"
)

// namespace is a namespace that exists or has a pod.
type namespace struct {
	name   string
	labels labels.Set
}

func newNamespace(name string, given labels.Set) *namespace {
	return &namespace{name, labels.Merge(given, labels.Set{corev1.LabelMetadataName: name})}
}

type pod struct {
	name   string
	ns     *namespace
	labels labels.Set
	addrs  []netip.Addr
	host   bool // the pod is in the host network: no policy isolates it, and no selector matches it
	ports  map[portName]bool
	all    []policy.NamedPort // all ports that its containers declare

	ended    bool
	workload string // "namespace/name" of its workload, or of the pod itself
	object   string // the workload or the pod, as in Finding.Object
}

type portName struct {
	name     string
	protocol filter.Protocol
}

// addPod adds a pod. The parameter of is its workload, or zero if it has none. Ended pods are included,
// because a selector that matches them is not a mistake.
func (l *linter) addPod(o *policy.Pod, of policy.Ref) {
	ns := l.namespaces[o.Namespace]
	if ns == nil {
		ns = newNamespace(o.Namespace, nil)
		l.namespaces[o.Namespace] = ns
	}
	p := &pod{name: o.Name, ns: ns, labels: o.Labels, addrs: o.Addrs, host: o.HostNetwork, ports: make(map[portName]bool), all: o.Ports, ended: o.Ended != "", workload: o.String(), object: "Pod " + o.String()}
	if of != (policy.Ref{}) {
		p.workload, p.object = of.Namespace+"/"+of.Name, of.Object()
	}
	for _, port := range o.Ports {
		if port.Name != "" {
			p.ports[portName{port.Name, port.Protocol}] = true
		}
	}
	l.pods = append(l.pods, p)
}

// lintPolicy is a policy, prepared for the checks.
type lintPolicy struct {
	*policy.Policy
	text      string
	namespace string          // of its pods; empty if spaces is set
	spaces    labels.Selector // of the namespaces of its pods; nil: only namespace
	subject   labels.Selector // nil if it is malformed
	rules     [2][]rule
}

// ordered reports whether the first rule that matches decides.
func (p *lintPolicy) ordered() bool { return p.Tier != policy.NetworkPolicy }

type rule struct {
	field     string // as in "spec.ingress[0]"
	index     int
	direction filter.Direction
	name      string
	action    policy.Action
	anyone    bool
	peers     []peer
	anyPort   bool
	ports     []port
	whole     bool // no part is malformed
}

// peer is one item of a "from" or "to" list: a block, or selectors.
type peer struct {
	field     string
	namespace labels.Selector // selects namespaces
	own       bool            // namespace selects only the policy's namespace, by its name label
	pods      labels.Selector
	block     *block
	nodes     labels.Selector
	// The fields of the selectors of namespaces and pods, relative to field.
	nsField, podField string
}

// arePods reports whether the peer selects pods by labels.
func (x *peer) arePods() bool { return x.block == nil && x.nodes == nil }

// block is a block without host bits, and the block as written.
type block struct {
	cidr    netip.Prefix
	excepts []netip.Prefix
	written *policy.Block
}

type port struct {
	policy.PortRange
	field string
}

func newPolicy(o *policy.Policy) *lintPolicy {
	p := &lintPolicy{Policy: o, text: o.Ref.String(), namespace: o.Subject.Namespace, spaces: o.Subject.Namespaces}
	if !o.Subject.Malformed {
		p.subject = o.Subject.Pods
	}
	for d := range o.Rules {
		for i := range o.Rules[d] {
			r := o.Rules[d][i]
			if p.ordered() {
				p.rules[d] = append(p.rules[d], p.orderedRule(filter.Direction(d), i, r))
				continue
			}
			p.rules[d] = append(p.rules[d], p.rule(filter.Direction(d), i, &r))
		}
	}
	return p
}

func (p *lintPolicy) rule(d filter.Direction, index int, o *policy.Rule) rule {
	r := rule{
		field: fmt.Sprintf("spec.%s[%d]", d, index), index: index, direction: d, action: policy.Accept,
		anyone: len(o.Peers) == 0, anyPort: len(o.Ports) == 0, whole: true,
	}
	list := "from"
	if d == filter.Egress {
		list = "to"
	}
	for i := range o.Peers {
		out, ok := p.peer(&o.Peers[i])
		out.field = fmt.Sprintf("%s.%s[%d]", r.field, list, i)
		if ok {
			r.peers = append(r.peers, out)
		}
		r.whole = r.whole && ok
	}
	for i, x := range o.Ports {
		if !x.Malformed {
			r.ports = append(r.ports, port{x, fmt.Sprintf("%s.ports[%d].port", r.field, i)})
		}
		r.whole = r.whole && !x.Malformed
	}
	return r
}

func (p *lintPolicy) peer(o *policy.Peer) (peer, bool) {
	switch {
	case o.Malformed != "":
		return peer{}, false
	case o.Block != nil:
		return peer{block: newBlock(o.Block)}, true
	}
	out := peer{pods: o.Pods, namespace: o.Namespaces, nsField: ".namespaceSelector", podField: ".podSelector"}
	if out.pods == nil {
		out.pods = labels.Everything()
	}
	if out.namespace != nil {
		return out, true
	}
	out.own = true
	// If the namespace's name is not valid as a label value, the peer matches nothing. The
	// name is reported elsewhere, when the policy is read.
	named, err := labels.NewRequirement(corev1.LabelMetadataName, selection.In, []string{p.namespace})
	if err != nil {
		return out, false
	}
	out.namespace = labels.NewSelector().Add(*named)
	return out, true
}

func newBlock(o *policy.Block) *block {
	b := &block{cidr: o.CIDR.Masked(), written: o}
	for _, e := range o.Except {
		b.excepts = append(b.excepts, e.Masked())
	}
	return b
}

// selects reports whether the policy selects the pod.
func (p *lintPolicy) selects(o *pod) bool {
	return p.subject != nil && !o.host && p.includes(o.ns) && p.subject.Matches(o.labels)
}

// includes reports whether the subject may have pods in the namespace.
func (p *lintPolicy) includes(ns *namespace) bool {
	if p.spaces != nil {
		return p.spaces.Matches(ns.labels)
	}
	return ns.name == p.namespace
}

// includes reports whether the peer includes the pod.
func (x *peer) includes(o *pod) bool {
	if x.block != nil {
		return slices.ContainsFunc(o.addrs, x.block.contains)
	}
	return x.nodes == nil && !o.host && x.namespace.Matches(o.ns.labels) && x.pods.Matches(o.labels)
}

func (b *block) contains(addr netip.Addr) bool {
	return b.cidr.Contains(addr) && !slices.ContainsFunc(b.excepts, func(e netip.Prefix) bool { return e.Contains(addr) })
}

// values returns the values of a requirement as a set.
func values(r labels.Requirement) sets.Set[string] { return sets.New(r.ValuesUnsorted()...) }
