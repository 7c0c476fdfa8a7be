package matrix

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/filter/policy/reach"
	"sluice/filter/policy/seen"
)

// seenColumns are the columns of CSV about flows.
var seenColumns = []string{"seen", "allowed", "denied", "first", "last", "seen ports", "changed"}

// seenFields returns the columns of CSV about the flows of an answer.
func (c *Cell) seenFields(a *Answer, own bool) []string {
	fields := make([]string, len(seenColumns))
	if c.Seen == nil {
		return fields
	}
	var sum seen.Count
	var ports []string
	differs := ""
	for i := range c.Seen.Ports {
		p := &c.Seen.Ports[i]
		if p.OwnNode != own || !c.answers(a, p) {
			continue
		}
		sum.Add(seen.Count{Allowed: p.Allowed, Denied: p.Denied, First: p.First, Last: p.Last})
		ports = append(ports, fmt.Sprintf("%s: %d", p.Port, p.Allowed+p.Denied))
		if p.Changed {
			differs = "yes"
		}
	}
	if len(ports) == 0 {
		if a.Verdict != denied && !own {
			fields[0] = "never used"
		}
		return fields
	}
	count := func(n uint64) string { return strconv.FormatUint(n, 10) }
	return []string{seenWord(a.Verdict, sum), count(sum.Allowed), count(sum.Denied), stampOf(sum.First), stampOf(sum.Last), strings.Join(ports, ", "), differs}
}

func seenWord(verdict string, c seen.Count) string {
	switch {
	case verdict == denied:
		return "tried"
	case c.Allowed > 0:
		return "used"
	}
	return "denied then"
}

func stampOf(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// answers reports whether an answer of the cell is about a port. Flows between a pod and its own node have
// the same verdict at all ports, so for these only the verdicts are compared.
func (c *Cell) answers(a *Answer, p *SeenPort) bool {
	if p.OwnNode {
		return a.Verdict == p.Verdict
	}
	return slices.ContainsFunc(c.spans, func(s span) bool {
		return s.ports().Contains(p.proto, p.number) && s.verdict == a.Verdict && s.why == a.Why
	})
}

// seenMarkdown writes what the lines below a matrix have.
func (m *Matrix) seenMarkdown(b *strings.Builder) {
	for _, line := range m.seenLines() {
		if item, is := strings.CutPrefix(line, "  "); is {
			fmt.Fprintf(b, "- %s\n", reach.Markdown(item))
			continue
		}
		fmt.Fprintf(b, "\n%s\n", reach.Markdown(line))
		if strings.HasSuffix(line, ":") {
			b.WriteString("\n")
		}
	}
}

// seenStyle returns the attributes of an edge about flows: pairs that were never used are dashed.
func (c *Cell) seenStyle() string {
	if c.Seen == nil || c.Seen.used() {
		return ""
	}
	return ", style=dashed"
}

// triedLabel returns the closed ports that were tried, as in "tried: TCP 22, UDP 53".
func (c *Cell) triedLabel() string {
	var ports []string
	for i := range c.Seen.Ports {
		if p := &c.Seen.Ports[i]; !p.open() {
			ports = append(ports, p.Port)
		}
	}
	if more := len(ports) - maxSeenPorts; more > 0 {
		ports = append(ports[:maxSeenPorts], fmt.Sprintf("%d more", more))
	}
	return "tried: " + strings.Join(ports, ", ")
}
