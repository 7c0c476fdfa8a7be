package matrix

import (
	_ "embed"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"
	"strings"
)

//go:embed matrix.html
var matrixHTML string

// page is the matrix in the HTML page. It holds each kind of cell once, since most cells are
// equal, and each row once, since many are: 1,000 pods have 1,000,000 cells.
type page struct {
	Parties []pageParty `json:"parties"`
	From    []int       `json:"from"`  // the rows: indexes in Parties
	To      []int       `json:"to"`    // the columns
	Ports   []string    `json:"ports"` // all declared ports, as in "TCP 80", for the filter
	Asked   bool        `json:"asked"` // the cells are about some ports only
	Kinds   []pageKind  `json:"kinds"`
	Rows    []string    `json:"rows"`  // runs of equal cells: see rowText
	RowOf   []int       `json:"rowOf"` // index in Rows for each row
	Own     []pageOwn   `json:"own"`   // cells that the rows do not have: those of a party with itself
	LeftOut []LeftOut   `json:"leftOut"`
	Stamp   string      `json:"-"`
	NotRead string      `json:"-"` // names of objects that were not read and may change verdicts
	By      string      `json:"by"`
	kinds   map[kindKey]int
	rows    map[string]int
}

type pageOwn [3]int // row, column and kind

type pageParty struct {
	Namespace string   `json:"ns,omitempty"`
	Name      string   `json:"name"`
	Kind      string   `json:"kind"`
	About     string   `json:"about,omitempty"` // its pods, nodes or addresses
	Egress    []string `json:"egress,omitempty"`
	Ingress   []string `json:"ingress,omitempty"`
	// The titles of policies with ordered rules that may decide about it.
	OrderedEgress  []string `json:"orderedEgress,omitempty"`
	OrderedIngress []string `json:"orderedIngress,omitempty"`
}

// pageKind is a cell without its parties.
type pageKind struct {
	State   State    `json:"state"`
	Text    string   `json:"text"`
	Answers []Answer `json:"answers"`
	OwnNode []Answer `json:"ownNode,omitempty"`
}

type kindKey struct {
	state    State
	own, all *Answer
}

// noKind is the kind of cells about which policies do not decide, and of those that are left out.
const noKind = 0

// WriteHTML writes the matrix as an HTML page that loads no other resources.
func (m *Matrix) WriteHTML(out io.Writer) error {
	t, err := template.New("matrix").Parse(matrixHTML)
	if err != nil {
		return err
	}
	return t.Execute(out, newPage(m))
}

func newPage(m *Matrix) *page {
	p := &page{
		Ports: []string{}, Kinds: []pageKind{{Answers: []Answer{}}}, Rows: []string{}, RowOf: []int{}, Own: []pageOwn{}, Asked: len(m.options.Ports) > 0,
		LeftOut: m.LeftOut, Stamp: m.stamp(), NotRead: textOf(m.NotRead), By: string(m.By), kinds: make(map[kindKey]int), rows: make(map[string]int),
	}
	index := make(map[*Party]int)
	for i, o := range m.union() {
		index[o] = i
		p.Parties = append(p.Parties, pagePartyOf(o))
	}
	p.Ports = portsOf(m)
	for _, o := range m.From {
		p.From = append(p.From, index[o])
	}
	for _, o := range m.To {
		p.To = append(p.To, index[o])
	}
	for i, from := range m.From {
		p.addRow(m, i, from)
	}
	return p
}

// addRow adds a row. The cell of a party with itself is kept apart, so that rows of parties
// that policies do not tell apart are equal.
func (p *page) addRow(m *Matrix, i int, from *Party) {
	kinds := make([]int, len(m.To))
	for j, to := range m.To {
		kinds[j] = p.kind(m.at[[2]*Party{from, to}])
		if from == to {
			p.Own = append(p.Own, pageOwn{i, j, kinds[j]})
			kinds[j] = -1
		}
	}
	for j := range kinds {
		if kinds[j] >= 0 {
			continue
		}
		kinds[j] = noKind
		if j > 0 {
			kinds[j] = kinds[j-1]
		} else if len(kinds) > 1 {
			kinds[j] = kinds[1]
		}
	}
	text := rowText(kinds)
	at, known := p.rows[text]
	if !known {
		at = len(p.Rows)
		p.rows[text] = at
		p.Rows = append(p.Rows, text)
	}
	p.RowOf = append(p.RowOf, at)
}

// rowText encodes the kinds of a row: for each run of equal ones the kind and the length, as
// varints, in Base64.
func rowText(kinds []int) string {
	var b []byte
	for i := 0; i < len(kinds); {
		n := i
		for n < len(kinds) && kinds[n] == kinds[i] {
			n++
		}
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(kinds[i])), uint64(n-i))
		i = n
	}
	return base64.StdEncoding.EncodeToString(b)
}

// kind returns the index of the kind of a cell.
func (p *page) kind(c *Cell) int {
	if c == nil {
		return noKind
	}
	key := kindKey{state: c.State}
	if len(c.Answers) > 0 {
		key.all = &c.Answers[0]
	}
	if len(c.OwnNode) > 0 {
		key.own = &c.OwnNode[0]
	}
	if at, known := p.kinds[key]; known {
		return at
	}
	p.kinds[key] = len(p.Kinds)
	answers := c.Answers
	if answers == nil {
		answers = []Answer{}
	}
	p.Kinds = append(p.Kinds, pageKind{c.State, c.text(), answers, c.OwnNode})
	return len(p.Kinds) - 1
}

func pagePartyOf(o *Party) pageParty {
	p := pageParty{Namespace: o.Namespace, Name: strings.TrimPrefix(o.Name, o.Namespace+"/"), Kind: o.Kind, Egress: o.Egress, Ingress: o.Ingress, OrderedEgress: o.OrderedEgress, OrderedIngress: o.OrderedIngress}
	switch {
	case len(o.Pods) > 0:
		p.About = counted(o.Pods, "pod", "pods")
		if len(o.Pods) == 1 && len(o.Addresses) > 0 {
			p.About = strings.Join(o.Addresses, ", ")
		}
	case len(o.Nodes) > 0:
		p.About = counted(o.Nodes, "node", "nodes")
	}
	return p
}

func counted(list []string, one, many string) string {
	if len(list) == 1 {
		return one + " " + list[0]
	}
	return fmt.Sprintf("%d %s", len(list), many)
}

// portsOf lists the ports that the destinations declare, or those that were asked for.
func portsOf(m *Matrix) []string {
	found := make(map[Port]bool)
	for _, p := range m.options.Ports {
		found[p] = true
	}
	for _, to := range m.To {
		for _, member := range to.members {
			for _, port := range declaredPorts(member.ports()) {
				if port.Name = ""; len(m.options.Ports) == 0 { // a number may have many names
					found[port] = true
				}
			}
		}
	}
	list := make([]Port, 0, len(found))
	for p := range found {
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b Port) int {
		if a.Number != b.Number {
			return int(a.Number) - int(b.Number)
		}
		return strings.Compare(a.Protocol, b.Protocol)
	})
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.Protocol + " " + strconv.Itoa(int(p.Number))
	}
	return texts
}

// textOf joins the names of objects that were not read.
func textOf(list []fmt.Stringer) string {
	texts := make([]string, len(list))
	for i, n := range list {
		texts[i] = n.String()
	}
	return strings.Join(texts, ", ")
}
