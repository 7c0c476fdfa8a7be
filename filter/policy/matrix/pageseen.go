package matrix

import (
	"fmt"
	"strings"
	"time"
)

// pageCell is what was seen of the flows in a cell: the indexes of its row and its column, the ports,
// and the index of the text with what was never used.
type pageCell struct {
	Row       int        `json:"r"`
	Column    int        `json:"c"`
	Ports     []pagePort `json:"ports"`
	NeverUsed int        `json:"never"`
}

// pagePort is what was seen at a port: the index of the port's text, the flags, the numbers of allowed and
// denied flows, and the times of the first and of the last flow. The times are in seconds of Unix time; 0
// means that they are not known.
type pagePort [6]int64

// The flags of a pagePort.
const (
	portOpen = 1 << iota
	portOwnNode
	portChanged
)

// addSeen adds what was seen in a cell. It adds nothing if nothing was seen in the cell: the page finds
// out by itself that the open ports of the cell were never used.
func (p *page) addSeen(row, column int, c *Cell) {
	if c == nil || c.Seen == nil || len(c.Seen.Ports) == 0 {
		return
	}
	cell := pageCell{Row: row, Column: column, Ports: []pagePort{}, NeverUsed: p.text(strings.Join(c.Seen.NeverUsed, ", "))}
	for i := range c.Seen.Ports {
		o := &c.Seen.Ports[i]
		var flags int64
		for _, f := range []struct {
			set bool
			bit int64
		}{{o.open(), portOpen}, {o.OwnNode, portOwnNode}, {o.Changed, portChanged}} {
			if f.set {
				flags |= f.bit
			}
		}
		cell.Ports = append(cell.Ports, pagePort{int64(p.text(o.Port)), flags, int64(o.Allowed), int64(o.Denied), seconds(o.First), seconds(o.Last)})
	}
	p.Seen = append(p.Seen, cell)
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// documentSeen is what the page tells about the flows.
type documentSeen struct {
	Source, Means, Missing string
	Changed, LeftOut       []string
	NotCounted             string // the number in LeftOut
}

// documentSeen describes the flows. It returns nil if there are none.
func (m *Matrix) documentSeen() *documentSeen {
	o := m.Seen
	if o == nil {
		return nil
	}
	d := &documentSeen{Source: o.sourceText() + ".", Means: neverUsedMeans, Missing: strings.Join(o.missingText(), " ")}
	for i, c := range o.changed {
		if i == maxPageCallouts {
			d.Changed = append(d.Changed, fmt.Sprintf("and %d more", len(o.changed)-i))
			break
		}
		d.Changed = append(d.Changed, o.calloutText(c))
	}
	n := uint64(0)
	for _, l := range o.LeftOut {
		d.LeftOut = append(d.LeftOut, leftText(l))
		n += l.Flows
	}
	d.NotCounted = grouped(n)
	return d
}

// maxPageCallouts bounds the ports with another verdict that the page lists. The panels of the cells have
// all of them.
const maxPageCallouts = 100
