package policy_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"sluice/filter"
	"sluice/filter/policy"
)

// The oracle implements the text of the NetworkPolicy API literally. Its part about the
// ClusterNetworkPolicy API is in cluster_oracle_test.go. For every flow, the oracle loops over all
// objects, parses every selector and CIDR again, and remembers nothing. It takes microseconds
// where the engine takes nanoseconds, but it has no index, class or cache that could share a
// mistake with the engine.
//
// Comments name the API field that a line implements, and quote its documentation.

// cluster is everything that a verdict depends on, as the API serves it. Objects in it are
// replaced and never changed, so a copy of the slices is a copy of the cluster.
type cluster struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
	Cluster    []*v1beta1.ClusterNetworkPolicy
	Nodes      []*corev1.Node
	Node       []netip.Addr   // the addresses of the enforcing node
	Ranges     []netip.Prefix // the ranges of that node's pods

	// assumed reports that the addresses of a Node object count as addresses of the node that
	// its pods run on, as in explanations (see Store.AssumeNodeAddrs).
	assumed bool
	// complete reports that the labels of a namespace without an object count as not known,
	// instead of as absent (see Store.RequireNamespaces).
	complete bool

	shape int // the shape of the rule sets that the engine compiles; see policy.SetShape
}

// flow holds the fields of a packet that policies depend on.
type flow struct {
	Src, Dst  netip.Addr
	Protocol  filter.Protocol
	Transport filter.Transport
	Port      uint16 // destination port; 0 unless Transport is Ported
}

func (f flow) key() filter.Key {
	return filter.Key{
		Src: f.Src.As16(), Dst: f.Dst.As16(),
		Port: f.Port, Protocol: f.Protocol, Transport: f.Transport,
	}
}

// judgement is the oracle's verdict on a flow. Unlike a filter.Verdict it lists all rules
// that allow the flow, because the engine may name any of them.
type judgement struct {
	Egress, Ingress sideJudgement
	SameAddress     bool // a pod talks to itself
	FromNode        bool // the source is the node of the destination, or the enforcing node
	ToNode          bool // the destination is the node of the source, or the enforcing node
	Unknown         bool // an end that policies may select is in a namespace whose labels are not known
	Action          filter.Action
}

// sideJudgement is the oracle's verdict for one direction.
type sideJudgement struct {
	Concerned bool         // a ClusterNetworkPolicy has a rule for the pod, whether or not it matches
	Passed    *filter.Rule // the Admin rule that passed the flow on
	Ordered   *filter.Rule // the Admin or Baseline rule that decided
	Isolating []string     // "namespace/name", sorted; none if an Admin rule decided
	Allowing  []filter.Rule
}

func (s sideJudgement) allows() bool {
	if s.Ordered != nil {
		return s.Ordered.Action != policy.Deny
	}
	return len(s.Isolating) == 0 || len(s.Allowing) > 0
}

func (s sideJudgement) String() string {
	return fmt.Sprintf("isolated by %q, allowed by %v, passed by %s, decided by %s", s.Isolating, s.Allowing, ruleText(s.Passed), ruleText(s.Ordered))
}

func (j judgement) String() string {
	return fmt.Sprintf("%s (same address %t, from node %t, to node %t)\n  egress:  %s\n  ingress: %s",
		j.Action, j.SameAddress, j.FromNode, j.ToNode, j.Egress, j.Ingress)
}

// judge returns the verdict on a flow. Egress at the source and ingress at the destination
// must both allow it.
func (c *cluster) judge(f flow) judgement {
	src, dst := c.podAt(f.Src), c.podAt(f.Dst)
	j := judgement{SameAddress: f.Src == f.Dst}
	// spec.ingress: "OR if the traffic source is the pod's local node"; the concept page
	// says the same of traffic to that node.
	j.FromNode = slices.Contains(c.Node, f.Src) || src == nil && c.runsOn(dst, f.Src)
	j.ToNode = slices.Contains(c.Node, f.Dst) || dst == nil && c.runsOn(src, f.Dst)
	j.Unknown = !j.exempt() && (c.isUnknown(src) || !j.ToNode && c.isUnknown(dst))
	switch {
	case j.exempt():
	case j.ToNode:
		j.Egress = c.judgeOwnNode(f)
	default:
		j.Egress = c.judgeSide(filter.Egress, f, src, dst)
		j.Ingress = c.judgeSide(filter.Ingress, f, src, dst)
	}
	if j.Egress.allows() && j.Ingress.allows() {
		j.Action = filter.Allow
	}
	return j
}

// exempt reports whether the flow is allowed whatever the policies are. A flow from a node to
// its pods is exempt so that probes reach the pods: no ingress peer of a ClusterNetworkPolicy
// can name a node.
func (j judgement) exempt() bool { return j.SameAddress || j.FromNode }

// judgeSide evaluates the policies of one end: the source for egress, the destination for
// ingress. "Policy tiers are evaluated in the following order: Admin tier, NetworkPolicy
// tier, Baseline tier"
func (c *cluster) judgeSide(d filter.Direction, f flow, src, dst *corev1.Pod) (side sideJudgement) {
	pod, peer := src, dst
	if d == filter.Ingress {
		pod, peer = dst, src
	}
	if pod == nil {
		return side // policies select only pods
	}
	// "If Admin tier has made a final decision (Accept or Deny) on a connection, then no
	// further evaluation is done."
	admin := c.judgeTier(v1beta1.AdminTier, d, f, pod, peer, dst)
	if side.add(admin); admin.decides() {
		return side
	}
	c.judgeNetworkPolicies(&side, d, f, pod, peer, dst)
	// "v1.NetworkPolicy always makes a final decision for selected pods."
	if len(side.Isolating) == 0 {
		side.add(c.judgeTier(v1beta1.BaselineTier, d, f, pod, peer, dst))
	}
	return side
}

// isolating returns the NetworkPolicies that isolate a pod in a direction.
func (c *cluster) isolating(d filter.Direction, pod *corev1.Pod) []string {
	var side sideJudgement
	c.judgeNetworkPolicies(&side, d, flow{}, pod, nil, nil)
	return side.Isolating
}

// judgeNetworkPolicies evaluates the NetworkPolicies of one end.
func (c *cluster) judgeNetworkPolicies(side *sideJudgement, d filter.Direction, f flow, pod, peer, dst *corev1.Pod) {
	peerAddr := f.Dst
	if d == filter.Ingress {
		peerAddr = f.Src
	}
	for _, p := range c.Policies {
		// A policy selects pods of its own namespace only.
		if p.Namespace != pod.Namespace || !affects(p, d) {
			continue
		}
		// A selector that cannot be parsed may be meant for any pod of the namespace, so the
		// policy isolates all pods of the namespace and allows nothing.
		selector, err := metav1.LabelSelectorAsSelector(&p.Spec.PodSelector)
		if err == nil && !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		name := p.Namespace + "/" + p.Name
		side.Isolating = append(side.Isolating, name)
		if err != nil {
			continue
		}
		for i, r := range rulesOf(p, d) {
			if anyPortMatches(r.ports, f, dst) && c.anyPeerMatches(r.peers, p.Namespace, peerAddr, peer) {
				side.Allowing = append(side.Allowing, filter.Rule{Policy: name, Tier: policy.NetworkPolicy, Direction: d, Action: policy.Accept, Index: i})
			}
		}
	}
	slices.Sort(side.Isolating)
}

// affects implements spec.policyTypes with its default: "policies that contain an
// egress section are assumed to affect egress, and all policies (whether or not
// they contain an ingress section) are assumed to affect ingress".
func affects(p *networkingv1.NetworkPolicy, d filter.Direction) bool {
	if len(p.Spec.PolicyTypes) == 0 {
		return d == filter.Ingress || len(p.Spec.Egress) > 0
	}
	types := map[networkingv1.PolicyType]bool{}
	for _, t := range p.Spec.PolicyTypes {
		if t != networkingv1.PolicyTypeIngress && t != networkingv1.PolicyTypeEgress {
			return true // an invalid type may be meant for either direction
		}
		types[t] = true
	}
	if d == filter.Egress {
		return types[networkingv1.PolicyTypeEgress]
	}
	return types[networkingv1.PolicyTypeIngress]
}

// policyRule is an ingress or egress rule.
type policyRule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func rulesOf(p *networkingv1.NetworkPolicy, d filter.Direction) (rules []policyRule) {
	if d == filter.Egress {
		for _, r := range p.Spec.Egress {
			rules = append(rules, policyRule{r.To, r.Ports})
		}
		return rules
	}
	for _, r := range p.Spec.Ingress {
		rules = append(rules, policyRule{r.From, r.Ports})
	}
	return rules
}

// anyPeerMatches implements the fields "from" and "to": "empty or missing ... matches all".
func (c *cluster) anyPeerMatches(peers []networkingv1.NetworkPolicyPeer, policyNamespace string, addr netip.Addr, pod *corev1.Pod) bool {
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		return c.peerMatches(p, policyNamespace, addr, pod)
	})
}

// peerMatches implements NetworkPolicyPeer. pod is nil for an address outside the cluster.
func (c *cluster) peerMatches(p networkingv1.NetworkPolicyPeer, policyNamespace string, addr netip.Addr, pod *corev1.Pod) bool {
	bySelector := p.PodSelector != nil || p.NamespaceSelector != nil
	if p.IPBlock != nil {
		// "If this field is set then neither of the other fields can be."
		return !bySelector && blockContains(p.IPBlock, addr)
	}
	if !bySelector || pod == nil {
		return false // a peer must have a field, and selectors match only pods
	}
	if p.NamespaceSelector == nil && pod.Namespace != policyNamespace {
		return false // "Otherwise ... in the policy's own namespace"
	}
	if p.NamespaceSelector != nil && !selects(p.NamespaceSelector, c.namespaceLabels(pod.Namespace)) {
		return false
	}
	return p.PodSelector == nil || selects(p.PodSelector, pod.Labels)
}

// selects reports whether a selector matches. A malformed selector matches nothing.
func selects(s *metav1.LabelSelector, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(set))
}

// blockContains implements IPBlock: an address in cidr, but in no element of except. If any
// part is malformed, the block matches nothing: ignoring a malformed except would allow more.
func blockContains(b *networkingv1.IPBlock, addr netip.Addr) bool {
	in, ok := cidrContains(b.CIDR, addr)
	for _, text := range b.Except {
		excepted, wellFormed := cidrContains(text, addr)
		ok = ok && wellFormed
		in = in && !excepted
	}
	return in && ok
}

// cidrContains ignores the host bits of a prefix, as the API does. An IPv4-mapped prefix is
// malformed, because no packet has such an address.
func cidrContains(text string, addr netip.Addr) (contains, wellFormed bool) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil || prefix.Addr().Is4In6() {
		return false, false
	}
	return prefix.Contains(addr), true
}

// anyPortMatches implements the field "ports": "empty or missing ... matches all ports". Only a
// rule without ports matches a packet without ports.
func anyPortMatches(items []networkingv1.NetworkPolicyPort, f flow, dst *corev1.Pod) bool {
	return len(items) == 0 || slices.ContainsFunc(items, func(item networkingv1.NetworkPolicyPort) bool {
		return portMatches(item, f, dst)
	})
}

// portMatches implements NetworkPolicyPort. dst is nil for an address outside the cluster.
func portMatches(item networkingv1.NetworkPolicyPort, f flow, dst *corev1.Pod) bool {
	protocol := corev1.ProtocolTCP // "If not specified, this field defaults to TCP."
	if item.Protocol != nil {
		protocol = *item.Protocol
	}
	if f.Transport != filter.Ported || f.Protocol != numberOf(protocol) {
		return false
	}
	if item.Port == nil {
		return item.EndPort == nil // endPort needs port
	}
	if item.Port.Type == intstr.String {
		if item.EndPort != nil {
			return false // endPort needs a number
		}
		// "this must be an IANA_SVC_NAME": RFC 6335, 5.1.
		if malformedPortName(item.Port.StrVal) {
			return false
		}
		number, ok := namedPort(dst, item.Port.StrVal, protocol)
		return ok && number == int32(f.Port)
	}
	first, last := item.Port.IntVal, item.Port.IntVal
	if item.EndPort != nil {
		last = *item.EndPort
	}
	if first < 1 || last > 65535 {
		return false
	}
	return first <= int32(f.Port) && int32(f.Port) <= last
}

func malformedPortName(name string) bool {
	return !portName.MatchString(name) || strings.Contains(name, "--") || len(name) > 15
}

var portName = regexp.MustCompile(`^([a-z0-9][a-z0-9-]*)?[a-z]([a-z0-9-]*[a-z0-9])?$`)

// numberOf returns the IP protocol number, or 0 for a protocol that NetworkPolicy does not
// have. No flow with ports has protocol 0.
func numberOf(p corev1.Protocol) filter.Protocol {
	switch p {
	case corev1.ProtocolTCP:
		return filter.TCP
	case corev1.ProtocolUDP:
		return filter.UDP
	case corev1.ProtocolSCTP:
		return filter.SCTP
	}
	return 0
}

// namedPort looks up a port's name in the destination pod, for ingress and for egress.
// Containers come before sidecars, which are init containers with restartPolicy Always.
// Other init containers have ended when the pod serves. An empty name matches no port, not
// even a port without a name.
func namedPort(pod *corev1.Pod, name string, protocol corev1.Protocol) (int32, bool) {
	if pod == nil || name == "" {
		return 0, false
	}
	containers := slices.Clone(pod.Spec.Containers)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, p := range c.Ports {
			// ports[].protocol: "Defaults to TCP".
			isTCP := p.Protocol == "" && protocol == corev1.ProtocolTCP
			if p.Name == name && (p.Protocol == protocol || isTCP) {
				return p.ContainerPort, p.ContainerPort > 0
			}
		}
	}
	return 0, false
}

// podAt returns the pod that has an address, or nil. Pods with hostNetwork have no address
// of their own, and finished pods have released theirs. If two live pods claim one address,
// the status of one of them is stale, and beats() determines the owner.
func (c *cluster) podAt(addr netip.Addr) *corev1.Pod {
	var owner *corev1.Pod
	for _, p := range c.Pods {
		finished := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		if p.Spec.HostNetwork || finished || !slices.Contains(podAddrs(p), addr) {
			continue
		}
		if owner == nil || c.beats(p, owner, addr) {
			owner = p
		}
	}
	return owner
}

// beats reports whether pod a, and not pod b, owns an address that both claim. If the
// address is in the ranges of the enforcing node, and only one of the pods runs on that node,
// that pod wins. In all other cases the pod that was created later wins. If both were
// created in the same second, the pod with the greater "namespace/name" wins, so that the
// order of events does not matter.
func (c *cluster) beats(a, b *corev1.Pod, addr netip.Addr) bool {
	here := func(p *corev1.Pod) bool { return p.Spec.NodeName == localNode }
	for _, r := range c.Ranges {
		if r.Contains(addr) && here(a) != here(b) {
			return here(a)
		}
	}
	if !a.CreationTimestamp.Time.Equal(b.CreationTimestamp.Time) {
		return a.CreationTimestamp.Time.After(b.CreationTimestamp.Time)
	}
	return a.Namespace+"/"+a.Name > b.Namespace+"/"+b.Name
}

// clashes lists the addresses that two or more pods claim. Pods that are being deleted do
// not count.
func (c *cluster) clashes() []policy.Clash {
	claims := map[netip.Addr][]string{}
	live := map[netip.Addr]int{}
	for _, p := range c.Pods {
		if p.Spec.HostNetwork || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		addrs := podAddrs(p)
		slices.SortFunc(addrs, netip.Addr.Compare)
		for _, a := range slices.Compact(addrs) {
			claims[a] = append(claims[a], p.Namespace+"/"+p.Name)
			if p.DeletionTimestamp == nil {
				live[a]++
			}
		}
	}
	var all []policy.Clash
	for a, names := range claims {
		if live[a] < 2 || slices.Contains(c.Node, a) {
			continue
		}
		winner := c.podAt(a)
		clash := policy.Clash{Addr: a, Winner: winner.Namespace + "/" + winner.Name}
		slices.Sort(names)
		for _, name := range names {
			if name != clash.Winner {
				clash.Others = append(clash.Others, name)
			}
		}
		all = append(all, clash)
	}
	slices.SortFunc(all, func(a, b policy.Clash) int { return a.Addr.Compare(b.Addr) })
	return all
}

// podAddrs returns the addresses in status.podIPs and status.podIP.
func podAddrs(p *corev1.Pod) []netip.Addr {
	texts := []string{p.Status.PodIP}
	for _, ip := range p.Status.PodIPs {
		texts = append(texts, ip.IP)
	}
	return parseAddrs(texts)
}

// hostAddrs returns the addresses in status.hostIPs and status.hostIP.
func hostAddrs(p *corev1.Pod) []netip.Addr {
	texts := []string{p.Status.HostIP}
	for _, ip := range p.Status.HostIPs {
		texts = append(texts, ip.IP)
	}
	return parseAddrs(texts)
}

func parseAddrs(texts []string) (addrs []netip.Addr) {
	for _, text := range texts {
		if addr, err := netip.ParseAddr(text); err == nil {
			addrs = append(addrs, addr.Unmap())
		}
	}
	return addrs
}

// runsOn reports whether addr is an address of the pod's node, according to the status of the
// pod or of the Node object. The caller makes sure that no live pod has addr.
func (c *cluster) runsOn(pod *corev1.Pod, addr netip.Addr) bool {
	return pod != nil && (slices.Contains(hostAddrs(pod), addr) || c.assumed && slices.ContainsFunc(c.Nodes, func(n *corev1.Node) bool {
		return n.Name == pod.Spec.NodeName && slices.Contains(nodeObjectAddrs(n), addr)
	}))
}

// namespaceLabels returns a namespace's labels, including the label with its name that the
// API server sets. A namespace whose object is unknown has only this label.
func (c *cluster) namespaceLabels(name string) map[string]string {
	set := map[string]string{}
	for _, ns := range c.Namespaces {
		if ns.Name == name {
			for k, v := range ns.Labels {
				set[k] = v
			}
		}
	}
	set[corev1.LabelMetadataName] = name
	return set
}

// String returns the cluster as manifests, to reproduce a failure.
func (c *cluster) String() string {
	var b strings.Builder
	write := func(kind, version string, object any) {
		text, err := yaml.Marshal(object)
		if err != nil {
			text = []byte(err.Error())
		}
		fmt.Fprintf(&b, "---\nkind: %s\napiVersion: %s\n%s", kind, version, text)
	}
	for _, o := range c.Namespaces {
		write("Namespace", "v1", o)
	}
	for _, o := range c.Pods {
		write("Pod", "v1", o)
	}
	for _, o := range c.Policies {
		write("NetworkPolicy", "networking.k8s.io/v1", o)
	}
	for _, o := range c.Cluster {
		write("ClusterNetworkPolicy", "policy.networking.k8s.io/v1beta1", o)
	}
	for _, o := range c.Nodes {
		write("Node", "v1", o)
	}
	fmt.Fprintf(&b, "# node addresses: %v\n", c.Node)
	return b.String()
}

// readCluster reads manifests separated by "---". The node's address is 10.9.0.1.
func readCluster(t *testing.T, manifests string) *cluster {
	t.Helper()
	c := &cluster{Node: []netip.Addr{netip.MustParseAddr("10.9.0.1")}, assumed: true}
	for _, text := range strings.Split(manifests, "---\n") {
		var kind metav1.TypeMeta
		var err error
		if err = yaml.Unmarshal([]byte(text), &kind); err != nil {
			t.Fatalf("reading manifest: %v\n%s", err, text)
		}
		switch kind.Kind {
		case "Namespace":
			c.Namespaces = append(c.Namespaces, new(corev1.Namespace))
			err = yaml.UnmarshalStrict([]byte(text), c.Namespaces[len(c.Namespaces)-1])
		case "Pod":
			c.Pods = append(c.Pods, new(corev1.Pod))
			err = yaml.UnmarshalStrict([]byte(text), c.Pods[len(c.Pods)-1])
		case "NetworkPolicy":
			c.Policies = append(c.Policies, new(networkingv1.NetworkPolicy))
			err = yaml.UnmarshalStrict([]byte(text), c.Policies[len(c.Policies)-1])
		case "Node":
			c.Nodes = append(c.Nodes, new(corev1.Node))
			err = yaml.UnmarshalStrict([]byte(text), c.Nodes[len(c.Nodes)-1])
		}
		if err != nil {
			t.Fatalf("reading %s: %v\n%s", kind.Kind, err, text)
		}
	}
	return c
}

// readFlow reads the form of Key.String: "10.0.0.1 > 10.0.0.2 TCP 80".
func readFlow(t *testing.T, text string) flow {
	t.Helper()
	var src, dst, protocol, rest string
	if n, err := fmt.Sscan(strings.Replace(text, ">", "", 1), &src, &dst, &protocol, &rest); n < 3 {
		t.Fatalf("reading flow %q: %v", text, err)
	}
	f := flow{Src: netip.MustParseAddr(src), Dst: netip.MustParseAddr(dst), Transport: filter.Portless}
	for _, p := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP, filter.ICMP, filter.ICMPv6} {
		if p.String() == protocol {
			f.Protocol = p
		}
	}
	if rest == "opaque" {
		f.Transport = filter.Opaque
	} else if f.Protocol.HasPorts() {
		port, err := strconv.ParseUint(rest, 10, 16)
		if err != nil {
			t.Fatalf("reading flow %q: %v", text, err)
		}
		f.Transport, f.Port = filter.Ported, uint16(port)
	}
	return f
}

// smallCluster has the pods that the example policies access-demo1 and access-demo2 concern. It
// also has a finished pod, a pod with hostNetwork, and a pod whose namespace has no object.
const smallCluster = `
{kind: Namespace, metadata: {name: default}}
---
{kind: Namespace, metadata: {name: mine, labels: {project: myproject}}}
---
{kind: Pod, metadata: {namespace: default, name: db, labels: {role: db}}, spec: {containers: [
  {name: a, ports: [{name: redis, containerPort: 6379}, {name: dns, containerPort: 53, protocol: UDP}]}],
  initContainers: [{name: i, ports: [{name: setup, containerPort: 1}]},
    {name: s, restartPolicy: Always, ports: [{name: mesh, containerPort: 15000}]}]},
  status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], hostIP: 10.9.0.2}}
---
{kind: Pod, metadata: {namespace: default, name: web, labels: {role: frontend}}, status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}}
---
{kind: Pod, metadata: {namespace: mine, name: job, labels: {role: frontend}}, status: {podIP: 10.0.0.3}}
---
{kind: Pod, metadata: {namespace: bare, name: odd}, status: {podIP: 10.0.0.4}}
---
{kind: Pod, metadata: {namespace: default, name: done, labels: {role: frontend}}, status: {podIP: 10.0.0.5, phase: Succeeded}}
---
{kind: Pod, metadata: {namespace: default, name: agent, labels: {role: frontend}}, spec: {hostNetwork: true}, status: {podIP: 10.9.0.3}}
---
`

// TestOracle compares the oracle with verdicts worked out by hand from the documentation.
// Each policy is in namespace default, and selects role=db if it has no podSelector.
func TestOracle(t *testing.T) {
	const web, job, odd, done, agent, out = "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.9.0.3", "192.0.2.7"
	const redis = " > 10.0.0.1 TCP 6379"
	tests := []struct {
		name, spec  string
		allow, deny []string
	}{
		{"another pod is selected", `podSelector: {matchLabels: {role: none}}`, []string{web + redis, out + redis}, nil},
		{"access-demo1", `ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: 6379}]}]`,
			[]string{web + redis, "fd00::2 > fd00::1 TCP 6379"},
			[]string{job + redis, odd + redis, done + redis, agent + redis, web + " > 10.0.0.1 TCP 80", web + " > 10.0.0.1 UDP 6379", web + " > 10.0.0.1 TCP opaque"}},
		{"access-demo2", `ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}}], ports: [{port: 6379}]}]`,
			[]string{job + redis}, []string{web + redis, odd + redis}},
		{"ingress absent, default types", ``, []string{"10.0.0.1 > " + out + " TCP 80"}, []string{web + redis, web + " > 10.0.0.1 ICMP"}},
		{"egress empty, default types", `egress: []`, []string{"10.0.0.1 > " + out + " TCP 80"}, []string{web + redis}},
		{"one egress rule, default types", `egress: [{ports: [{port: 80}]}]`,
			[]string{"10.0.0.1 > " + out + " TCP 80"}, []string{"10.0.0.1 > " + out + " TCP 81", web + redis}},
		{"only type egress", `policyTypes: [Egress]`, []string{web + redis}, []string{"10.0.0.1 > 10.0.0.2 TCP 80"}},
		{"one empty rule", `ingress: [{}]`, []string{out + redis, web + " > 10.0.0.1 ICMP", web + " > 10.0.0.1 TCP opaque"}, nil},
		{"from empty, a port item without port", `ingress: [{from: [], ports: [{protocol: UDP}]}]`,
			[]string{out + " > 10.0.0.1 UDP 9"}, []string{out + redis}},
		{"every namespace", `ingress: [{from: [{namespaceSelector: {}}]}]`, []string{job + redis, odd + redis}, []string{out + redis, agent + redis}},
		{"both selectors", `ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}, podSelector: {matchLabels: {role: frontend}}}]}]`,
			[]string{job + redis}, []string{web + redis}},
		{"name label without object", `ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: bare}}}]}]`,
			[]string{odd + redis}, []string{web + redis, job + redis}},
		{"NotIn matches without the key", `ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: project, operator: NotIn, values: [myproject]}]}}]}]`,
			[]string{web + redis, odd + redis}, []string{job + redis}},
		{"ipBlock with except", `ingress: [{from: [{ipBlock: {cidr: 10.0.0.9/29, except: [10.0.0.2/32]}}, {ipBlock: {cidr: 10.0.0.0/29, except: [10.0.0.2/32]}}]}]`,
			[]string{job + redis}, []string{web + redis, out + redis}},
		{"malformed except", `ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [010.0.0.2/32]}}]}]`, nil, []string{web + redis, job + redis}},
		{"malformed podSelector", "podSelector: {matchExpressions: [{key: role, operator: Is}]}\ningress: [{}]", nil, []string{web + redis, job + " > 10.0.0.2 TCP 1"}},
		{"range", `ingress: [{ports: [{port: 6378, endPort: 6379}, {port: 9, endPort: 8}, {port: redis, endPort: 7000}]}]`,
			[]string{web + redis, web + " > 10.0.0.1 TCP 6378"}, []string{web + " > 10.0.0.1 TCP 6380", web + " > 10.0.0.1 TCP 9"}},
		{"named ports", `ingress: [{ports: [{port: redis}, {port: dns}, {port: setup}, {port: mesh}]}]`,
			[]string{web + redis, web + " > 10.0.0.1 TCP 15000"}, []string{web + " > 10.0.0.1 UDP 53", web + " > 10.0.0.1 TCP 53", web + " > 10.0.0.1 TCP 1"}},
		{"named port of the destination", "podSelector: {}\npolicyTypes: [Egress]\negress: [{ports: [{port: redis}]}]",
			[]string{web + redis}, []string{web + " > " + out + " TCP 6379", "10.0.0.1 > 10.0.0.2 TCP 6379"}},
		{"own node, own address", ``, []string{"10.9.0.1" + redis, "10.9.0.2" + redis, "10.0.0.1" + redis}, []string{"10.9.0.3" + redis}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			spec := test.spec
			if !strings.HasPrefix(spec, "podSelector") {
				spec = "podSelector: {matchLabels: {role: db}}\n" + spec
			}
			policy := "kind: NetworkPolicy\nmetadata: {namespace: default, name: p}\nspec:\n  " + strings.ReplaceAll(spec, "\n", "\n  ")
			c := readCluster(t, smallCluster+policy)
			for want, flows := range map[filter.Action][]string{filter.Allow: test.allow, filter.Deny: test.deny} {
				for _, f := range flows {
					if got := c.judge(readFlow(t, f)); got.Action != want {
						t.Errorf("%s: %s, want %s\n%s", f, got, want, policy)
					}
				}
			}
		})
	}
}
