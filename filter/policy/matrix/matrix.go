// Package matrix shows who can reach whom at which ports, as a table, a list, JSON, CSV, a graph or
// an HTML page. The answers are those of package reach.
package matrix

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
	"sluice/filter/policy/seen"
)

// MaxCells bounds the cells that New computes: n pods have n*n cells. If there are more, New returns a
// matrix without flows.
const MaxCells = 4_000_000

// By tells what the rows and columns of a matrix are.
type By string

// The values of By. In each case, nodes and addresses outside the cluster also have rows and columns.
const (
	ByNamespace By = "namespace"
	ByWorkload  By = "workload" // workloads, and pods without a workload
	ByPod       By = "pod"
)

// Options restrict a matrix.
type Options struct {
	By         By       // empty means ByWorkload
	Ports      []Port   // if not empty, only these ports
	Namespaces []string // if not empty, only flows whose source or destination is in one of these namespaces
	From, To   []string // if not empty, only flows from namespaces in From, or to namespaces in To
	OnlyOpen   bool     // only pairs for which something is allowed
}

// Matrix has an answer for each pair of a source (row) and a destination (column).
type Matrix struct {
	By     By     `json:"by"`
	Inputs string `json:"inputs,omitempty"` // digest of the objects that were read
	// Date is the time at which the objects were read, for pages. JSON omits it, so that equal inputs
	// give equal outputs.
	Date time.Time `json:"-"`

	From  []*Party `json:"from"`  // the rows
	To    []*Party `json:"to"`    // the columns
	Flows []*Cell  `json:"flows"` // sorted by row; without pairs about which policies do not decide
	// LeftOut lists the pods without a row and a column.
	LeftOut []LeftOut `json:"leftOut"`
	// NotRead lists objects that were not read and may change verdicts.
	NotRead []fmt.Stringer `json:"notRead,omitempty"`
	// Seen is about the flows that were laid over the matrix; nil without Lay.
	Seen *Overview `json:"seen,omitempty"`

	options Options
	reach   *reach.Map
	builder *builder
	all     []*Party // the parties of rows and columns, and those that are left out
	at      map[[2]*Party]*Cell
	tally   *seen.Tally // what Lay has laid over the matrix
}

// LeftOut is a pod that has no address of its own.
type LeftOut struct {
	Pod string `json:"pod"`
	Why string `json:"why"`
}

// Port is a port that the question names or that containers declare.
type Port struct {
	Number   uint16 `json:"port"`
	Protocol string `json:"protocol"`
	Name     string `json:"name,omitempty"`

	proto filter.Protocol
}

// NewPort returns a port of a protocol.
func NewPort(number uint16, p filter.Protocol) Port {
	return Port{Number: number, Protocol: p.String(), proto: p}
}

// String returns the port in its short form, such as "80" or "53/UDP".
func (p Port) String() string {
	if p.proto == filter.TCP {
		return strconv.Itoa(int(p.Number))
	}
	return strconv.Itoa(int(p.Number)) + "/" + p.Protocol
}

// New computes the matrix of an inventory.
func New(v *inventory.Inventory, o Options) *Matrix {
	o.By = cmp.Or(o.By, ByWorkload)
	return newMatrix(reach.New(v), o)
}

func newMatrix(r *reach.Map, o Options) *Matrix {
	b := newBuilder(r, o.Ports)
	m := &Matrix{By: o.By, Flows: []*Cell{}, LeftOut: []LeftOut{}, options: o, reach: r, builder: b, at: make(map[[2]*Party]*Cell)}
	for _, l := range b.reach.LeftOut {
		if m.concerns(l.Pod.Namespace, l.Pod.Namespace) || m.concerns(l.Pod.Namespace, "") || m.concerns("", l.Pod.Namespace) {
			m.LeftOut = append(m.LeftOut, LeftOut{l.Pod.String(), whyLeftOut(l)})
		}
	}
	all := partiesOf(b.reach, o.By)
	exposed(r.Inventory(), all)
	m.all = all
	m.From, m.To = chosen(all, o.From), chosen(all, o.To)
	if len(m.From)*len(m.To) <= MaxCells {
		m.fill(b)
	}
	return m
}

func whyLeftOut(l reach.LeftOut) string {
	if l.Pod.Ended != "" {
		return "it has ended (" + l.Pod.Ended + ")"
	}
	return l.Why.Error()
}

// Size returns the number of cells.
func (m *Matrix) Size() int { return len(m.From) * len(m.To) }

// concerns reports whether the matrix includes flows from one namespace to another. For nodes and
// addresses outside the cluster, the namespace is empty.
func (m *Matrix) concerns(from, to string) bool {
	o := &m.options
	among := func(list []string, namespace string) bool { return len(list) == 0 || slices.Contains(list, namespace) }
	return among(o.From, from) && among(o.To, to) && (among(o.Namespaces, from) || among(o.Namespaces, to))
}

func chosen(all []*Party, namespaces []string) (some []*Party) {
	for _, p := range all {
		if len(namespaces) == 0 || slices.Contains(namespaces, p.Namespace) {
			some = append(some, p)
		}
	}
	return some
}

// fill computes the cells.
func (m *Matrix) fill(b *builder) {
	open := make(map[*Party]bool)
	for _, from := range m.From {
		for _, to := range m.To {
			if !m.concerns(from.Namespace, to.Namespace) {
				continue
			}
			c := b.cell(from, to)
			if c == nil || m.options.OnlyOpen && !c.State.Open() {
				continue
			}
			m.Flows, m.at[[2]*Party{from, to}] = append(m.Flows, c), c
			open[from], open[to] = true, true
		}
	}
	if m.options.OnlyOpen {
		unused := func(p *Party) bool { return !open[p] }
		m.From, m.To = slices.DeleteFunc(m.From, unused), slices.DeleteFunc(m.To, unused)
	}
}

// Sum counts the cells of each state.
func (m *Matrix) Sum() map[State]int {
	sum := make(map[State]int)
	for _, c := range m.Flows {
		sum[c.State]++
	}
	return sum
}

// sumText returns the counts as in "2 open, 1 only at declared ports, 1 in part, 5 closed".
func (m *Matrix) sumText() string {
	sum := m.Sum()
	return fmt.Sprintf("%d open, %d only at declared ports, %d in part, %d closed", sum[Open], sum[Declared], sum[Part], sum[Closed])
}

// WriteJSON writes the matrix as JSON.
func (m *Matrix) WriteJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(m)
}

// declaredPorts converts named ports to Ports without duplicates, sorted by number.
func declaredPorts(list []policy.NamedPort) []Port {
	var ports []Port
	for _, p := range list {
		same := func(o Port) bool { return o.Number == p.Number && o.proto == p.Protocol }
		if !slices.ContainsFunc(ports, same) {
			ports = append(ports, Port{p.Number, p.Protocol.String(), p.Name, p.Protocol})
		}
	}
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Number, b.Number), strings.Compare(a.Protocol, b.Protocol))
	})
	return ports
}
