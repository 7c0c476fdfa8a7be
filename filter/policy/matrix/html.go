package matrix

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	_ "embed" // for the files of the page
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"
)

//go:embed page/page.html
var pageHTML string

//go:embed page/page.css
var pageCSS string

// The script of the page consists of three files, in this order: the data of the table, the table, and
// the rest.
var (
	//go:embed page/model.js
	modelJS string
	//go:embed page/grid.js
	gridJS string
	//go:embed page/page.js
	pageJS string
)

// document is the input of the page's template.
type document struct {
	// CSP is the page's content security policy. It allows only the page's own style and script, so
	// that no name in a manifest can run as code, and the page neither loads nor sends anything.
	CSP      string
	Style    template.CSS
	Script   template.JS
	Data     template.HTML // the page as JSON, compressed, in Base64
	About    string        // what the matrix is restricted to; empty if it is not restricted
	Date     string
	Inputs   string
	LeftOut  []LeftOut
	NotRead  []string
	Seen     *documentSeen
	TooLarge bool // there are too many cells to expand namespaces into workloads
}

// WriteHTML writes the matrix as an HTML page that loads no other resources. Rows of namespaces expand
// into workloads, and rows of workloads into groups of pods that policies treat differently; in a
// matrix by pod, they expand into all pods.
func (m *Matrix) WriteHTML(out io.Writer) error {
	t, err := template.New("matrix").Parse(pageHTML)
	if err != nil {
		return err
	}
	below := m.below()
	p := newPage(below)
	p.By = m.By
	data, err := packed(p)
	if err != nil {
		return err
	}
	style, script := "\n"+pageCSS, "\n"+modelJS+gridJS+pageJS
	d := document{
		CSP:   fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; base-uri 'none'; form-action 'none'", hashOf(style), hashOf(script)),
		Style: template.CSS(style), Script: template.JS(script), Data: template.HTML(data),
		About: m.about(), Inputs: m.Inputs, LeftOut: m.LeftOut, Seen: below.documentSeen(), TooLarge: below.By == ByNamespace,
	}
	if !m.Date.IsZero() {
		d.Date = m.Date.UTC().Format(time.RFC3339)
	}
	for _, n := range m.NotRead {
		d.NotRead = append(d.NotRead, n.String())
	}
	return t.Execute(out, d)
}

// hashOf returns the hash of a style or script, in the form of a content security policy.
func hashOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// packed returns the page as compressed JSON in Base64. Compression shrinks the reasons to a tenth,
// because they repeat each other: those of 1,000 pods have several MB.
func packed(p *page) (string, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return "", err
	}
	if err := json.NewEncoder(z).Encode(p); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(b.Bytes()), nil
}

// below returns the matrix by workload, whose cells a page by namespace shows when a namespace expands.
// It returns m if m is not by namespace, or if there would be too many cells.
func (m *Matrix) below() *Matrix {
	if m.By != ByNamespace {
		return m
	}
	o := m.options
	o.By = ByWorkload
	all := newMatrix(m.reach, o)
	if all.Size() > MaxCells {
		return m
	}
	if m.tally != nil {
		all.Lay(m.tally)
	}
	return all
}

// about describes what the matrix is restricted to. It returns "" if the matrix is not restricted.
func (m *Matrix) about() string {
	o := &m.options
	var parts []string
	add := func(before string, list []string) {
		if len(list) > 0 {
			parts = append(parts, before+strings.Join(list, ", "))
		}
	}
	add("from or to ", o.Namespaces)
	add("from ", o.From)
	add("to ", o.To)
	var ports []string
	for _, p := range o.Ports {
		ports = append(ports, p.String())
	}
	add("at port ", ports)
	if o.OnlyOpen {
		parts = append(parts, "without what is closed")
	}
	if len(parts) == 0 {
		return ""
	}
	return "Only flows " + strings.Join(parts, "; ")
}
