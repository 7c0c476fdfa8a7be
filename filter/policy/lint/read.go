package lint

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/sets"

	"sluice/filter"
	"sluice/filter/policy"
)

// namespace is one that has an object or a pod.
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
	host   bool // of the host network: no policy isolates it or names it
	ports  map[portName]bool
}

type portName struct {
	name     string
	protocol filter.Protocol
}

// addPod takes a pod in. Pods that have finished count, since a selector that
// matches them was not written in vain.
func (l *linter) addPod(o *corev1.Pod) {
	ns := l.namespaces[o.Namespace]
	if ns == nil {
		ns = newNamespace(o.Namespace, nil)
		l.namespaces[o.Namespace] = ns
	}
	p := &pod{name: o.Name, ns: ns, labels: o.Labels, host: o.Spec.HostNetwork, ports: make(map[portName]bool)}
	for _, ip := range o.Status.PodIPs {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			p.addrs = append(p.addrs, addr.Unmap())
		}
	}
	for _, port := range policy.NamedPortsOf(&o.Spec) {
		p.ports[portName{port.Name, port.Protocol}] = true
	}
	l.pods = append(l.pods, p)
}

// pol is a policy with its selectors and ranges read.
type pol struct {
	text      string
	namespace string
	spec      *networkingv1.NetworkPolicySpec
	subject   labels.Selector // nil if it cannot be read
	isolates  [2]bool
	rules     [2][]rule // of the directions that it isolates
}

type rule struct {
	field     string // as in spec.ingress[0]
	index     int
	direction filter.Direction
	anyone    bool
	peers     []peer
	anyPort   bool
	ports     []port
	whole     bool // all of it could be read
}

// peer is one item of from or to: a block, or selectors.
type peer struct {
	field     string
	namespace labels.Selector // own: the policy's namespace, by name
	own       bool
	pods      labels.Selector
	block     *block
}

type block struct {
	cidr    netip.Prefix
	excepts []netip.Prefix
	written *networkingv1.IPBlock
}

type port struct {
	policy.Port
	field string
}

func readPolicy(o *networkingv1.NetworkPolicy) *pol {
	p := &pol{text: o.Namespace + "/" + o.Name, namespace: o.Namespace, spec: &o.Spec}
	p.isolates[filter.Ingress] = len(o.Spec.PolicyTypes) == 0 || slices.Contains(o.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	p.isolates[filter.Egress] = slices.Contains(o.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) ||
		len(o.Spec.PolicyTypes) == 0 && len(o.Spec.Egress) > 0
	if s, err := metav1.LabelSelectorAsSelector(&o.Spec.PodSelector); err == nil {
		p.subject = s
	}
	if p.isolates[filter.Ingress] {
		for i, r := range o.Spec.Ingress {
			p.rules[filter.Ingress] = append(p.rules[filter.Ingress], p.rule(filter.Ingress, i, "from", r.From, r.Ports))
		}
	}
	if p.isolates[filter.Egress] {
		for i, r := range o.Spec.Egress {
			p.rules[filter.Egress] = append(p.rules[filter.Egress], p.rule(filter.Egress, i, "to", r.To, r.Ports))
		}
	}
	return p
}

func (p *pol) rule(d filter.Direction, index int, list string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) rule {
	r := rule{
		field: fmt.Sprintf("spec.%s[%d]", d, index), index: index, direction: d,
		anyone: len(peers) == 0, anyPort: len(ports) == 0, whole: true,
	}
	for i := range peers {
		out, ok := p.peer(&peers[i])
		out.field = fmt.Sprintf("%s.%s[%d]", r.field, list, i)
		if ok {
			r.peers = append(r.peers, out)
		}
		r.whole = r.whole && ok
	}
	for i := range ports {
		out, flaw := policy.ReadPort(&ports[i])
		if flaw == nil {
			r.ports = append(r.ports, port{out, fmt.Sprintf("%s.ports[%d]", r.field, i)})
		}
		r.whole = r.whole && flaw == nil
	}
	return r
}

func (p *pol) peer(o *networkingv1.NetworkPolicyPeer) (peer, bool) {
	if o.IPBlock != nil {
		b, ok := readBlock(o.IPBlock)
		return peer{block: b}, ok && o.PodSelector == nil && o.NamespaceSelector == nil
	}
	out := peer{pods: labels.Everything()}
	var err error
	if o.PodSelector != nil {
		if out.pods, err = metav1.LabelSelectorAsSelector(o.PodSelector); err != nil {
			return out, false
		}
	}
	if o.NamespaceSelector != nil {
		out.namespace, err = metav1.LabelSelectorAsSelector(o.NamespaceSelector)
		return out, err == nil
	}
	out.own = true
	// A name that is not valid is reported where it is read; it matches nothing.
	named, err := labels.NewRequirement(corev1.LabelMetadataName, selection.In, []string{p.namespace})
	if err != nil {
		return out, false
	}
	out.namespace = labels.NewSelector().Add(*named)
	return out, o.PodSelector != nil
}

func readBlock(o *networkingv1.IPBlock) (*block, bool) {
	cidr, ok := policy.ReadPrefix(o.CIDR)
	if !ok {
		return nil, false
	}
	b := &block{cidr: cidr, written: o}
	for _, text := range o.Except {
		except, ok := policy.ReadPrefix(text)
		if !ok {
			return nil, false
		}
		b.excepts = append(b.excepts, except)
	}
	return b, true
}

// selects says whether the policy is for the pod.
func (p *pol) selects(o *pod) bool {
	return p.subject != nil && !o.host && o.ns.name == p.namespace && p.subject.Matches(o.labels)
}

// names says whether the peer is the pod.
func (x *peer) names(o *pod) bool {
	if x.block != nil {
		return slices.ContainsFunc(o.addrs, x.block.holds)
	}
	return !o.host && x.namespace.Matches(o.ns.labels) && x.pods.Matches(o.labels)
}

func (b *block) holds(addr netip.Addr) bool {
	return b.cidr.Contains(addr) && !slices.ContainsFunc(b.excepts, func(e netip.Prefix) bool { return e.Contains(addr) })
}

// values are a requirement's values as a set.
func values(r labels.Requirement) sets.Set[string] { return sets.New(r.ValuesUnsorted()...) }
