package matrix

import (
	"fmt"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
)

// portSpan is a range of ports of one protocol.
type portSpan struct {
	proto     filter.Protocol
	low, high uint16 // both 0 for a protocol without ports
}

// spanKey holds the names of the policies that decide: for egress at the source, and for ingress
// at the destination.
type spanKey struct{ egress, ingress string }

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

// spansBetween splits the ports of each protocol into spans, at each bound of a numeric port
// range. It uses the ranges of the policies of all tiers that decide: for egress at the source
// (from), and for ingress at the destination (to). All ports of a span get the same verdict,
// except numbers to which named ports of the destination refer.
func (m *Matrix) spansBetween(from, to *Pod) []portSpan {
	key := spanKey{from.decidingText[filter.Egress], to.decidingText[filter.Ingress]}
	if spans, ok := m.spans[key]; ok {
		return spans
	}
	var named []portSpan
	for _, name := range from.deciding[filter.Egress] {
		named = append(named, m.policies[name][filter.Egress]...)
	}
	for _, name := range to.deciding[filter.Ingress] {
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

// undeclared returns a port of the span that is not among ports.
func (s portSpan) undeclared(ports []Port) (uint16, bool) {
	for n := int(s.low); n <= int(s.high); n++ {
		if !slices.ContainsFunc(ports, func(p Port) bool { return int(p.Number) == n && p.proto == s.proto }) {
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
