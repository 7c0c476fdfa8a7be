package matrix

import (
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"sluice/filter/policy/seen"
)

// maxCallouts bounds the ports that are listed below a matrix. maxSeenPorts bounds the ports in the line
// of a pair. JSON and CSV have all ports.
const (
	maxCallouts  = 10
	maxSeenPorts = 6
)

// neverUsedMeans is the warning that all forms of output have.
const neverUsedMeans = `"Never used" means only: not in these flows.`

// seenLines describes the flows. It names the closed ports that were tried, and the ports with another
// verdict.
func (m *Matrix) seenLines() []string {
	o := m.Seen
	if o == nil {
		return nil
	}
	lines := []string{o.usesText(), o.sourceText() + ". " + neverUsedMeans}
	lines = append(lines, o.missingText()...)
	lines = append(lines, o.calloutLines("Closed, and tried:", o.tried)...)
	lines = append(lines, o.calloutLines("Last flow with another verdict than these policies have (it may be from another version of them):", o.changed)...)
	if text := o.leftOutText(); text != "" {
		lines = append(lines, "Not counted: "+text+".")
	}
	return lines
}

// usesText returns the sums, as in "Pairs seen: 3 open and used, 1 open and never used, 2 closed and tried."
func (o *Overview) usesText() string {
	text := fmt.Sprintf("Pairs seen: %d open and used, %d open and never used, %d closed and tried", o.Pairs.Used, o.Pairs.NeverUsed, o.Pairs.Tried)
	if o.Pairs.Changed > 0 {
		text += fmt.Sprintf("; in %d, the last flow got another verdict", o.Pairs.Changed)
	}
	return text + "."
}

// sourceText returns where the flows are from, as in "Flows: 12,304 in 3 files, 2026-11-26 10:00:00 to
// 11:00:00 UTC".
func (o *Overview) sourceText() string {
	text := "Flows: " + grouped(o.Flows) + " in " + strconv.Itoa(o.Files) + " file"
	if o.Files != 1 {
		text += "s"
	}
	if o.First.IsZero() {
		return text
	}
	last := o.Last.UTC().Format(time.DateTime)
	if o.sameDay() {
		last = o.Last.UTC().Format(time.TimeOnly)
	}
	return text + ", " + o.First.UTC().Format(time.DateTime) + " to " + last + " UTC"
}

// missingText describes which flows are missing, as the files themselves report.
func (o *Overview) missingText() (lines []string) {
	if o.Missing > 0 {
		lines = append(lines, "Missing in the files, as they say: "+grouped(o.Missing)+" flows. What is never used may be among them.")
	}
	if o.Gaps.Periods > 0 {
		longest := (time.Duration(o.Gaps.Longest) * time.Second).String()
		lines = append(lines, fmt.Sprintf("Periods in which a node recorded no flows, or only denials, as the files say: %d, the longest of %s.", o.Gaps.Periods, longest))
	}
	return lines
}

func (o *Overview) sameDay() bool {
	return o.First.UTC().Format(time.DateOnly) == o.Last.UTC().Format(time.DateOnly)
}

// timeText returns a time, with the date if the flows are of several days.
func (o *Overview) timeText(t time.Time) string {
	if o.sameDay() {
		return t.UTC().Format(time.TimeOnly)
	}
	return t.UTC().Format(time.DateTime)
}

// grouped returns a number as in "12,304".
func grouped(n uint64) string {
	text := strconv.FormatUint(n, 10)
	for i := len(text) - 3; i > 0; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

func (o *Overview) calloutLines(title string, list []callout) (lines []string) {
	if len(list) == 0 {
		return nil
	}
	lines = append(lines, title)
	for i, c := range list {
		if i == maxCallouts {
			lines = append(lines, fmt.Sprintf("  and %d more: JSON and CSV have all", len(list)-i))
			break
		}
		lines = append(lines, "  "+o.calloutText(c))
	}
	return lines
}

func (o *Overview) calloutText(c callout) string {
	verdict := "closed"
	if c.open() {
		verdict = "open"
	}
	return fmt.Sprintf("%s → %s %s: %s; %s now (%s)", c.from.Name, c.to.Name, c.Port, o.countText(&c.SeenPort), verdict, c.why)
}

// countText returns what was seen at a port, as in "allowed 3 times, denied 1 time, last 10:05:01".
func (o *Overview) countText(p *SeenPort) string {
	var parts []string
	for _, c := range []struct {
		word string
		n    uint64
	}{{"allowed", p.Allowed}, {"denied", p.Denied}} {
		if c.n > 0 {
			parts = append(parts, c.word+" "+grouped(c.n)+" time"+map[bool]string{false: "s"}[c.n == 1])
		}
	}
	if !p.Last.IsZero() {
		parts = append(parts, "last "+o.timeText(p.Last))
	}
	return strings.Join(parts, ", ")
}

// leftOutText returns what was not counted, with examples.
func (o *Overview) leftOutText() string {
	var parts []string
	for _, l := range o.LeftOut {
		parts = append(parts, leftText(l))
	}
	return strings.Join(parts, "; ")
}

// leftText returns one reason, as in "flows to addresses of Services: 17 (shop/db 12, shop/web 5)".
func leftText(l seen.LeftOut) string {
	text := string(l.Why) + ": " + grouped(l.Flows)
	var examples []string
	for _, e := range l.Examples {
		examples = append(examples, e.What+" "+grouped(e.Flows))
	}
	if l.More > 0 {
		examples = append(examples, fmt.Sprintf("and %d more", l.More))
	}
	if len(examples) > 0 {
		text += " (" + strings.Join(examples, ", ") + ")"
	}
	return text
}

// writeSeenList writes one line for each pair, with what was seen.
func (m *Matrix) writeSeenList(b *strings.Builder) {
	const padding = 2
	w := tabwriter.NewWriter(b, 0, 0, padding, ' ', 0)
	fmt.Fprintln(w, "FROM → TO\tOPEN\tSEEN")
	for _, c := range m.Flows {
		fmt.Fprintf(w, "%s → %s\t%s\t%s\n", c.From, c.To, c.text(), m.Seen.cellText(c))
	}
	_ = w.Flush() // a strings.Builder returns no error
	b.WriteString("\n")
}

// cellText returns what was seen of a pair.
func (o *Overview) cellText(c *Cell) string {
	if c.Seen == nil {
		return ""
	}
	var parts []string
	for i := range c.Seen.Ports {
		if i == maxSeenPorts {
			parts = append(parts, fmt.Sprintf("%d more ports", len(c.Seen.Ports)-i))
			break
		}
		parts = append(parts, o.portText(&c.Seen.Ports[i]))
	}
	switch list := c.Seen.NeverUsed; {
	case len(list) > 0 && !c.Seen.used():
		parts = append(parts, "never used")
	case len(list) > 0:
		parts = append(parts, "never used: "+strings.Join(list, ", "))
	}
	return strings.Join(parts, "; ")
}

// portText returns what was seen at a port of a pair.
func (o *Overview) portText(p *SeenPort) string {
	text := p.Port + " "
	switch {
	case p.OwnNode:
		text += "from its own node "
	case !p.open():
		text += "tried, closed: "
	}
	text += o.countText(p)
	if p.Changed {
		text += " (not as these policies say)"
	}
	return text
}
