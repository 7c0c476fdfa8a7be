package diff

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"sluice/filter/policy/near"
	"sluice/filter/policy/reach"
)

// maxColumn bounds the width of an aligned column; wider cells are not aligned.
const maxColumn = 60

// WriteText writes a line for each change, and a summary.
func (r *Report) WriteText(out io.Writer) error {
	rows := make([][3]string, len(r.Lines), len(r.Lines)+len(r.Ways))
	for i, l := range r.Lines {
		sign := "- "
		if l.Opens {
			sign = "+ "
		}
		rows[i] = [3]string{sign + near.List(l.From, maxNames, ", ") + " → " + near.List(l.To, maxNames, ", "), l.Ports, l.By}
	}
	for _, w := range r.Ways {
		rows = append(rows, w.row())
	}
	var widths [2]int
	for _, row := range rows {
		for j := range widths {
			if n := utf8.RuneCountInString(row[j]); n <= maxColumn {
				widths[j] = max(widths[j], n)
			}
		}
	}
	var b strings.Builder
	for _, row := range rows {
		for j := range widths {
			fmt.Fprintf(&b, "%s  ", row[j]+strings.Repeat(" ", max(0, widths[j]-utf8.RuneCountInString(row[j]))))
		}
		b.WriteString(row[2] + "\n")
	}
	if len(rows) > 0 {
		b.WriteString("\n")
	}
	b.WriteString(r.Summary() + "\n")
	for _, line := range r.details() {
		b.WriteString(line + "\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// foldAfter is the largest number of rows in a table of the Markdown that is not folded.
const foldAfter = 10

// WriteMarkdown writes the report for a comment on a pull request, and folds long tables.
func (r *Report) WriteMarkdown(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "**Network policies: %s**\n", r.Summary())
	for i, n := range r.NotRead {
		if i == 0 {
			b.WriteString("\n> Not read, so that changes of what they allow or deny are missing here:\n")
		}
		fmt.Fprintf(&b, "> - %s\n", reach.Markdown(n.String()))
	}
	for _, opens := range []bool{true, false} {
		r.table(&b, opens)
	}
	if details := r.details(); len(details) > 0 {
		b.WriteString("\n")
		for _, line := range details {
			fmt.Fprintf(&b, "- %s\n", reach.Markdown(line))
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "\n> %s\n", reach.Markdown(note))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func (r *Report) table(b *strings.Builder, opens bool) {
	var rows []string
	for _, l := range r.Lines {
		if l.Opens == opens {
			rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s |\n", coded(l.From), coded(l.To), reach.Markdown(l.Ports), reach.Markdown(l.By)))
		}
	}
	for _, w := range r.Ways {
		if w.Opens == opens {
			rows = append(rows, fmt.Sprintf("| %s | %s | %s | %s |\n", outside, coded([]string{w.To}), reach.Markdown(w.Port), reach.Markdown(w.by())))
		}
	}
	if len(rows) == 0 {
		return
	}
	title := "Closes"
	if opens {
		title = "Opens"
	}
	if len(rows) > foldAfter {
		fmt.Fprintf(b, "\n<details><summary>%s (%d lines)</summary>\n", title, len(rows))
	} else {
		fmt.Fprintf(b, "\n%s:\n", title)
	}
	b.WriteString("\n| From | To | Ports | Why |\n|---|---|---|---|\n")
	for _, row := range rows {
		b.WriteString(row)
	}
	if len(rows) > foldAfter {
		b.WriteString("\n</details>\n")
	}
}

func coded(names []string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = "`" + n + "`"
	}
	return near.List(quoted, maxNames, ", ")
}

// The JSON form.
type (
	jsonReport struct {
		Opened   int          `json:"opened"` // pairs of parties
		Closed   int          `json:"closed"`
		Changes  []jsonChange `json:"changes"`
		Outside  []jsonWay    `json:"outside,omitempty"` // ways from outside the cluster
		New      []string     `json:"new"`
		Gone     []string     `json:"gone"`
		Policies []jsonPolicy `json:"policies"`
		Notes    []string     `json:"notes,omitempty"`
		// NotRead are the kinds of objects that were not read, each with the side.
		NotRead []fmt.Stringer `json:"notRead,omitempty"`
	}
	// jsonChange is the same change from each party in From to each party in To, but not from a
	// single pod to itself.
	jsonChange struct {
		Change  string      `json:"change"` // "opened" or "closed"
		From    []string    `json:"from"`
		To      []string    `json:"to"`
		Ports   []string    `json:"ports"` // as in "TCP 80", "UDP 8000-8100", "ICMP"
		Family  string      `json:"family,omitempty"`
		OwnNode bool        `json:"ownNode,omitempty"` // only between pods and the node on which they run
		Depends bool        `json:"depends,omitempty"` // the change depends on addresses that are not known
		Causes  []jsonCause `json:"causes"`
		Why     string      `json:"why"`
	}
	jsonWay struct {
		Change string `json:"change"` // "opened" or "closed"
		To     string `json:"to"`
		Port   string `json:"port"` // of the pods
		By     string `json:"by"`
		Why    string `json:"why"`
	}
	jsonCause struct {
		Policy    string `json:"policy"`
		State     string `json:"state"` // "added", "removed", "changed" or "unchanged"
		Role      string `json:"role"`
		Direction string `json:"direction"`
		Rule      *int   `json:"rule,omitempty"` // from 0
		RuleName  string `json:"ruleName,omitempty"`
	}
	jsonPolicy struct {
		Policy string `json:"policy"`
		State  string `json:"state"`
	}
)

// WriteJSON writes the changes with the names of all parties.
func (r *Report) WriteJSON(out io.Writer) error {
	j := jsonReport{Opened: r.Opened, Closed: r.Closed, Changes: []jsonChange{}, New: namesOf(r.New), Gone: namesOf(r.Gone), Policies: []jsonPolicy{}, Notes: r.Notes, NotRead: r.NotRead}
	for i := range r.Lines {
		j.Changes = append(j.Changes, jsonOf(&r.Lines[i]))
	}
	for _, w := range r.Ways {
		j.Outside = append(j.Outside, jsonWay{changeWord(w.Opens), w.To, w.Port, w.By, w.Why})
	}
	for _, p := range r.Policies {
		j.Policies = append(j.Policies, jsonPolicy{p.Policy, p.State.String()})
	}
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(j)
}

func changeWord(opens bool) string {
	if opens {
		return "opened"
	}
	return "closed"
}

func jsonOf(l *Line) jsonChange {
	c := l.block.change
	j := jsonChange{
		Change: changeWord(l.Opens), From: namesOf(l.block.from), To: namesOf(l.block.to),
		Family: c.Family, OwnNode: c.OwnNode, Depends: c.Maybe, Causes: []jsonCause{}, Why: l.By,
	}
	for _, s := range c.Spans {
		j.Ports = append(j.Ports, s.String())
	}
	for _, x := range c.Causes {
		one := jsonCause{Policy: x.Policy, State: x.State.String(), Role: x.Role.String(), Direction: x.Direction.String(), RuleName: x.RuleName}
		if x.Rule >= 0 {
			one.Rule = &x.Rule
		}
		j.Causes = append(j.Causes, one)
	}
	return j
}
