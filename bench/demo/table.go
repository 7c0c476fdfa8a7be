package main

import (
	"fmt"
	"strconv"
	"strings"

	"sluice/bench/testbed/lab"
)

// The widths of the table, in characters.
const (
	firstColumn = 13
	column      = 8
)

// cell is a cell of the table: the attempts from one host to one port.
type cell struct {
	asked, reached map[string]int // number of attempts and of successful ones, by network
	why            []string       // letters of the reasons for failed attempts
	wrong          bool
}

// text returns the cell's text and its color.
func (c *cell) text() (text, colour string) {
	if c == nil {
		return ".", faint
	}
	var through []string
	complete := true
	for _, n := range networks {
		if c.reached[n] == c.asked[n] {
			through = append(through, strings.ToUpper(n))
		} else {
			complete = false
			if c.reached[n] > 0 {
				c.wrong = true // only one address family gets through
			}
		}
	}
	switch {
	case complete:
		text, colour = "yes", green
	case len(through) > 0:
		text, colour = through[0], yellow
	default:
		text, colour = "no", red
	}
	if len(c.why) > 0 {
		text += " " + strings.Join(c.why, "")
	}
	if c.wrong {
		text, colour = text+" !", bold+";"+red
	}
	return text, colour
}

// reasons assigns letters to the reasons for denials, in order of their appearance.
type reasons struct {
	texts []string
}

func (r *reasons) letter(text string) string {
	for i, t := range r.texts {
		if t == text {
			return string(rune('a' + i))
		}
	}
	r.texts = append(r.texts, text)
	return string(rune('a' + len(r.texts) - 1))
}

// table prints which probes succeeded.
func (p *printer) table(c *cluster, j comparison) {
	cells, why := tabulate(j)
	serverPorts := c.serverPorts()
	above, below := strings.Repeat(" ", firstColumn), strings.Repeat(" ", firstColumn)
	var last *host
	for _, d := range serverPorts {
		name := ""
		if d.host != last {
			_, name, _ = strings.Cut("/"+d.host.name, "/")
			name = name[strings.IndexByte(name, '/')+1:]
		}
		last = d.host
		above += fmt.Sprintf("%-*s", column, name)
		below += fmt.Sprintf("%-*d", column, d.port)
	}
	p.printf("%s", p.paint(bold, strings.TrimRight(above, " ")))
	p.printf("%s", p.paint(bold, strings.TrimRight(below, " ")))
	for _, h := range c.hosts {
		row := fmt.Sprintf("%-*s", firstColumn, h.name)
		for _, d := range serverPorts {
			text, colour := cells[cellKey{h, d}].text()
			row += p.paint(colour, text) + strings.Repeat(" ", max(1, column-len(text)))
		}
		p.printf("%s", strings.TrimRight(row, " "))
	}
	for i, text := range why.texts {
		p.printf("  %s  %s", p.paint(red, string(rune('a'+i))), text)
	}
}

// cellKey identifies a cell of the table.
type cellKey struct {
	from *host
	to   serverPort
}

// tabulate sums up the outcomes by cell.
func tabulate(j comparison) (map[cellKey]*cell, *reasons) {
	cells, why := make(map[cellKey]*cell), new(reasons)
	for _, o := range j.outcomes {
		at := cellKey{o.from, o.to}
		c := cells[at]
		if c == nil {
			c = &cell{asked: make(map[string]int), reached: make(map[string]int)}
			cells[at] = c
		}
		c.asked[o.network]++
		if o.reached() {
			c.reached[o.network]++
			continue
		}
		letter := why.letter(o.why())
		if !strings.Contains(strings.Join(c.why, ""), letter) {
			c.why = append(c.why, letter)
		}
	}
	for _, f := range j.wrong {
		cells[cellKey{f.from, f.to}].wrong = true
	}
	return cells, why
}

// why returns the reason why an attempt failed.
func (o outcome) why() string {
	if o.denial != nil {
		return o.denial.String()
	}
	if o.Outcome == lab.Reached {
		return "answered by another: " + strconv.Quote(o.By)
	}
	return o.Outcome.String() + ", and no verdict"
}
