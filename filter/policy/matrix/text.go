package matrix

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// textWidth bounds the width of a table. In a wider table, columns are headed by numbers.
const textWidth = 140

// WriteText writes the table: one row per source pod, one column per destination pod.
func (m *Matrix) WriteText(out io.Writer) error {
	rows := make([][]string, len(m.Pods)+1)
	rows[0] = []string{"FROM \\ TO"}
	for _, p := range m.Pods {
		rows[0] = append(rows[0], p.String())
	}
	for i, p := range m.Pods {
		rows[i+1] = []string{p.String()}
		for j := range m.Pods {
			rows[i+1] = append(rows[i+1], m.Flows[i*len(m.Pods)+j].text())
		}
	}
	if width(rows) > textWidth {
		for i := range m.Pods {
			rows[0][i+1] = fmt.Sprint(i + 1)
			rows[i+1][0] = fmt.Sprintf("%d %s", i+1, rows[i+1][0])
		}
	}
	var b strings.Builder
	widths := columnWidths(rows)
	for _, row := range rows {
		var line strings.Builder
		for j, cell := range row {
			line.WriteString(cell + strings.Repeat(" ", widths[j]-utf8.RuneCountInString(cell)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	b.WriteString("\nA cell lists the open ports, TCP unless it names a protocol. all: every port; -: none; *: only for IPv4 or only for IPv6.\n")
	_, err := io.WriteString(out, b.String())
	return err
}

func columnWidths(rows [][]string) []int {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for j, cell := range row {
			widths[j] = max(widths[j], utf8.RuneCountInString(cell))
		}
	}
	return widths
}

func width(rows [][]string) int {
	sum := 0
	for _, w := range columnWidths(rows) {
		sum += w + 2
	}
	return sum
}

// text lists the open ports, or the closed ones if most are open.
func (c *Cell) text() string {
	var open, shut []string
	for _, p := range c.Ports {
		switch p.Verdict {
		case allowed:
			open = append(open, p.Port.String())
		case mixed:
			open = append(open, p.Port.String()+"*")
			shut = append(shut, p.Port.String()+"*")
		default:
			shut = append(shut, p.Port.String())
		}
	}
	switch {
	case c.From == c.To:
		return "self"
	case c.Other.oneFamily() && len(open) == len(shut) && len(shut) == len(c.Ports):
		return "all*"
	case c.Other != nil && c.Other.Verdict == allowed && len(shut) > 0:
		return "all but " + strings.Join(shut, ",")
	case c.Other != nil && c.Other.Verdict == mixed:
		open = append(open, c.Other.text()...)
	}
	switch {
	case c.Other != nil && c.Other.Verdict == allowed:
		return "all"
	case len(open) == 0:
		return "-"
	}
	return strings.Join(open, ",")
}

// oneFamily reports whether every port without a PortCell is open for one address family and
// closed for the other.
func (o *Other) oneFamily() bool {
	return o != nil && o.Verdict == mixed && len(o.Allowed)+len(o.OneFamily) == 0
}

// text lists the ports without a PortCell that are open: "8000-8100", "1-100/UDP", "SCTP". A
// star marks ports that are open for only one address family. If that holds for all ports
// without a PortCell, the list is "other*".
func (o *Other) text() []string {
	if o.oneFamily() {
		return []string{"other*"}
	}
	var all []string
	add := func(spans []string, mark string) {
		for _, s := range spans {
			switch proto, ports, some := strings.Cut(s, " "); {
			case !some:
				all = append(all, proto+mark)
			case proto == "TCP":
				all = append(all, ports+mark)
			default:
				all = append(all, ports+"/"+proto+mark)
			}
		}
	}
	add(o.Allowed, "")
	add(o.OneFamily, "*")
	return all
}
