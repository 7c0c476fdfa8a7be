package reach

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// protocols are the protocols with ports, in the order of the spans.
var protocols = [...]filter.Protocol{filter.TCP, filter.UDP, filter.SCTP}

// cuts are the ports at which spans begin, sorted: one list for each protocol, in the order of
// protocols.
type cuts [len(protocols)][]int

// add adds the first port of a range, and the port after its last one.
func (c *cuts) add(proto filter.Protocol, low, high uint16) {
	if i := slices.Index(protocols[:], proto); i >= 0 {
		c[i] = append(c[i], max(1, int(low)), int(high)+1)
	}
}

func (c *cuts) join(o *cuts) {
	for i := range c {
		c[i] = append(c[i], o[i]...)
	}
}

func (c *cuts) sort() {
	for i := range c {
		slices.Sort(c[i])
		c[i] = slices.Compact(c[i])
	}
}

// cutsOf returns the cuts at the port numbers in each policy, by its name and by direction.
func cutsOf(policies []*policy.Policy) map[string][2]cuts {
	all := make(map[string][2]cuts, len(policies))
	for _, o := range policies {
		var c [2]cuts
		for d := range o.Rules {
			for _, r := range o.Rules[d] {
				for _, p := range r.Ports {
					if !p.Malformed && p.Name == "" && !p.All() {
						c[d].add(p.Protocol, p.Low, p.High)
					}
				}
			}
			c[d].sort()
		}
		all[o.Ref.String()] = c
	}
	return all
}

// classOf returns the class of the parties that have the end e.
func (m *Map) classOf(e *inventory.End) *class {
	key := m.inventory.ClassOf(e)
	if c := m.classes[key]; c != nil {
		return c
	}
	c := &class{}
	for _, d := range []filter.Direction{filter.Egress, filter.Ingress} {
		for t := policy.Admin; t < filter.NumTiers; t++ {
			for _, name := range e.Endpoint.Policies(d, t) {
				of := m.cuts[name][d]
				c.cuts[d].join(&of)
			}
		}
		c.cuts[d].sort()
	}
	for _, p := range e.Endpoint.NamedPorts() {
		c.named.add(p.Protocol, p.Number, p.Number)
	}
	m.classes[key] = c
	return c
}

// spansBetween divides the ports of each protocol into spans, so that all ports of a span have the
// same verdict. It cuts at the port ranges in the policies that decide about the source in egress, at
// those in the policies that decide about the destination in ingress, and at the named ports of the
// destination. The result is valid until the next call.
func (m *Map) spansBetween(from, to *class) []Span {
	spans, starts := m.scratch[:0], m.starts
	for i, proto := range protocols {
		starts = append(starts[:0], 1, 1<<16)
		starts = append(starts, from.cuts[filter.Egress][i]...)
		starts = append(starts, to.cuts[filter.Ingress][i]...)
		starts = append(starts, to.named[i]...)
		slices.Sort(starts)
		starts = slices.Compact(starts)
		for j := 0; starts[j] < 1<<16; j++ {
			spans = append(spans, Span{Protocol: proto, Low: uint16(starts[j]), High: uint16(starts[j+1] - 1)})
		}
	}
	spans = append(spans, Span{Protocol: filter.ICMP})
	m.scratch, m.starts = spans, starts
	return m.scratch
}

// All reports whether the span has all ports of its protocol.
func (s Span) All() bool { return s.Low <= 1 && (s.High == 1<<16-1 || s.High == 0) }

// Contains reports whether a port is in the span. The port of ICMP is 0.
func (s Span) Contains(proto filter.Protocol, port uint16) bool {
	return s.Protocol == proto && s.Low <= port && port <= s.High
}

// String returns the span as in "TCP 80", "UDP 8000-8100", "SCTP" or "ICMP".
func (s Span) String() string {
	switch {
	case s.All():
		return s.Protocol.String()
	case s.Low == s.High:
		return fmt.Sprintf("%s %d", s.Protocol, s.Low)
	}
	return fmt.Sprintf("%s %d-%d", s.Protocol, s.Low, s.High)
}

// At returns the answer for a port. The spans must be those of a [Pair]. At returns nil if the spans
// are nil.
func At(spans []Span, proto filter.Protocol, port uint16) *Answer {
	for _, s := range spans {
		if s.Contains(proto, port) {
			return s.Answer
		}
	}
	return nil
}

// Joined returns the spans with a verdict for which f returns true. It joins spans that touch, even if
// their answers differ, so the results have no Answer.
func Joined(spans []Span, f func(Verdict) bool) (all []Span) {
	for _, s := range spans {
		if !f(s.Verdict) {
			continue
		}
		if n := len(all); n > 0 && all[n-1].Protocol == s.Protocol && all[n-1].High+1 == s.Low {
			all[n-1].High = s.High
			continue
		}
		all = append(all, Span{Protocol: s.Protocol, Low: s.Low, High: s.High})
	}
	return all
}

// OnlyDeclared reports whether at least one port is open, and all open ports are declared by the
// destination. Not all declared ports must be open: containers often declare more than one client
// needs, such as a port for metrics.
func OnlyDeclared(spans []Span, declared []policy.NamedPort) bool {
	open := false
	for _, s := range spans {
		if s.Verdict == Deny {
			continue
		}
		if open = true; s.Verdict != Allow || !covers(declared, s) {
			return false
		}
	}
	return open
}

// covers reports whether ports contains each port of a span.
func covers(ports []policy.NamedPort, s Span) bool {
	found := make(map[uint16]bool)
	for _, p := range ports {
		if s.Contains(p.Protocol, p.Number) {
			found[p.Number] = true
		}
	}
	return len(found) == int(s.High)-int(s.Low)+1
}

// Others returns all ports that are not in the spans, without answers. The spans must be in the order
// of those of a [Pair].
func Others(spans []Span) (rest []Span) {
	for _, whole := range anySpans() {
		next := int(whole.Low) // the first port that may not be in the spans
		for _, s := range spans {
			if s.Protocol != whole.Protocol {
				continue
			}
			if int(s.Low) > next {
				rest = append(rest, Span{Protocol: s.Protocol, Low: uint16(next), High: s.Low - 1})
			}
			next = int(s.High) + 1
		}
		if next <= int(whole.High) {
			rest = append(rest, Span{Protocol: whole.Protocol, Low: uint16(next), High: whole.High})
		}
	}
	return rest
}

// PortsText returns spans as text: "TCP 80,443, UDP 53", "all ports", or "all ports but TCP 80" if
// that names fewer spans. It names at most the given number of spans; 0 means all of them.
func PortsText(spans []Span, most int) string {
	rest := Others(spans)
	switch {
	case len(rest) == 0:
		return "all ports"
	case len(rest) < len(spans):
		return "all ports but " + listPorts(rest, most)
	}
	return listPorts(spans, most)
}

func listPorts(spans []Span, most int) string {
	var texts []string
	for i, s := range spans {
		if i == most && most > 0 {
			texts = append(texts, fmt.Sprintf("%d more", len(spans)-i))
			break
		}
		text := s.String()
		if i > 0 && spans[i-1].Protocol == s.Protocol && !s.All() {
			texts[len(texts)-1] += "," + strings.TrimPrefix(text, s.Protocol.String()+" ")
			continue
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}
