// Package byhand writes NetworkPolicies down as iptables rules and IP sets, as a
// careful administrator would, or an agent that works in the kernel alone: the peer
// that Sluice is measured against.
//
// It is kind to the peer. Only the pods of one node have chains, established
// connections are accepted by the first rule, a selector is one set however many
// rules use it, and a pod's chain holds the rules of all its policies, so that no
// packet jumps from policy to policy. What it cannot spare is what the form costs:
// a packet walks the list of isolated pods, then the list of its pod's rules.
//
// IPv4 alone. Cases that benchmarks do not have are left out: pods of the host's
// network, and SCTP where the kernel lacks its match.
package byhand

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
)

// Cluster is the objects, as the API serves them.
type Cluster struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
}

// Set is an IP set.
type Set struct {
	Name    string
	Kind    string // of ipset: hash:ip, hash:net or hash:ip,port
	Members []Member
}

// Member is an element of a set.
type Member struct {
	Net    netip.Prefix
	Except bool            // of hash:net: not in the set, though a larger range is
	Proto  filter.Protocol // of hash:ip,port
	Port   uint16          // of hash:ip,port
}

// Rule is a rule of a chain. What it does not name matches all.
type Rule struct {
	Established bool       // the connection is established, or related to one
	Src, Dst    netip.Addr // of the packet
	Set         string
	Side        filter.Direction // Ingress: the set holds the source; Egress: the destination
	Proto       filter.Protocol
	First, Last uint16 // destination ports, if Last is not 0
	Target      string // Return, Drop, or a chain
}

// Targets of rules beside chains. A pod's chain returns what it allows, so that the
// chain of the other end may have its say.
const (
	Return = "RETURN"
	Drop   = "DROP"
)

// Root is the chain that FORWARD jumps to.
const Root = "HAND"

// Rules are the rules for the pods of one node.
type Rules struct {
	Sets   []Set
	Chains []string // in order, Root first
	In     map[string][]Rule
}

// Baseline is what a node without any agent does if it tracks connections: a rule
// that looks at the connection's state, as most firewalls begin with.
func Baseline() *Rules {
	return &Rules{Chains: []string{Root}, In: map[string][]Rule{Root: {{Established: true, Target: Return}}}}
}

// Write writes the rules for the pods with the given addresses.
func Write(c Cluster, local []netip.Addr) (*Rules, error) {
	w := &writer{Cluster: c, rules: Baseline(), sets: make(map[string]string), namespaces: make(map[string]labels.Set)}
	for _, n := range c.Namespaces {
		l := labels.Merge(n.Labels, labels.Set{corev1.LabelMetadataName: n.Name})
		w.namespaces[n.Name] = l
	}
	for _, p := range c.Pods {
		if slices.Contains(local, address(p)) {
			if err := w.pod(p); err != nil {
				return nil, err
			}
		}
	}
	return w.rules, nil
}

// address is a pod's IPv4 address; the zero Addr if it has none, or has ended.
func address(p *corev1.Pod) netip.Addr {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
		return netip.Addr{}
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

type writer struct {
	Cluster
	rules      *Rules
	sets       map[string]string // names by what they hold
	namespaces map[string]labels.Set
}

// pod writes the chains of a pod, one for each direction that it is isolated in.
func (w *writer) pod(p *corev1.Pod) error {
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		var rules []Rule
		isolated := false
		for _, policy := range w.Policies {
			ok, err := selects(policy, p)
			if err != nil {
				return fmt.Errorf("policy %s/%s: %w", policy.Namespace, policy.Name, err)
			}
			if !ok || !slices.Contains(policy.Spec.PolicyTypes, typeOf(d)) {
				continue
			}
			isolated = true
			more, err := w.policy(policy, p, d)
			if err != nil {
				return fmt.Errorf("policy %s/%s: %w", policy.Namespace, policy.Name, err)
			}
			rules = append(rules, more...)
		}
		if !isolated {
			continue
		}
		chain := fmt.Sprintf("%s-%d", Root, len(w.rules.Chains))
		w.rules.Chains = append(w.rules.Chains, chain)
		w.rules.In[chain] = append(rules, Rule{Target: Drop})
		jump := Rule{Target: chain}
		if d == filter.Egress {
			jump.Src = address(p)
		} else {
			jump.Dst = address(p)
		}
		w.rules.In[Root] = append(w.rules.In[Root], jump)
	}
	return nil
}

func typeOf(d filter.Direction) networkingv1.PolicyType {
	if d == filter.Egress {
		return networkingv1.PolicyTypeEgress
	}
	return networkingv1.PolicyTypeIngress
}

func selects(policy *networkingv1.NetworkPolicy, p *corev1.Pod) (bool, error) {
	if policy.Namespace != p.Namespace {
		return false, nil
	}
	s, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	if err != nil {
		return false, err
	}
	return s.Matches(labels.Set(p.Labels)), nil
}

// policy is what a policy allows a pod, as rules of the pod's chain.
func (w *writer) policy(policy *networkingv1.NetworkPolicy, p *corev1.Pod, d filter.Direction) (rules []Rule, err error) {
	add := func(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) error {
		more, err := w.rule(policy.Namespace, p, d, peers, ports)
		rules = append(rules, more...)
		return err
	}
	if d == filter.Egress {
		for _, r := range policy.Spec.Egress {
			if err := add(r.To, r.Ports); err != nil {
				return nil, err
			}
		}
		return rules, nil
	}
	for _, r := range policy.Spec.Ingress {
		if err := add(r.From, r.Ports); err != nil {
			return nil, err
		}
	}
	return rules, nil
}

// rule is the product of peers and ports.
func (w *writer) rule(namespace string, p *corev1.Pod, d filter.Direction, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (rules []Rule, err error) {
	from := make([]Rule, 0, len(peers))
	var pods [][]*corev1.Pod // of each peer, to look up named ports
	for _, peer := range peers {
		r := Rule{Side: d, Target: Return}
		var matched []*corev1.Pod
		if r.Set, matched, err = w.peer(namespace, peer); err != nil {
			return nil, err
		}
		if r.Set != "" { // an IPv6 range holds no address of ours
			from, pods = append(from, r), append(pods, matched)
		}
	}
	if len(peers) == 0 {
		from, pods = []Rule{{Target: Return}}, [][]*corev1.Pod{w.Pods}
	}
	for i, r := range from {
		if len(ports) == 0 {
			rules = append(rules, r)
		}
		for _, port := range ports {
			rules = append(rules, w.port(r, p, d, port, pods[i])...)
		}
	}
	return rules, nil
}

// port narrows a rule down to a port.
func (w *writer) port(r Rule, p *corev1.Pod, d filter.Direction, port networkingv1.NetworkPolicyPort, peers []*corev1.Pod) []Rule {
	r.Proto = filter.TCP
	if port.Protocol != nil {
		r.Proto, _ = filter.ParseProtocol(string(*port.Protocol))
	}
	switch {
	case port.Port == nil:
		return []Rule{r}
	case port.Port.Type == intstr.Int:
		r.First = uint16(port.Port.IntVal)
		r.Last = r.First
		if port.EndPort != nil {
			r.Last = uint16(*port.EndPort)
		}
		return []Rule{r}
	case d == filter.Ingress:
		if r.First = named(p, port.Port.StrVal, r.Proto); r.First == 0 {
			return nil
		}
		r.Last = r.First
		return []Rule{r}
	}
	// Each destination has its own number for the name.
	s := Set{Kind: "hash:ip,port"}
	for _, peer := range peers {
		if n, a := named(peer, port.Port.StrVal, r.Proto), address(peer); n != 0 && a.IsValid() {
			s.Members = append(s.Members, Member{Net: netip.PrefixFrom(a, 32), Proto: r.Proto, Port: n})
		}
	}
	r.Set, r.Side = w.set(fmt.Sprint("named ", r.Set, port.Port.StrVal, r.Proto), s), filter.Egress
	return []Rule{r}
}

// named is the number of a pod's port; 0 if it has none of that name.
func named(p *corev1.Pod, name string, proto filter.Protocol) uint16 {
	for _, c := range p.Spec.Containers {
		for _, port := range c.Ports {
			protocol := port.Protocol
			if protocol == "" {
				protocol = corev1.ProtocolTCP
			}
			if port.Name == name && string(protocol) == proto.String() {
				return uint16(port.ContainerPort)
			}
		}
	}
	return 0
}

// peer is the set of a peer's addresses, and its pods.
func (w *writer) peer(namespace string, peer networkingv1.NetworkPolicyPeer) (name string, pods []*corev1.Pod, err error) {
	if peer.IPBlock != nil {
		s, err := block(peer.IPBlock)
		if err != nil || len(s.Members) == 0 {
			return "", nil, err
		}
		return w.set(fmt.Sprint("block ", s.Members), s), w.within(s), nil
	}
	space := labels.SelectorFromSet(labels.Set{corev1.LabelMetadataName: namespace})
	if peer.NamespaceSelector != nil {
		if space, err = metav1.LabelSelectorAsSelector(peer.NamespaceSelector); err != nil {
			return "", nil, err
		}
	}
	pod := labels.Everything()
	if peer.PodSelector != nil {
		if pod, err = metav1.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return "", nil, err
		}
	}
	s := Set{Kind: "hash:ip"}
	for _, p := range w.Pods {
		if a := address(p); a.IsValid() && pod.Matches(labels.Set(p.Labels)) && space.Matches(w.spaceOf(p)) {
			pods, s.Members = append(pods, p), append(s.Members, Member{Net: netip.PrefixFrom(a, 32)})
		}
	}
	return w.set("pods "+space.String()+" / "+pod.String(), s), pods, nil
}

// spaceOf are the labels of a pod's namespace, which may have no object.
func (w *writer) spaceOf(p *corev1.Pod) labels.Set {
	if l, ok := w.namespaces[p.Namespace]; ok {
		return l
	}
	return labels.Set{corev1.LabelMetadataName: p.Namespace}
}

// block is a range as a set; without members if it is one of IPv6.
func block(b *networkingv1.IPBlock) (s Set, err error) {
	s.Kind = "hash:net"
	for i, text := range append([]string{b.CIDR}, b.Except...) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return s, fmt.Errorf("read a range: %w", err)
		}
		if !p.Addr().Is4() {
			return s, nil
		}
		nets := []netip.Prefix{p.Masked()}
		if p.Bits() == 0 { // a set has no place for this one
			nets = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}
		}
		for _, n := range nets {
			s.Members = append(s.Members, Member{Net: n, Except: i > 0})
		}
	}
	return s, nil
}

// within are the pods whose addresses a range holds.
func (w *writer) within(s Set) (pods []*corev1.Pod) {
	for _, p := range w.Pods {
		if a := address(p); a.IsValid() && s.Has(a, 0, 0) {
			pods = append(pods, p)
		}
	}
	return pods
}

// Has says whether an address, or of hash:ip,port an address and port, is in the
// set: whether the smallest range that holds it is no exception.
func (s Set) Has(a netip.Addr, proto filter.Protocol, port uint16) bool {
	bits, in := -1, false
	for _, m := range s.Members {
		if m.Net.Contains(a) && m.Net.Bits() > bits && m.Proto == proto && m.Port == port {
			bits, in = m.Net.Bits(), !m.Except
		}
	}
	return in
}

// set is the name of the set that holds what the key says.
func (w *writer) set(key string, s Set) string {
	if name, ok := w.sets[key]; ok {
		return name
	}
	s.Name = fmt.Sprintf("%s-S%d", Root, len(w.sets))
	w.sets[key] = s.Name
	w.rules.Sets = append(w.rules.Sets, s)
	return s.Name
}

// SetsText is the sets as "ipset restore" takes them.
func (r *Rules) SetsText() string {
	var b strings.Builder
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "create %s %s family inet maxelem %d\n", s.Name, s.Kind, max(1024, len(s.Members)))
		for _, m := range s.Members {
			fmt.Fprintf(&b, "add %s %s", s.Name, member(s.Kind, m))
			if m.Except {
				b.WriteString(" nomatch")
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func member(kind string, m Member) string {
	switch kind {
	case "hash:ip":
		return m.Net.Addr().String()
	case "hash:ip,port":
		return fmt.Sprintf("%s,%s:%d", m.Net.Addr(), strings.ToLower(m.Proto.String()), m.Port)
	}
	return m.Net.String()
}

// RulesText is the rules as "iptables-restore --noflush" takes them.
func (r *Rules) RulesText() string {
	var b strings.Builder
	b.WriteString("*filter\n")
	for _, c := range r.Chains {
		fmt.Fprintf(&b, ":%s - [0:0]\n", c)
	}
	kinds := make(map[string]string)
	for _, s := range r.Sets {
		kinds[s.Name] = s.Kind
	}
	for _, c := range r.Chains {
		for _, rule := range r.In[c] {
			fmt.Fprintf(&b, "-A %s%s\n", c, rule.text(kinds[rule.Set]))
		}
	}
	fmt.Fprintf(&b, "-I FORWARD 1 -j %s\nCOMMIT\n", Root)
	return b.String()
}

// text is a rule's own part of its line.
func (r Rule) text(kind string) string {
	var b strings.Builder
	if r.Established {
		b.WriteString(" -m conntrack --ctstate ESTABLISHED,RELATED")
	}
	if r.Src.IsValid() {
		fmt.Fprintf(&b, " -s %s", r.Src)
	}
	if r.Dst.IsValid() {
		fmt.Fprintf(&b, " -d %s", r.Dst)
	}
	if r.Proto != 0 {
		fmt.Fprintf(&b, " -p %s", strings.ToLower(r.Proto.String()))
	}
	if r.Last != 0 {
		fmt.Fprintf(&b, " --dport %d:%d", r.First, r.Last)
	}
	if r.Set != "" {
		side := map[filter.Direction]string{filter.Ingress: "src", filter.Egress: "dst"}[r.Side]
		if kind == "hash:ip,port" {
			side += "," + side
		}
		fmt.Fprintf(&b, " -m set --match-set %s %s", r.Set, side)
	}
	fmt.Fprintf(&b, " -j %s", r.Target)
	return b.String()
}
