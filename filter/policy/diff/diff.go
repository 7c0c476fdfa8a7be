// Package diff writes the changes that [reach.Compare] finds in who reaches whom, as text, JSON and
// Markdown.
package diff

import (
	"cmp"
	"fmt"
	"slices"

	"sluice/filter/policy/near"
	"sluice/filter/policy/reach"
)

// Report is a comparison in the form in which people read it.
type Report struct {
	// Lines are the changes: first those that open something, then those that close something.
	// Equal changes are one line.
	Lines []Line
	// Opened and Closed are the numbers of pairs of parties between which something opens or closes.
	Opened, Closed int
	// Ways are the ways from outside the cluster that open or close: first those that open.
	Ways []Way
	// New and Gone are the parties that only one of the clusters has.
	New, Gone []*reach.Match
	// Policies are the policies that were added, removed or changed.
	Policies []reach.PolicyState
	// Notes describe what was not compared.
	Notes []string
	// NotRead lists objects that were not read, so that the comparison may lack changes.
	NotRead []fmt.Stringer

	changes []reach.Change
}

// Line is the same change between several parties.
type Line struct {
	Opens    bool
	From, To []string // sources and destinations: names of parties, or words for many, such as "every pod"
	Ports    string   // as in "TCP 80,443, UDP 53"
	By       string   // the policies that cause the change, and conditions

	block block
}

// New returns the report about a comparison. If namespaces are given, it has only the changes of flows
// into and out of these.
func New(d *reach.Diff, namespaces []string) *Report {
	within := func(m *reach.Match) bool {
		return len(namespaces) == 0 || slices.Contains(namespaces, m.Party().Namespace)
	}
	r := &Report{}
	for _, c := range d.Changes {
		if within(c.From) || within(c.To) {
			r.changes = append(r.changes, c)
		}
	}
	r.count()
	r.addPolicies(d.Policies, namespaces)
	for _, m := range d.Matches {
		switch {
		case !within(m):
		case m.Old == nil:
			r.New = append(r.New, m)
		case m.New == nil:
			r.Gone = append(r.Gone, m)
		}
	}
	for _, opens := range []bool{true, false} {
		r.Lines = append(r.Lines, newMerger(d.Matches, opens).lines(r.changes)...)
	}
	inNamespace := func(name string) bool { return len(namespaces) == 0 || slices.Contains(namespaces, name) }
	r.Ways = compareWays(waysOf(d.Old.Inventory(), inNamespace), waysOf(d.New.Inventory(), inNamespace))
	r.addNotes(d)
	return r
}

// addPolicies adds those of the policies that are in the namespaces or in none, and those that cause a
// change.
func (r *Report) addPolicies(policies []reach.PolicyState, namespaces []string) {
	causes := make(map[string]bool)
	for i := range r.changes {
		for _, c := range r.changes[i].Causes {
			causes[c.Policy] = true
		}
	}
	for _, p := range policies {
		if len(namespaces) == 0 || p.Namespace == "" || slices.Contains(namespaces, p.Namespace) || causes[p.Policy] {
			r.Policies = append(r.Policies, p)
		}
	}
}

// count sets Opened and Closed.
func (r *Report) count() {
	type pair struct {
		from, to *reach.Match
		opens    bool
	}
	seen := make(map[pair]bool)
	for _, c := range r.changes {
		p := pair{c.From, c.To, c.Opens}
		switch {
		case seen[p]:
		case c.Opens:
			r.Opened++
		default:
			r.Closed++
		}
		seen[p] = true
	}
}

func (r *Report) addNotes(d *reach.Diff) {
	if d.NodesUnknown {
		r.Notes = append(r.Notes, "the nodes are not compared, because they are known only before or only after the change")
	}
	seen := make(map[string]bool)
	for _, l := range slices.Concat(d.Old.LeftOut, d.New.LeftOut) {
		if text := fmt.Sprintf("left out: %v", l.Why); l.Pod.Ended == "" && !seen[text] {
			seen[text] = true
			r.Notes = append(r.Notes, text)
		}
	}
}

// Summary counts the changes in one line: "2 pairs opened, 1 closed; 1 way from outside opened".
func (r *Report) Summary() string {
	ways := r.waySummary()
	text := cmp.Or(ways, r.pairSummary())
	if ways != "" && r.Opened+r.Closed > 0 {
		text = r.pairSummary() + "; " + ways
	}
	if len(r.NotRead) > 0 {
		text += " (not everything was read)"
	}
	return text
}

func (r *Report) pairSummary() string {
	pairs := func(n int) string {
		if n == 1 {
			return "1 pair"
		}
		return fmt.Sprintf("%d pairs", n)
	}
	switch {
	case r.Opened+r.Closed == 0:
		return "no change in who reaches whom"
	case r.Opened == 0:
		return pairs(r.Closed) + " closed"
	case r.Closed == 0:
		return pairs(r.Opened) + " opened"
	}
	return fmt.Sprintf("%s opened, %d closed", pairs(r.Opened), r.Closed)
}

// maxNames bounds the number of names in each list of a line.
const maxNames = 8

// details returns the lines about new and gone parties, and about policies that differ.
func (r *Report) details() (lines []string) {
	add := func(what string, names []string) {
		if len(names) > 0 {
			lines = append(lines, what+": "+near.List(names, maxNames, ", "))
		}
	}
	add("new", namesOf(r.New))
	add("gone", namesOf(r.Gone))
	for _, s := range []reach.State{reach.Added, reach.Removed, reach.Changed} {
		var names []string
		for _, p := range r.Policies {
			if p.State == s {
				names = append(names, p.Policy)
			}
		}
		add("policies "+s.String(), names)
	}
	return lines
}

func namesOf(matches []*reach.Match) []string {
	names := make([]string, len(matches))
	for i, m := range matches {
		names[i] = m.Name
	}
	return names
}
