package explain

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/near"
)

// Question describes a flow in the user's terms.
type Question struct {
	From, To string // "namespace/name" of a pod, "name" in namespace default, or an IP address
	Port     string // number, or the name of a port of the destination; empty for ICMP
	Protocol string // TCP, UDP, SCTP or ICMP, in upper or lower case; empty means TCP
}

// Flow is a flow that can be decided.
type Flow struct {
	From, To *End
	Key      filter.Key
	// Via is the Service whose address the question named as the destination; nil if the
	// destination is not the address of a Service.
	Via *Via
}

// End is one end of a flow.
type End struct {
	// Name is the end as the question names it: "namespace/name", or the address.
	Name string
	// Addrs are the addresses, at most one of each family, IPv4 first.
	Addrs []netip.Addr
	// Pod is the pod with these addresses; nil for addresses of a node or outside the
	// cluster.
	Pod *policy.Pod
	// Node is set for a node, and for a pod of the host network: such a pod has the addresses
	// of its node, and policies treat it as the node.
	Node bool
	// NodeName is the name of the Node object whose status has the address. If there is none, but
	// the status of a pod has the address as its host's, NodeName is "of " and the pod's name.
	// Otherwise it is empty.
	NodeName string

	service *service // the Service that has the address; nil for other addresses
}

// byAddress reports whether the question named the end by its address.
func (e *End) byAddress() bool { return len(e.Addrs) == 1 && e.Name == e.Addrs[0].String() }

// Flows returns the flows that a question is about. Usually there is one flow for each
// address family that both ends have, IPv4 first. If the destination is the address of a
// Service, there is one flow to each endpoint behind the Service. Errors contain a hint.
func (c *Cluster) Flows(q Question) ([]Flow, error) {
	from, err := c.endpoint(q.From)
	if err != nil {
		return nil, fmt.Errorf("from: %w", err)
	}
	to, err := c.endpoint(q.To)
	if err != nil {
		return nil, fmt.Errorf("to: %w", err)
	}
	proto, ok := filter.TCP, true
	if q.Protocol != "" {
		proto, ok = filter.ParseProtocol(q.Protocol)
	}
	if !ok || !proto.HasPorts() && proto != filter.ICMP {
		return nil, fmt.Errorf("protocol: %q is not supported: write TCP, UDP, SCTP or ICMP (which means ICMPv6 between IPv6 addresses)", q.Protocol)
	}
	switch {
	case from.service != nil:
		return nil, fmt.Errorf("from: %s is the address of Service %s, and no packet comes from there: write a pod behind it", from.Name, from.service.text())
	case to.service != nil:
		return c.serviceFlows(from, to, q, proto)
	}
	from, to = from.asNodeOf(to), to.asNodeOf(from)
	port, err := c.port(q.Port, proto, to)
	if err != nil {
		return nil, fmt.Errorf("port: %w", err)
	}
	flows := make([]Flow, 0, 2)
	for _, src := range from.Addrs {
		for _, dst := range to.Addrs {
			if src.Is4() != dst.Is4() {
				continue
			}
			p := proto
			if p == filter.ICMP && src.Is6() {
				p = filter.ICMPv6
			}
			flows = append(flows, Flow{From: from, To: to, Key: filter.NewKey(src, dst, p, port)})
		}
	}
	if len(flows) == 0 {
		return nil, fmt.Errorf("no packet can pass: %s has only %s, %s only %s", from.Name, families(from), to.Name, families(to))
	}
	return flows, nil
}

func families(e *End) string {
	if e.Addrs[0].Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// endpoint returns the end that text names.
func (c *Cluster) endpoint(text string) (*End, error) {
	if text == "" {
		return nil, fmt.Errorf("it is missing: write namespace/name of a pod, or an IP address")
	}
	name := text
	switch strings.Count(text, "/") {
	case 0:
		if addr, err := netip.ParseAddr(text); err == nil {
			return c.address(addr.Unmap().WithZone("")), nil
		}
		name = metav1.NamespaceDefault + "/" + text
	case 1:
	default:
		return nil, fmt.Errorf("%q is neither a pod nor an address: write namespace/name of a pod, or an IP address", text)
	}
	if e := c.ends[name]; e != nil {
		return e, nil
	}
	pod := c.pods[name]
	if pod == nil {
		return nil, c.noPod(name)
	}
	e, err := c.podEnd(name, pod)
	if err == nil {
		c.ends[name] = e
	}
	return e, err
}

func (c *Cluster) address(addr netip.Addr) *End {
	e := &End{Name: addr.String(), Addrs: []netip.Addr{addr}}
	switch owner := c.snapshot.Endpoint(addr); {
	case owner.IsNode():
		e.Node = true
	case owner != nil:
		e.Pod = c.pods[owner.String()]
		return e
	default:
		e.service = c.services[addr]
	}
	if n := c.snapshot.NodeAt(addr); n != nil && e.service == nil {
		e.Node, e.NodeName = true, n.Name
	}
	return e
}

// asNodeOf returns e as a node if the status of the pod has the address of e as an address of
// the pod's host. Otherwise it returns e unchanged.
func (e *End) asNodeOf(pod *End) *End {
	if e.Pod != nil || e.Node || pod.Pod == nil || !slices.Contains(pod.Pod.Hosts, e.Addrs[0]) {
		return e
	}
	node := *e
	node.Node, node.NodeName = true, "of "+pod.Name
	return &node
}

// podEnd returns a pod with its addresses. It returns an error if one of them has another owner
// in the snapshot.
func (c *Cluster) podEnd(name string, pod *policy.Pod) (*End, error) {
	e := &End{Name: name, Pod: pod}
	if pod.HostNetwork {
		e.Pod, e.Node = nil, true
	}
	if pod.Ended != "" {
		return nil, fmt.Errorf("pod %s has ended (%s) and has no address: ask for a running pod", name, pod.Ended)
	}
	for _, addr := range addressesOf(pod) {
		owner := c.snapshot.Endpoint(addr)
		if !e.Node && owner.String() != name {
			return nil, fmt.Errorf("the address %s of pod %s belongs to %s: ask for that one, or correct status.podIPs", addr, name, cmp.Or(owner.String(), "no pod"))
		}
		if !slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return a.Is4() == addr.Is4() }) {
			e.Addrs = append(e.Addrs, addr)
		}
	}
	if len(e.Addrs) == 0 {
		return nil, fmt.Errorf("pod %s has no address: add status.podIPs, as from kubectl get pods -A -o yaml", name)
	}
	slices.SortFunc(e.Addrs, netip.Addr.Compare)
	return e, nil
}

func addressesOf(pod *policy.Pod) []netip.Addr {
	if pod.HostNetwork {
		return slices.Concat(pod.Addrs, pod.Hosts)
	}
	return pod.Addrs
}

// noPod returns an error that suggests pods with the same or a similar name.
func (c *Cluster) noPod(name string) error {
	_, wanted, _ := strings.Cut(name, "/")
	all := make([]string, 0, len(c.pods))
	var same []string
	for n := range c.pods {
		all = append(all, n)
		if _, o, _ := strings.Cut(n, "/"); o == wanted {
			same = append(same, n)
		}
	}
	slices.Sort(all)
	slices.Sort(same)
	if best, ok := near.Name(name, all); ok && len(same) == 0 {
		same = []string{best}
	}
	switch {
	case len(same) > 0:
		return fmt.Errorf("there is no pod %s: did you mean %s?", name, some(same, 5, " or "))
	case len(all) == 0:
		return fmt.Errorf("there is no pod %s, nor any other: add Pods with status.podIPs to the manifests, or write an IP address", name)
	}
	return fmt.Errorf("there is no pod %s: write one of %s, or an IP address", name, some(all, 8, ", "))
}

// some joins texts. If there are more than n texts, it joins the first n and appends the number
// of the others.
func some(texts []string, n int, sep string) string {
	if len(texts) <= n {
		return strings.Join(texts, sep)
	}
	return fmt.Sprintf("%s and %d more", strings.Join(texts[:n], sep), len(texts)-n)
}

// port parses a number, or looks up the name of a port of the destination.
func (c *Cluster) port(text string, proto filter.Protocol, to *End) (uint16, error) {
	if !proto.HasPorts() {
		if text != "" && text != "0" {
			return 0, fmt.Errorf("%s has no ports: leave it out", proto)
		}
		return 0, nil
	}
	if text == "" {
		return 0, fmt.Errorf("it is missing: write a number from 1 to 65535, or the name of a port of the destination")
	}
	n, err := strconv.Atoi(text)
	switch {
	case err == nil && n >= 1 && n <= 65535:
		return uint16(n), nil
	case err == nil || !nameLike(text):
		return 0, fmt.Errorf("%q is not a port: write a number from 1 to 65535, or the name of a port of the destination", text)
	case to.Node:
		return 0, fmt.Errorf("%s has a node's address, for which port names have no meaning: write the number of %q", to.Name, text)
	case to.Pod == nil:
		return 0, fmt.Errorf("%s is outside the cluster and has no port names: write the number of %q", to.Name, text)
	}
	ports := c.snapshot.Endpoint(to.Addrs[0]).NamedPorts()
	var have []string
	for _, p := range ports {
		if p.Name == text && p.Protocol == proto {
			return p.Number, nil
		}
		have = append(have, fmt.Sprintf("%s (%s %d)", p.Name, p.Protocol, p.Number))
	}
	if len(have) == 0 {
		return 0, fmt.Errorf("%s has no port named %q, and no other named port: write the number", to.Name, text)
	}
	return 0, fmt.Errorf("%s has no %s port named %q: write one of its names, %s, or a number", to.Name, proto, text, some(have, 8, ", "))
}

// nameLike reports whether text may be the name of a port: it has a letter, and only
// letters, digits and dashes.
func nameLike(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r >= 'a' && r <= 'z' }) &&
		!strings.ContainsFunc(text, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
		})
}
