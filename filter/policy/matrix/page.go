package matrix

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/near"
)

// page is the data of the HTML page. 1,000 pods have 1,000,000 cells, but most cells are equal, and
// many rows and texts: the page stores each kind of cell, each row and each text once.
type page struct {
	By By `json:"by"` // what rows and columns are when the page opens
	// Namespaces has the names in Options.Namespaces.
	Namespaces []string    `json:"namespaces,omitempty"`
	Parties    []pageParty `json:"parties"`

	From  []int    `json:"from"`  // the rows: indexes in Parties
	To    []int    `json:"to"`    // the columns
	Ports []string `json:"ports"` // all declared ports, as in "TCP 80", for the page's filter by port
	Asked bool     `json:"asked"` // the question is about some ports only

	Texts []string   `json:"texts"`
	Kinds []pageKind `json:"kinds"`
	Rows  [][]int    `json:"rows"`  // runs of equal cells; each run has two numbers, the kind and the number of cells
	RowOf []int      `json:"rowOf"` // for each row, its index in Rows
	Own   [][3]int   `json:"own"`   // row, column and kind of each cell from a party to itself; in Rows, these cells have the kind of a neighbor
	// Flows reports that flows were laid over the matrix, and Seen has the cells in which any were seen.
	Flows bool       `json:"flows,omitempty"`
	Seen  []pageCell `json:"seen,omitempty"`

	kinds  map[kindKey]int
	equal  map[string]int // indexes in Kinds by content
	rows   map[string]int
	texts  map[string]int
	owners map[*Party][2]int // indexes of texts with the policies of a party, for egress and ingress
}

type pageParty struct {
	Namespace string `json:"ns,omitempty"`
	Name      string `json:"name"`
	// Workload is the name of the row that expands into this row; empty if there is no such row.
	Workload string   `json:"workload,omitempty"`
	Kind     string   `json:"kind"`
	About    string   `json:"about,omitempty"` // the party's pods, nodes or addresses
	Egress   []string `json:"egress,omitempty"`
	Ingress  []string `json:"ingress,omitempty"`
	// OrderedEgress and OrderedIngress are the titles of policies with ordered rules that may decide
	// about the party.
	OrderedEgress  []string `json:"orderedEgress,omitempty"`
	OrderedIngress []string `json:"orderedIngress,omitempty"`
}

// pageKind is what equal cells of different parties share.
type pageKind struct {
	State   State        `json:"state"`
	Text    string       `json:"text"`
	Answers []pageAnswer `json:"answers"`
	OwnNode []pageAnswer `json:"ownNode,omitempty"`
}

// pageAnswer is an answer. Ports and Why are indexes in Texts.
type pageAnswer struct {
	Ports   int    `json:"ports"`
	Verdict string `json:"verdict"`
	Why     int    `json:"why"`
}

// kindKey identifies the content of a kind. Equal answers are the same slice, so the pointers to the
// first elements identify them.
type kindKey struct {
	state    State
	own, all *Answer
	from, to int // indexes of the texts with the policies of the parties
}

// noKind is the kind of cells about which policies do not decide, and of cells that the matrix leaves
// out.
const noKind = 0

func newPage(m *Matrix) *page {
	p := &page{
		By: m.By, Namespaces: m.options.Namespaces, Ports: portsOf(m), Asked: len(m.options.Ports) > 0, Texts: []string{}, Kinds: []pageKind{{Answers: []pageAnswer{}}}, Rows: [][]int{}, RowOf: []int{}, Own: [][3]int{},
		Parties: []pageParty{}, From: []int{}, To: []int{}, Flows: m.Seen != nil,
		kinds: make(map[kindKey]int), equal: make(map[string]int), rows: make(map[string]int), texts: make(map[string]int), owners: make(map[*Party][2]int),
	}
	all := m.union()
	workloads := rowsOfWorkloads(all)
	index := make(map[*Party]int)
	for i, o := range all {
		index[o] = i
		p.owners[o] = [2]int{p.text(strings.Join(o.Egress, ", ")), p.text(strings.Join(o.Ingress, ", "))}
		p.Parties = append(p.Parties, pagePartyOf(o, workloads))
	}
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

// addRow adds a row. It stores the cell from the party to itself separately, in Own, so that parties
// that policies treat alike have equal rows.
func (p *page) addRow(m *Matrix, i int, from *Party) {
	kinds := make([]int, len(m.To))
	own := -1
	for j, to := range m.To {
		c := m.at[[2]*Party{from, to}]
		kinds[j] = p.kind(c, from, to)
		p.addSeen(i, j, c)
		if from == to {
			p.Own = append(p.Own, [3]int{i, j, kinds[j]})
			own = j
		}
	}
	switch { // the own cell takes the kind of the cell next to it, so that it does not split a run
	case own > 0:
		kinds[own] = kinds[own-1]
	case own == 0 && len(kinds) > 1:
		kinds[own] = kinds[1]
	}
	runs := runsOf(kinds)
	key, err := json.Marshal(runs)
	if err != nil {
		panic(err) // not possible: it is a list of numbers
	}
	at, known := p.rows[string(key)]
	if !known {
		at = len(p.Rows)
		p.rows[string(key)] = at
		p.Rows = append(p.Rows, runs)
	}
	p.RowOf = append(p.RowOf, at)
}

// runsOf encodes kinds as runs of equal kinds: for each run, the kind and the length.
func runsOf(kinds []int) []int {
	runs := []int{}
	for i := 0; i < len(kinds); {
		n := i
		for n < len(kinds) && kinds[n] == kinds[i] {
			n++
		}
		runs = append(runs, kinds[i], n-i)
		i = n
	}
	return runs
}

// kind returns the index of the kind of a cell.
func (p *page) kind(c *Cell, from, to *Party) int {
	if c == nil {
		return noKind
	}
	key := kindKey{state: c.State, from: p.owners[from][0], to: p.owners[to][1]}
	if len(c.Answers) > 0 {
		key.all = &c.Answers[0]
	}
	if len(c.OwnNode) > 0 {
		key.own = &c.OwnNode[0]
	}
	at, known := p.kinds[key]
	if !known {
		at = p.newKind(pageKind{c.State, c.bareText(), p.answers(c.Answers, from, to), p.answers(c.OwnNode, from, to)})
		p.kinds[key] = at
	}
	return at
}

// newKind returns the index of a kind in Kinds, and adds the kind if it is new.
func (p *page) newKind(k pageKind) int {
	text := fmt.Sprint(k)
	at, known := p.equal[text]
	if !known {
		at = len(p.Kinds)
		p.equal[text] = at
		p.Kinds = append(p.Kinds, k)
	}
	return at
}

func (p *page) answers(list []Answer, from, to *Party) []pageAnswer {
	answers := []pageAnswer{}
	for _, a := range list {
		answers = append(answers, pageAnswer{p.text(strings.Join(a.Ports, ", ")), a.Verdict, p.text(whyBy(whyBy(a.Why, "from", filter.Egress, from.Egress), "to", filter.Ingress, to.Ingress))})
	}
	return answers
}

// whyBy replaces the names of an end's policies in a reason by placeholders: \x01from\x01 stands for
// all policies that isolate the source, and \x01from.0\x01 for the first of them. No name contains the
// control character. Most reasons of a large cluster differ only in these names.
func whyBy(why, end string, d filter.Direction, policies []string) string {
	if len(policies) == 0 {
		return why
	}
	way := d.String()
	why = strings.Replace(why, way+": no rule of "+strings.Join(policies, ", ")+" allows it", way+": no rule of \x01"+end+"\x01 allows it", 1)
	for i, name := range policies {
		why = strings.Replace(why, "allowed by "+name+", "+way+" rule ", fmt.Sprintf("allowed by \x01%s.%d\x01, %s rule ", end, i, way), 1)
	}
	return why
}

// text returns the index of a text in Texts, and adds the text if it is new.
func (p *page) text(text string) int {
	at, known := p.texts[text]
	if !known {
		at = len(p.Texts)
		p.texts[text] = at
		p.Texts = append(p.Texts, text)
	}
	return at
}

// rowsOfWorkloads returns the row names of the parties' workloads: "web", or "deployment/web" if
// workloads of several kinds have the same name.
func rowsOfWorkloads(all []*Party) map[string]string {
	kinds := make(map[string]map[string]bool) // by namespace and name
	for _, o := range all {
		if kind, name, has := strings.Cut(o.Workload, " "); has {
			if kinds[name] == nil {
				kinds[name] = make(map[string]bool)
			}
			kinds[name][kind] = true
		}
	}
	names := make(map[string]string)
	for _, o := range all {
		kind, name, has := strings.Cut(o.Workload, " ")
		if !has {
			continue
		}
		_, short, _ := strings.Cut(name, "/")
		if len(kinds[name]) > 1 {
			short = strings.ToLower(kind) + "/" + short
		}
		names[o.Workload] = short
	}
	return names
}

func pagePartyOf(o *Party, workloads map[string]string) pageParty {
	p := pageParty{
		Namespace: o.Namespace, Name: nameIn(o), Workload: workloads[o.Workload], Kind: o.Kind,
		Egress: o.Egress, Ingress: o.Ingress, OrderedEgress: o.OrderedEgress, OrderedIngress: o.OrderedIngress,
	}
	assumed := slices.ContainsFunc(o.members, func(m member) bool { return m.Assumed })
	switch {
	case assumed && o.Workload != "":
		p.About = "a " + kindOf(o.Workload) + " whose pods are not known"
	case len(o.Pods) > 0:
		p.About = counted(o.Pods, o.Namespace+"/", "pod", "pods")
		if len(o.Pods) == 1 && len(o.Addresses) > 0 {
			p.About += ", " + strings.Join(o.Addresses, ", ")
		}
	case len(o.Nodes) > 0:
		p.About = counted(o.Nodes, "", "node", "nodes")
	case len(o.Ranges) > 0:
		p.About = strings.Join(o.Ranges, ", ")
	}
	if len(o.Outside) > 0 {
		p.About += "; reached from outside by " + strings.Join(o.Outside, "; by ")
	}
	return p
}

// kindOf returns the kind in the name of an object: "Deployment" for "Deployment shop/web".
func kindOf(object string) string {
	kind, _, _ := strings.Cut(object, " ")
	return kind
}

// nameIn returns the name of a party without its namespace: "web", or "web-0, web-1 and 3 more" if the
// party is only some of a workload's pods.
func nameIn(o *Party) string {
	if o.Namespace == "" {
		return o.Name
	}
	return strings.ReplaceAll(strings.TrimPrefix(o.Name, o.Namespace+"/"), ", "+o.Namespace+"/", ", ")
}

// maxListed bounds the pods and nodes that the page names for a row.
const maxListed = 6

func counted(list []string, prefix, one, many string) string {
	names := make([]string, len(list))
	for i, name := range list {
		names[i] = strings.TrimPrefix(name, prefix)
	}
	if len(names) == 1 {
		return one + " " + names[0]
	}
	return strconv.Itoa(len(names)) + " " + many + ": " + near.List(names, maxListed, ", ")
}

// portsOf lists the ports that the question names, or, if it names none, those that the destinations
// declare.
func portsOf(m *Matrix) []string {
	found := make(map[Port]bool)
	for _, p := range m.options.Ports {
		found[p] = true
	}
	for _, to := range m.To {
		for _, member := range to.members {
			for _, port := range declaredPorts(member.ports()) {
				if port.Name = ""; len(m.options.Ports) == 0 { // a number may have several names, so ports are listed by number
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
