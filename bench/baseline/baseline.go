// Package baseline writes NetworkPolicies as iptables rules and IP sets, as a careful
// administrator or an agent without a queue would. Benchmarks compare Sluice with these
// rules.
//
// The rules are as fast as this form allows. Only the pods of one node have chains. The
// first rule accepts established connections. Rules with the same selector share one set. A
// pod's chain has the rules of all its policies, so that no packet jumps from policy to
// policy. The remaining cost is inherent: a packet passes the list of isolated pods and then
// the list of its pod's rules.
//
// The package supports only IPv4, except for ApplyBaseline. It leaves out cases that benchmarks do not have: pods of
// the host's network, and SCTP if the kernel lacks its match.
package baseline

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/bench/testbed/lab"
	"sluice/filter"
	"sluice/filter/policy"
)

// Cluster is the input of Write.
type Cluster struct {
	Namespaces []*corev1.Namespace
	Pods       []*policy.Pod
	Policies   []*policy.Policy
}

// Set is an IP set.
type Set struct {
	Name    string
	Kind    string // type of the set in ipset: hash:ip, hash:net or hash:ip,port
	Members []Member
}

// Member is an element of a set.
type Member struct {
	Net    netip.Prefix
	Except bool            // in a hash:net set: Net is an exception to a larger range of the set
	Proto  filter.Protocol // set only in a hash:ip,port set
	Port   uint16          // set only in a hash:ip,port set
}

// Rule is a rule of a chain. A zero field matches everything.
type Rule struct {
	Established bool       // the connection is established or related to one
	Src, Dst    netip.Addr // addresses of the packet
	Set         string
	Side        filter.Direction // which address is in the set: the source (Ingress) or the destination (Egress)
	Proto       filter.Protocol
	First, Last uint16 // range of destination ports; all if Last is 0
	Target      string // Return, Drop, or a chain
}

// Targets of rules, besides the chains. A pod's chain returns the packets that it allows, so
// that they also go through the chain of the pod at the other end.
const (
	Return = "RETURN"
	Drop   = "DROP"
)

// Root is the chain that FORWARD jumps to.
const Root = "HAND"

// Rules are the sets and chains for the pods of one node.
type Rules struct {
	Sets   []Set
	Chains []string // names of the chains, Root first
	In     map[string][]Rule
}

// baseRules returns the rules of a node that tracks connections but has no agent: only one
// rule, which matches the connection's state. Most firewalls begin with this rule.
func baseRules() *Rules {
	return &Rules{Chains: []string{Root}, In: map[string][]Rule{Root: {{Established: true, Target: Return}}}}
}

// ApplyBaseline creates the rule of a node that tracks connections but has no agent, for both families.
func ApplyBaseline(node *lab.Node) error {
	r := baseRules()
	return errors.Join(r.restore(node, "iptables-restore"), r.restore(node, "ip6tables-restore"))
}

// Write returns the rules for the pods with the given addresses.
func Write(c Cluster, local []netip.Addr) *Rules {
	w := &writer{Cluster: c, rules: baseRules(), sets: make(map[string]string), namespaces: make(map[string]labels.Set)}
	for _, n := range c.Namespaces {
		l := labels.Merge(n.Labels, labels.Set{corev1.LabelMetadataName: n.Name})
		w.namespaces[n.Name] = l
	}
	for _, p := range c.Pods {
		if slices.Contains(local, address(p)) {
			w.pod(p)
		}
	}
	return w.rules
}

// address returns a pod's IPv4 address, or the zero Addr if the pod has none or has ended.
func address(p *policy.Pod) netip.Addr {
	if i := slices.IndexFunc(p.Addrs, netip.Addr.Is4); i >= 0 && p.Ended == "" {
		return p.Addrs[i]
	}
	return netip.Addr{}
}

type writer struct {
	Cluster
	rules      *Rules
	sets       map[string]string // names of sets by their content
	namespaces map[string]labels.Set
}

// pod writes the chains of a pod, one for each direction in which it is isolated.
func (w *writer) pod(p *policy.Pod) {
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		var rules []Rule
		isolated := false
		for _, o := range w.Policies {
			if !o.Isolates[d] || !selects(&o.Subject, p) {
				continue
			}
			isolated = true
			if o.Subject.Malformed {
				continue // no rule of a malformed policy applies
			}
			for i := range o.Rules[d] {
				rules = append(rules, w.rule(o.Subject.Namespace, p, d, &o.Rules[d][i])...)
			}
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
}

func selects(s *policy.Subject, p *policy.Pod) bool {
	return s.Namespace == p.Namespace && s.Pods.Matches(p.Labels)
}

// rule returns the rules for a policy's rule: one for each combination of peer and port.
func (w *writer) rule(namespace string, p *policy.Pod, d filter.Direction, r *policy.Rule) (rules []Rule) {
	from := make([]Rule, 0, len(r.Peers))
	var pods [][]*policy.Pod // the pods of each peer, to look up named ports
	for i := range r.Peers {
		set, matched := w.peer(namespace, &r.Peers[i])
		if set != "" { // a malformed peer or an IPv6 range has no set
			from, pods = append(from, Rule{Side: d, Set: set, Target: Return}), append(pods, matched)
		}
	}
	if len(r.Peers) == 0 {
		from, pods = []Rule{{Target: Return}}, [][]*policy.Pod{w.Pods}
	}
	for i, f := range from {
		if len(r.Ports) == 0 {
			rules = append(rules, f)
		}
		for _, port := range r.Ports {
			rules = append(rules, w.port(f, p, d, port, pods[i])...)
		}
	}
	return rules
}

// port returns r restricted to a port. It returns no rule if the port is malformed, or if it is
// an ingress port with a name that p does not declare.
func (w *writer) port(r Rule, p *policy.Pod, d filter.Direction, port policy.PortRange, peers []*policy.Pod) []Rule {
	r.Proto = port.Protocol
	switch {
	case port.Malformed:
		return nil
	case port.All():
		return []Rule{r}
	case port.Name == "":
		r.First, r.Last = port.Low, port.High
		return []Rule{r}
	case d == filter.Ingress:
		if r.First = named(p, port.Name, r.Proto); r.First == 0 {
			return nil
		}
		r.Last = r.First
		return []Rule{r}
	}
	// Each destination may declare a different number under this name.
	s := Set{Kind: "hash:ip,port"}
	for _, peer := range peers {
		if n, a := named(peer, port.Name, r.Proto), address(peer); n != 0 && a.IsValid() {
			s.Members = append(s.Members, Member{Net: netip.PrefixFrom(a, 32), Proto: r.Proto, Port: n})
		}
	}
	r.Set, r.Side = w.set(fmt.Sprint("named ", r.Set, port.Name, r.Proto), s), filter.Egress
	return []Rule{r}
}

// named returns the number of the pod's port with the given name, or 0 if the pod has no such
// port.
func named(p *policy.Pod, name string, proto filter.Protocol) uint16 {
	for _, port := range p.Ports {
		if port.Name == name && port.Protocol == proto {
			return port.Number
		}
	}
	return 0
}

// peer returns the name of the set with a peer's addresses, and the peer's pods. The name is
// empty if the peer is malformed or an IPv6 range.
func (w *writer) peer(namespace string, peer *policy.Peer) (name string, pods []*policy.Pod) {
	switch {
	case peer.Malformed != "":
		return "", nil
	case peer.Block != nil:
		s := block(peer.Block)
		if len(s.Members) == 0 {
			return "", nil
		}
		return w.set(fmt.Sprint("block ", s.Members), s), w.within(s)
	}
	space, pod := peer.Namespaces, peer.Pods
	if space == nil {
		space = labels.SelectorFromSet(labels.Set{corev1.LabelMetadataName: namespace})
	}
	if pod == nil {
		pod = labels.Everything()
	}
	s := Set{Kind: "hash:ip"}
	for _, p := range w.Pods {
		if a := address(p); a.IsValid() && pod.Matches(p.Labels) && space.Matches(w.namespaceLabels(p)) {
			pods, s.Members = append(pods, p), append(s.Members, Member{Net: netip.PrefixFrom(a, 32)})
		}
	}
	return w.set("pods "+space.String()+" / "+pod.String(), s), pods
}

// namespaceLabels returns the labels of a pod's namespace. If there is no Namespace object, these
// are only the label with the namespace's name.
func (w *writer) namespaceLabels(p *policy.Pod) labels.Set {
	if l, ok := w.namespaces[p.Namespace]; ok {
		return l
	}
	return labels.Set{corev1.LabelMetadataName: p.Namespace}
}

// block returns a range as a set. The set of an IPv6 range has no members.
func block(b *policy.Block) (s Set) {
	s.Kind = "hash:net"
	if !b.CIDR.Addr().Is4() {
		return s
	}
	for i, p := range append([]netip.Prefix{b.CIDR}, b.Except...) {
		nets := []netip.Prefix{p.Masked()}
		if p.Bits() == 0 { // hash:net does not accept /0
			nets = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/1"), netip.MustParsePrefix("128.0.0.0/1")}
		}
		for _, n := range nets {
			if n.Addr().Is4() {
				s.Members = append(s.Members, Member{Net: n, Except: i > 0})
			}
		}
	}
	return s
}

// within returns the pods that have an address in s.
func (w *writer) within(s Set) (pods []*policy.Pod) {
	for _, p := range w.Pods {
		if a := address(p); a.IsValid() && s.Has(a, 0, 0) {
			pods = append(pods, p)
		}
	}
	return pods
}

// Has reports whether the set contains an address or, for hash:ip,port, an address with this
// protocol and port. If several ranges contain the address, the smallest one decides: the
// address is in the set unless this range is an exception.
func (s Set) Has(a netip.Addr, proto filter.Protocol, port uint16) bool {
	bits, in := -1, false
	for _, m := range s.Members {
		if m.Net.Contains(a) && m.Net.Bits() > bits && m.Proto == proto && m.Port == port {
			bits, in = m.Net.Bits(), !m.Except
		}
	}
	return in
}

// set returns the name of the set with the given key. If there is none yet, it adds s.
func (w *writer) set(key string, s Set) string {
	if name, ok := w.sets[key]; ok {
		return name
	}
	s.Name = fmt.Sprintf("%s-S%d", Root, len(w.sets))
	w.sets[key] = s.Name
	w.rules.Sets = append(w.rules.Sets, s)
	return s.Name
}

// SetsText returns the sets as input of "ipset restore".
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

// RulesText returns the rules as input of "iptables-restore --noflush".
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

// text returns the rule as arguments of iptables, without the chain. kind is the Kind of the
// rule's set.
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

// Apply creates the sets and rules on a node that has none of them yet. It needs the command
// iptables-restore, and ipset if there are sets.
func (r *Rules) Apply(node *lab.Node) error {
	if len(r.Sets) > 0 {
		cmd := exec.Command("ipset", "restore")
		cmd.Stdin = strings.NewReader(r.SetsText())
		if _, err := node.Output(cmd); err != nil {
			return fmt.Errorf("make the IP sets: %w", err)
		}
	}
	return r.restore(node, "iptables-restore")
}

// restore creates the rules with iptables-restore or, for IPv6, ip6tables-restore.
func (r *Rules) restore(node *lab.Node, command string) error {
	cmd := exec.Command(command, "--noflush")
	cmd.Stdin = strings.NewReader(r.RulesText())
	if _, err := node.Output(cmd); err != nil {
		return fmt.Errorf("make the rules: %w", err)
	}
	return nil
}
