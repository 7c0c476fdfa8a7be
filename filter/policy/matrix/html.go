package matrix

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strconv"
	"strings"
)

//go:embed matrix.html
var matrixHTML string

var matrixPage = template.Must(template.New("matrix").Parse(matrixHTML))

// page is the matrix in the HTML page. It holds each kind of cell once, since most cells are
// equal: 200 pods have 40,000 cells.
type page struct {
	Pods  []pagePod      `json:"pods"`
	Ports []string       `json:"ports"` // labels of all ports, for the filter
	Kinds [][]pageAnswer `json:"kinds"`
	Cells []int          `json:"cells"` // index in Kinds for each pair of pods, by row

	NotRead string `json:"-"` // names of objects that were not read and may change verdicts
}

type pagePod struct {
	Namespace string   `json:"ns"`
	Name      string   `json:"name"`
	Addresses []string `json:"addrs"`
	Egress    []string `json:"egress"`
	Ingress   []string `json:"ingress"`
	// The titles of policies with ordered rules that may decide about the pod.
	OrderedEgress  []string `json:"orderedEgress,omitempty"`
	OrderedIngress []string `json:"orderedIngress,omitempty"`
}

// pageAnswer is the verdict of a cell about one port, or, with an empty Label, about all
// ports that have no answer of their own.
type pageAnswer struct {
	Label   string `json:"port"`
	Name    string `json:"name,omitempty"`
	Verdict string `json:"verdict"`
	Why     string `json:"why"`
}

// WriteHTML writes the matrix as an HTML page that loads no other resources.
func (m *Matrix) WriteHTML(out io.Writer) error { return matrixPage.Execute(out, newPage(m)) }

func newPage(m *Matrix) page {
	p := page{Cells: make([]int, 0, len(m.Flows)), NotRead: textOf(m.NotRead)}
	labels := make(map[Port]bool)
	for _, o := range m.Pods {
		pod := pagePod{Namespace: o.Namespace, Name: o.Name, Egress: o.Egress, Ingress: o.Ingress, OrderedEgress: o.OrderedEgress, OrderedIngress: o.OrderedIngress}
		for _, a := range o.Addresses {
			pod.Addresses = append(pod.Addresses, a.String())
		}
		p.Pods = append(p.Pods, pod)
		for _, port := range o.Ports {
			port.Name = "" // the page's filter lists only numbers, because a number may have many names
			labels[port] = true
		}
	}
	p.Ports = sortedLabels(labels)
	kinds := make(map[string]int)
	for _, c := range m.Flows {
		var key strings.Builder
		answers := make([]pageAnswer, 0, len(c.Ports)+1)
		for _, port := range c.Ports {
			answers = append(answers, pageAnswer{port.Port.String(), port.Name, port.Verdict, port.Why})
		}
		if c.Other != nil {
			answers = append(answers, pageAnswer{"", "", c.Other.Verdict, c.Other.Why})
		}
		for _, a := range answers {
			key.WriteString(a.Label + "\x00" + a.Name + "\x00" + a.Verdict + "\x00" + a.Why + "\x00")
		}
		kind, known := kinds[key.String()]
		if !known {
			kind = len(p.Kinds)
			kinds[key.String()] = kind
			p.Kinds = append(p.Kinds, answers)
		}
		p.Cells = append(p.Cells, kind)
	}
	return p
}

func sortedLabels(ports map[Port]bool) []string {
	labels := []string{} // not nil: in JSON an empty list is [] and not null
	for p := range ports {
		labels = append(labels, p.String())
	}
	number := func(label string) int {
		n, _, _ := strings.Cut(label, "/")
		i, _ := strconv.Atoi(n) // a label begins with a number
		return i
	}
	slices.SortFunc(labels, func(a, b string) int {
		if d := number(a) - number(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return labels
}

// textOf joins the names of objects that were not read.
func textOf(list []fmt.Stringer) string {
	texts := make([]string, len(list))
	for i, n := range list {
		texts[i] = n.String()
	}
	return strings.Join(texts, ", ")
}
