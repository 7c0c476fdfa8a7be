package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/explain"
)

// matrixPod is a pod of the matrix: a row and a column.
type matrixPod struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Ports     []matrixPort `json:"ports,omitempty"`
	Egress    []string     `json:"egressPolicies,omitempty"`  // policies that isolate it
	Ingress   []string     `json:"ingressPolicies,omitempty"` // policies that isolate it

	endpoint *policy.Endpoint
}

func (p *matrixPod) String() string { return p.Namespace + "/" + p.Name }

// addPods adds the pods that have an address of their own.
func (m *matrix) addPods(e env, pods []*policy.Pod, namespaces []string, asked []matrixPort) error {
	without := 0
	for _, o := range pods {
		if len(namespaces) > 0 && !slices.Contains(namespaces, o.Namespace) {
			continue
		}
		p := &matrixPod{Namespace: o.Namespace, Name: o.Name, Ports: asked}
		for _, addr := range o.Addrs {
			// The snapshot knows the owner of an address. Pods of the host network, and those
			// that have ended, own none.
			if who := m.snapshot.Endpoint(addr); who.String() == p.String() && !slices.Contains(p.Addresses, addr) {
				p.Addresses, p.endpoint = append(p.Addresses, addr), who
			}
		}
		if p.endpoint == nil {
			without++
			continue
		}
		if len(asked) == 0 {
			p.Ports = declaredPorts(o)
		}
		if i := p.endpoint.Isolation(filter.Egress); i != nil {
			p.Egress = i.Policies
		}
		if i := p.endpoint.Isolation(filter.Ingress); i != nil {
			p.Ingress = i.Policies
		}
		m.Pods = append(m.Pods, p)
	}
	if without > 0 {
		fmt.Fprintf(e.stderr, "sluice: left out: %s without its own address (status.podIPs)\n", count(without, "pod", "pods"))
	}
	switch {
	case len(m.Pods) == 0:
		return fmt.Errorf("there is no pod with an address in these manifests: add Pods with status.podIPs, as printed by kubectl get pods -A -o yaml")
	case len(m.Pods) > maxMatrixPods:
		return fmt.Errorf("%d pods are too many for a matrix: select some with --namespace", len(m.Pods))
	}
	slices.SortFunc(m.Pods, func(a, b *matrixPod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return nil
}

// declaredPorts lists the ports that a pod declares, sorted by number.
func declaredPorts(o *policy.Pod) []matrixPort {
	var ports []matrixPort
	for _, p := range o.Ports {
		same := func(o matrixPort) bool { return o.Port == p.Number && o.proto == p.Protocol }
		if !slices.ContainsFunc(ports, same) {
			ports = append(ports, matrixPort{p.Number, p.Protocol.String(), p.Name, p.Protocol})
		}
	}
	slices.SortFunc(ports, func(a, b matrixPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.proto, b.proto))
	})
	return ports
}

// fill computes every cell.
func (m *matrix) fill(askedOnly bool) {
	m.Flows = make([]*matrixCell, 0, len(m.Pods)*len(m.Pods))
	for _, from := range m.Pods {
		for _, to := range m.Pods {
			c := &matrixCell{From: from.String(), To: to.String(), Ports: []matrixPortCell{}}
			for _, p := range to.Ports {
				c.Ports = append(c.Ports, matrixPortCell{p, m.ask(from, to, p.proto, p.Port)})
			}
			if !askedOnly {
				c.Other = m.others(from, to)
			}
			m.Flows = append(m.Flows, c)
		}
	}
}

// ask decides about one port for each address family that both ends have.
func (m *matrix) ask(from, to *matrixPod, proto filter.Protocol, port uint16) matrixAnswer {
	var answers []matrixAnswer
	var families []string
	for _, src := range from.Addresses {
		at := slices.IndexFunc(to.Addresses, func(dst netip.Addr) bool { return dst.Is4() == src.Is4() })
		family := "IPv6"
		if src.Is4() {
			family = "IPv4"
		}
		if at < 0 || slices.Contains(families, family) {
			continue
		}
		v := m.snapshot.Decide(filter.NewKey(src, to.Addresses[at], proto, port))
		answers = append(answers, matrixAnswer{v.Action.String(), v.Reason.String(), explain.Why(v)})
		families = append(families, family)
	}
	switch {
	case len(answers) == 0:
		return matrixAnswer{denied, "no-common-family", "one end has only IPv4 addresses, the other only IPv6"}
	case len(answers) == 1 || answers[0].Verdict == answers[1].Verdict:
		return answers[0]
	}
	return matrixAnswer{mixed, answers[0].Reason, fmt.Sprintf("%s: %s (%s); %s: %s (%s)",
		families[0], answers[0].Verdict, answers[0].Why, families[1], answers[1].Verdict, answers[1].Why)}
}

// portSpan is a range of ports with the same verdict under every policy.
type portSpan struct {
	proto     filter.Protocol
	low, high uint16 // both 0 for a protocol without ports
}

type spanKey struct{ egress, ingress *filter.Isolation }

// policyPorts lists the port ranges of each policy, by direction.
func policyPorts(policies []*policy.Policy) map[string][2][]portSpan {
	all := make(map[string][2][]portSpan, len(policies))
	for _, o := range policies {
		var spans [2][]portSpan
		for d := range o.Rules {
			for _, r := range o.Rules[d] {
				for _, p := range r.Ports {
					if !p.Malformed && p.Name == "" && !p.All() {
						spans[d] = append(spans[d], portSpan{p.Protocol, p.Low, p.High})
					}
				}
			}
		}
		all[o.Ref.String()] = spans
	}
	return all
}

// spansBetween splits the ports where a range of a policy of either end begins or ends, so
// that the verdict about one port is that of its span.
func (m *matrix) spansBetween(from, to *matrixPod) []portSpan {
	key := spanKey{from.endpoint.Isolation(filter.Egress), to.endpoint.Isolation(filter.Ingress)}
	if spans, ok := m.spans[key]; ok {
		return spans
	}
	var named []portSpan
	for _, name := range from.Egress {
		named = append(named, m.policies[name][filter.Egress]...)
	}
	for _, name := range to.Ingress {
		named = append(named, m.policies[name][filter.Ingress]...)
	}
	var spans []portSpan
	for _, proto := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
		starts := []int{1}
		for _, s := range named {
			if s.proto == proto {
				starts = append(starts, int(s.low), int(s.high)+1)
			}
		}
		slices.Sort(starts)
		starts = append(slices.Compact(starts), 65536)
		for i := range len(starts) - 1 {
			if starts[i] < 65536 && starts[i] < starts[i+1] {
				spans = append(spans, portSpan{proto, uint16(starts[i]), uint16(starts[i+1] - 1)})
			}
		}
	}
	spans = append(spans, portSpan{proto: filter.ICMP})
	m.spans[key] = spans
	return spans
}

// others decides about all ports that the destination does not declare.
func (m *matrix) others(from, to *matrixPod) *matrixOther {
	spans := make(map[string][]portSpan) // by verdict
	reason := make(map[string]matrixAnswer)
	for _, s := range m.spansBetween(from, to) {
		port, ok := s.undeclared(to.Ports)
		if !ok {
			continue // every port of the span has an answer of its own
		}
		a := m.ask(from, to, s.proto, port)
		if len(spans[a.Verdict]) == 0 {
			reason[a.Verdict] = a
		}
		spans[a.Verdict] = joined(spans[a.Verdict], s)
	}
	if len(reason) == 1 {
		for _, a := range reason {
			return &matrixOther{matrixAnswer: a}
		}
	}
	out := &matrixOther{Allowed: texts(spans[allowed]), OneFamily: texts(spans[mixed])}
	out.Verdict = mixed
	var parts []string
	for _, v := range []string{allowed, mixed} {
		if len(spans[v]) > 0 {
			parts = append(parts, strings.Join(texts(spans[v]), ", ")+": "+reason[v].Why)
			out.Reason = cmp.Or(out.Reason, reason[v].Reason)
		}
	}
	out.Why = strings.Join(append(parts, "else: "+reason[denied].Why), "; ")
	return out
}

func texts(spans []portSpan) []string {
	var all []string
	for _, s := range spans {
		all = append(all, s.String())
	}
	return all
}

// undeclared returns a port of the span that is not among ports.
func (s portSpan) undeclared(ports []matrixPort) (uint16, bool) {
	for n := int(s.low); n <= int(s.high); n++ {
		if !slices.ContainsFunc(ports, func(p matrixPort) bool { return int(p.Port) == n && p.proto == s.proto }) {
			return uint16(n), true
		}
	}
	return 0, false
}

// joined appends a span, or extends the last one if they touch.
func joined(spans []portSpan, s portSpan) []portSpan {
	if n := len(spans); n > 0 && spans[n-1].proto == s.proto && int(spans[n-1].high)+1 == int(s.low) {
		spans[n-1].high = s.high
		return spans
	}
	return append(spans, s)
}

func (s portSpan) String() string {
	switch {
	case s.low <= 1 && (s.high == 65535 || s.high == 0):
		return s.proto.String()
	case s.low == s.high:
		return fmt.Sprintf("%s %d", s.proto, s.low)
	}
	return fmt.Sprintf("%s %d-%d", s.proto, s.low, s.high)
}
