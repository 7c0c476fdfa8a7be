package report

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/near"
	"sluice/filter/policy/reach"
)

// document is the report for people. Text, Markdown and HTML write it in their formats.
type document struct {
	Title   string
	Facts   [][2]string // name and value
	Missing []string    // what was not read, not understood or left out
	Summary []sentence
	Parts   []part
}

// part is a section of a document.
type part struct {
	Heading string
	Text    []sentence
	Tables  []table
}

type table struct {
	Heading string // empty if the part needs no heading for the table
	Text    []sentence
	Head    []string
	Rows    [][]cell
}

// cell has a list of items, or several lines.
type cell struct {
	Items []string
	Code  bool // the items are names, shown as code
	Lines bool // each item is a line of its own
	Warn  bool // the last item is marked as a warning
}

// warns reports whether item i is marked as a warning.
func (c cell) warns(i int) bool { return c.Warn && i == len(c.Items)-1 }

func names(list ...string) cell { return cell{Items: list, Code: true} }

func text(list ...string) cell { return cell{Items: list, Lines: true} }

// document returns the report for people.
func (r *Report) document() *document {
	w := newWords(r)
	d := &document{Title: "Who can get into " + r.scope() + " and out of it", Facts: r.facts(), Missing: r.missing(), Summary: r.summary(w)}
	if len(r.Members) == 0 {
		return d
	}
	d.Parts = append(d.Parts, r.overview(w), r.exposed(w), r.open(w, filter.Ingress), r.open(w, filter.Egress), r.withinPart(w), r.closed(w), r.policies(w), r.limits())
	if len(w.used) > 0 {
		d.Parts = append(d.Parts, r.glossary(w))
	}
	return d
}

func (r *Report) facts() (facts [][2]string) {
	add := func(name, value string) {
		if value != "" {
			facts = append(facts, [2]string{name, value})
		}
	}
	scope := "all namespaces"
	if len(r.options.Namespaces) > 0 {
		scope = "namespace " + r.scope()
		if len(r.options.Namespaces) > 1 {
			scope = "namespaces " + r.scope()
		}
	}
	add("Scope", scope)
	add("Date", r.options.Date)
	add("Inputs", r.options.Inputs)
	add("Read from", strings.Join(r.options.Source, ", "))
	add("Read", strings.Join(r.options.Read, ", "))
	if len(r.ended) > 0 {
		add("Left out", count(len(r.ended), "pod that has ended: ", "pods that have ended: ")+near.List(r.ended, 2*maxFew, ", "))
	}
	add("Written by", r.options.Version)
	return facts
}

// missing describes what was not read, not understood or left out.
func (r *Report) missing() []string {
	all := slices.Clone(r.options.Missing)
	for _, l := range r.leftOut {
		all = append(all, fmt.Sprintf("left out: %s: %v", l.Pod, l.Why))
	}
	return all
}

// overview lists the members. Parts of a workload with the same policies are one row.
func (r *Report) overview(w *words) part {
	t := table{Head: []string{"workload", "pods", "declared ports", "isolated in ingress by", "isolated in egress by"}}
	type key struct {
		workload policy.Ref
		in, out  string
	}
	rows := make(map[key][]*reach.Party)
	var order []*Member
	keyOf := func(m *Member) key {
		k := key{m.Workload, fmt.Sprint(isolation(m, m.In)), fmt.Sprint(isolation(m, m.Out))}
		if !m.Part {
			k.in = m.Name
		}
		return k
	}
	for _, m := range r.Members {
		k := keyOf(m)
		if rows[k] == nil {
			order = append(order, m)
		}
		rows[k] = append(rows[k], m.Party)
	}
	for _, m := range order {
		set := rows[keyOf(m)]
		t.Rows = append(t.Rows, []cell{names(w.of(set)...), text(podsText(set)), text(declared(set)...), isolation(m, m.In), isolation(m, m.Out)})
	}
	return part{Heading: "Workloads", Tables: []table{t}}
}

// declared returns the ports that containers declare.
func declared(set []*reach.Party) (ports []string) {
	for _, p := range set {
		for _, one := range p.Ports {
			if port := fmt.Sprintf("%s %d", one.Protocol, one.Number); !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
	}
	return ports
}

func podsText(set []*reach.Party) string {
	if set[0].Assumed {
		return "not running"
	}
	n := 0
	for _, p := range set {
		n += len(p.Pods)
	}
	return fmt.Sprint(n)
}

// isolation names the policies that decide about a side of a member.
func isolation(m *Member, s *Side) cell {
	switch {
	case m.Kind == reach.HostPods:
		return cell{Items: []string{"policies do not apply"}, Lines: true, Warn: true}
	case !s.Isolated():
		return cell{Items: []string{notIsolated}, Lines: true, Warn: true}
	case len(s.Isolating) == 0:
		return cell{Items: []string{"rules of " + strings.Join(s.Ordered, ", ") + "; what they do not deny is open"}, Lines: true, Warn: true}
	}
	if len(s.Ordered) > 0 {
		return text(strings.Join(s.Isolating, ", "), "with rules of "+strings.Join(s.Ordered, ", "))
	}
	return names(s.Isolating...)
}

// open lists what is open in a direction. Members with the same rows share a table.
func (r *Report) open(w *words, d filter.Direction) part {
	p := part{Heading: "In: what can get in", Text: []sentence{{Text: r.ownNodeText()}}}
	head := []string{"from", "ports", "let in by", "let out by"}
	if d == filter.Egress {
		p = part{Heading: "Out: what can be reached", Text: []sentence{{Text: "NetworkPolicies do not apply to what a pod sends to the node that it runs on. Where rules of other tiers decide about that, there is a row."}}}
		head = []string{"to", "ports", "let out by", "let in by"}
	}
	var nothing []*reach.Party
	for _, g := range r.groups(d) {
		t := table{Heading: strings.Join(w.of(g.members), ", "), Head: head}
		if g.members[0].Kind == reach.HostPods {
			t.Rows = append(t.Rows, []cell{text("nodes and addresses outside the cluster"), text("all ports"), {Items: []string{"policies do not apply"}, Lines: true, Warn: true}, text()})
		}
		for _, row := range g.rows {
			t.Rows = append(t.Rows, r.rowCells(w, row))
		}
		if len(t.Rows) == 0 {
			nothing = append(nothing, slices.DeleteFunc(g.members, func(o *reach.Party) bool { return o.Kind != reach.Pods })...)
			continue
		}
		p.Tables = append(p.Tables, t)
	}
	if len(nothing) > 0 {
		verb := "Nothing can get into "
		if d == filter.Egress {
			verb = "Nothing can be reached from "
		}
		p.Text = append([]sentence{{Text: verb + both(w.of(nothing)) + "."}}, p.Text...)
	}
	return p
}

// ownNodeText describes the access of a pod's own node, which no policy can close.
func (r *Report) ownNodeText() string {
	var host []*reach.Party
	for _, p := range r.parties {
		if p.Kind == reach.HostPods {
			host = append(host, p)
		}
	}
	text := "The node that a pod runs on always reaches it, at every port, as the kubelet's probes must. No policy changes that."
	if len(host) > 0 && len(host) <= maxFew {
		text += " It includes pods of the host network on that node: " + both(partyNames(host)) + "."
	} else if len(host) > 0 {
		text += fmt.Sprintf(" It includes pods of the host network on that node, of %d workloads.", len(host))
	}
	return text
}

func partyNames(set []*reach.Party) (names []string) {
	for _, p := range set {
		names = append(names, p.Name)
	}
	return names
}

// group are members with the same rows.
type group struct {
	members []*reach.Party
	rows    []*Row
}

// groups merges members with the same rows. It leaves out natural rows.
func (r *Report) groups(d filter.Direction) (all []*group) {
	known := make(map[string]*group)
	for _, m := range r.Members {
		key := fmt.Sprintln(m.Kind == reach.HostPods)
		var rows []*Row
		for _, row := range m.side(d).Open {
			if row.natural() {
				continue
			}
			rows = append(rows, row)
			key += fmt.Sprintf("%p %s\n", row.opening, r.key(row))
		}
		if known[key] == nil {
			known[key] = &group{rows: rows}
			all = append(all, known[key])
		}
		known[key].members = append(known[key].members, m.Party)
	}
	return all
}

// natural reports whether a row is about traffic between pods and their own node that is allowed
// without a rule. The text states this once for all pods.
func (row *Row) natural() bool {
	return row.OwnNode && (row.always || len(row.Rules) == 0 && row.Verdict == reach.Allow && len(reach.Others(row.Ports)) == 0)
}

func (r *Report) rowCells(w *words, row *Row) []cell {
	peers := names(w.of(row.Peers)...)
	if row.OwnNode {
		peers = text("the pod's own node (" + strings.Join(w.of(row.Peers), ", ") + ")")
	}
	return []cell{peers, portsCell(row), reasonCell(row.reason), othersCell(w, row)}
}

// portsCell returns a cell with the ports of a row and its condition.
func portsCell(row *Row) cell {
	c := text(row.PortsText())
	if row.Condition != "" {
		c.Items = append(c.Items, row.Condition)
		c.Warn = row.Verdict == reach.Depends
	}
	return c
}

func reasonCell(r *reason) cell {
	c := text()
	if r.Why != "" {
		c = text(strings.Split(r.Why, "; ")...)
	}
	c.Warn = strings.HasPrefix(r.Why, notIsolated)
	return c
}

// othersCell returns a cell with the reasons for which the policies of the peers allow a row.
func othersCell(w *words, row *Row) cell {
	others := slices.DeleteFunc(slices.Clone(row.Others), func(o *Other) bool { return o.Why == "" })
	if len(others) == 1 {
		return text(strings.Split(others[0].Why, "; ")...)
	}
	c := text()
	for _, o := range others {
		c.Items = append(c.Items, strings.Join(w.of(o.Peers), ", ")+": "+o.Why)
	}
	return c
}

// withinPart lists what is open between members.
func (r *Report) withinPart(w *words) part {
	p := part{Heading: "Within " + r.scope(), Text: []sentence{{Text: "A pod always reaches itself."}}}
	t := table{Head: []string{"from", "to", "ports", "let in by", "let out by"}}
	for _, l := range r.Within {
		if l.natural() {
			continue
		}
		cells := r.rowCells(w, l.Row)
		t.Rows = append(t.Rows, append([]cell{cells[0], names(w.of(l.To)...)}, cells[1:]...))
	}
	switch {
	case len(t.Rows) > 0:
		p.Tables = []table{t}
	case len(r.Members) == 1 && r.Members[0].Single():
		p.Text = []sentence{{Text: "There is only one pod."}}
	default:
		p.Text = []sentence{{Text: "Nothing else is open between its pods."}}
	}
	return p
}

// closed lists what is closed, and by which policies.
func (r *Report) closed(w *words) part {
	p := part{Heading: "What is closed"}
	t := table{Head: []string{"workload", "direction", "closed to", "by"}}
	for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
		groups := r.shutGroups(d)
		for _, g := range groups {
			t.Rows = append(t.Rows, []cell{names(w.of(g.members)...), text(d.String()), g.peersCell(w, groups), shutCell(g.shut)})
		}
	}
	if len(t.Rows) == 0 {
		p.Text = []sentence{{Text: "No peer is closed to all ports: each can exchange something with each workload.", Warn: true}}
		return p
	}
	p.Text = []sentence{{Text: "For the peers above, ports that are not listed are closed. With these peers, nothing is open:"}}
	p.Tables = []table{t}
	return p
}

// shutGroup are members for which the same peers are closed, for the same reason. within reports that the
// peers are members; each single pod then counts as its own peer, so that more members are equal.
type shutGroup struct {
	shut    *Shut
	within  bool
	members []*reach.Party
	peers   []*reach.Party
}

func (r *Report) shutGroups(d filter.Direction) (all []*shutGroup) {
	known := make(map[string]*shutGroup)
	add := func(m *Member, s *Shut, within bool) {
		row := &Row{Peers: s.Peers}
		if within && m.Single() {
			row = row.and(r, m.Party)
		}
		key := fmt.Sprint(s.Why, s.ByPeers, within, r.key(row))
		if known[key] == nil {
			known[key] = &shutGroup{shut: s, within: within, peers: row.Peers}
			all = append(all, known[key])
		}
		known[key].members = append(known[key].members, m.Party)
	}
	for _, m := range r.Members {
		for _, s := range m.side(d).Closed {
			add(m, s, false)
		}
	}
	for _, m := range r.Members {
		for _, s := range m.side(d).ClosedWithin {
			add(m, s, true)
		}
	}
	return all
}

// largest reports whether g has more peers than every other group with some of the same members. Its
// peers may then be called "all others".
func (g *shutGroup) largest(all []*shutGroup) bool {
	for _, o := range all {
		if o != g && o.within == g.within && len(o.peers) >= len(g.peers) && slices.ContainsFunc(o.members, func(p *reach.Party) bool { return slices.Contains(g.members, p) }) {
			return false
		}
	}
	return true
}

// peersCell names the peers of a group. If the list would be long and the group is the largest, the cell
// says "all others", with their number.
func (g *shutGroup) peersCell(w *words, all []*shutGroup) cell {
	peers := g.peers
	if g.within && len(g.members) == 1 {
		peers = g.shut.Peers
	}
	size := len(newWords(w.report).of(peers))
	switch {
	case g.within && slices.Equal(g.members, g.peers) && len(g.members) > 1:
		return text("each other")
	case size > maxFew && g.largest(all) && g.within:
		return text("all others in " + w.report.scope() + ": " + kinds(peers))
	case size > maxFew && g.largest(all):
		return text("all others: " + kinds(peers))
	}
	return names(w.of(peers)...)
}

func shutCell(s *Shut) cell {
	switch {
	case !s.ByPeers:
		return text(s.Why)
	case s.Why == "":
		return cell{Items: []string{"only by policies of the other end"}, Lines: true, Warn: true}
	}
	return text(s.Why, "where one does, policies of the other end deny it")
}

// limits lists what the answers depend on, and what they do not cover.
func (r *Report) limits() part {
	p := part{Heading: "What the answers depend on"}
	add := func(warn bool, format string, args ...any) {
		p.Text = append(p.Text, sentence{fmt.Sprintf(format, args...), warn})
	}
	var assumed, nodes []*reach.Party
	for _, o := range r.parties {
		if o.Assumed {
			assumed = append(assumed, o)
		}
		if o.Kind == reach.Nodes {
			nodes = append(nodes, o)
		}
	}
	switch depends := r.depends(); {
	case len(assumed) > 0 && depends > 0:
		add(true, "The addresses of %s are not known. %s marked \"depends\": a range of a policy may or may not contain them. They count as open. The ranges of the pods (--pod-cidr), or pods with addresses, settle them.", kinds(assumed), count(depends, "row is", "rows are"))
	case len(assumed) > 0:
		add(false, "The addresses of %s are not known. No answer here depends on them.", kinds(assumed))
	}
	if len(nodes) == 0 {
		add(true, "No Nodes were read: what other nodes send counts as sent from addresses outside the cluster, such as what comes in through a NodePort.")
	}
	add(false, "Sluice judges the packets that begin connections, after the translation of Service addresses; replies pass. What a proxy, an Ingress controller or a gateway passes on comes from that pod, and counts as its.")
	add(false, "A row names the rule that decides. Other rules of NetworkPolicies may allow the same.")
	return p
}

// depends counts the rows that depend on assumed addresses.
func (r *Report) depends() (n int) {
	add := func(rows []*Row) {
		for _, row := range rows {
			if row.Verdict == reach.Depends {
				n++
			}
		}
	}
	for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
		for _, g := range r.groups(d) {
			add(g.rows)
		}
	}
	for _, l := range r.Within {
		add([]*Row{l.Row})
	}
	return n
}

// glossary explains the words that stand for several parties.
func (r *Report) glossary(w *words) part {
	t := table{Head: []string{"name", "meaning"}}
	for done := map[string]bool{}; ; {
		var next []string
		for word := range w.used {
			if !done[word] {
				next = append(next, word)
			}
		}
		if len(next) == 0 {
			break
		}
		for _, word := range next {
			done[word] = true
			t.Rows = append(t.Rows, []cell{names(word), text(w.meaning(word))}) // the next round explains the words in this meaning
		}
	}
	slices.SortFunc(t.Rows, func(a, b []cell) int { return strings.Compare(a[0].Items[0], b[0].Items[0]) })
	return part{Heading: "Names", Tables: []table{t}}
}
