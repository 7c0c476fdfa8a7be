package matrix

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/explain"
)

// fill computes every cell.
func (m *Matrix) fill(askedOnly bool) {
	m.Flows = make([]*Cell, 0, len(m.Pods)*len(m.Pods))
	for _, from := range m.Pods {
		for _, to := range m.Pods {
			c := &Cell{From: from.String(), To: to.String(), Ports: []PortCell{}}
			for _, p := range to.Ports {
				c.Ports = append(c.Ports, PortCell{p, m.ask(from, to, p.proto, p.Number)})
			}
			if !askedOnly {
				c.Other = m.others(from, to)
			}
			m.Flows = append(m.Flows, c)
		}
	}
}

// ask decides about one port for each address family that both ends have.
func (m *Matrix) ask(from, to *Pod, proto filter.Protocol, port uint16) Answer {
	var answers []Answer
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
		answers = append(answers, Answer{v.Action.String(), v.Reason.String(), explain.Why(v)})
		families = append(families, family)
	}
	switch {
	case len(answers) == 0:
		return Answer{denied, "no-common-family", "one end has only IPv4 addresses, the other only IPv6"}
	case len(answers) == 1 || answers[0].Verdict == answers[1].Verdict:
		return answers[0]
	}
	return Answer{mixed, answers[0].Reason, fmt.Sprintf("%s: %s (%s); %s: %s (%s)",
		families[0], answers[0].Verdict, answers[0].Why, families[1], answers[1].Verdict, answers[1].Why)}
}

// others decides about all ports that the destination does not declare.
func (m *Matrix) others(from, to *Pod) *Other {
	spans := make(map[string][]portSpan) // the spans with each verdict
	reason := make(map[string]Answer)
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
			return &Other{Answer: a}
		}
	}
	out := &Other{Allowed: texts(spans[allowed]), OneFamily: texts(spans[mixed])}
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
