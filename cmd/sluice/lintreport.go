package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy"
	"sluice/filter/policy/lint"
	"sluice/filter/policy/near"
	"sluice/watch/manifests"
)

// finding is a part of a file that cannot be read, or that is probably not intended.
type finding struct {
	Check    string        `json:"check"` // id of the check, as in the help
	Severity lint.Severity `json:"severity"`
	File     string        `json:"file,omitempty"`
	Line     int           `json:"line,omitempty"`     // from 1
	Document int           `json:"document,omitempty"` // number of the document in the file, from 1
	Object   string        `json:"object,omitempty"`
	Field    string        `json:"field,omitempty"`
	Detail   string        `json:"detail"`
	Hint     string        `json:"hint"`
	Count    int           `json:"count,omitempty"` // number of rules or pods that the finding is about, if there are several
}

// lintReport is what lint has found.
type lintReport struct {
	Findings []finding           `json:"findings"`
	Counts   lintCounts          `json:"counts"`
	NotRead  []manifests.NotRead `json:"notRead"` // kinds of objects that were not read, although they may change what is allowed
}

// lintCounts has the numbers of findings.
type lintCounts struct {
	Error   int `json:"error"`
	Warning int `json:"warning"`
	Info    int `json:"info"`
	Ignored int `json:"ignored"` // findings that the user has chosen to ignore
}

// reportOf lints the objects. The parameter ignore lists checks whose findings the report omits.
func reportOf(e env, m *compiled, ignore []string) *lintReport {
	l := &m.loaded
	r := &lintReport{Findings: []finding{}, NotRead: l.NotRead} // not nil, so that JSON has [] instead of null
	if r.NotRead == nil {
		r.NotRead = []manifests.NotRead{}
	}
	ignores := ignoredBy(e, l)
	lines := l.Lines()
	for _, f := range lintFindings(m) {
		if !l.concerns(f.Object) || m.uncertain(f.Check) {
			continue
		}
		if f.Check != lint.Manifest && (slices.Contains(ignore, f.Check) || ignores.has(f.Object, f.Check)) {
			r.Counts.Ignored++
			continue
		}
		f.Severity = lint.SeverityOf(f.Check)
		f.Line = lines.Line(f.File, f.Document, f.Object, f.Field)
		r.Counts.add(f.Severity)
		r.Findings = append(r.Findings, f)
	}
	slices.SortStableFunc(r.Findings, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Document, b.Document), cmp.Compare(a.Object, b.Object), cmp.Compare(a.Line, b.Line))
	})
	return r
}

func (c *lintCounts) add(s lint.Severity) {
	switch s {
	case lint.Error:
		c.Error++
	case lint.Warning:
		c.Warning++
	default:
		c.Info++
	}
}

// failsOn reports whether there are findings of at least the given severity.
func (r *lintReport) failsOn(severity string) bool {
	switch severity {
	case lint.Error.String():
		return r.Counts.Error > 0
	case lint.Warning.String():
		return r.Counts.Error+r.Counts.Warning > 0
	case lint.Info.String():
		return len(r.Findings) > 0
	}
	return false
}

// lintFindings returns all findings, grouped by object.
func lintFindings(m *compiled) (found []finding) {
	of := func(check string, p manifests.Problem) finding {
		return finding{Check: check, File: p.File, Document: p.Document, Object: p.Object, Field: p.Field, Detail: p.What(), Hint: p.Hint}
	}
	broken := make(map[manifests.Origin]bool)
	for _, p := range m.problems {
		broken[manifests.Origin{File: p.File, Document: p.Document}] = true
		found = append(found, of(lint.Manifest, p))
	}
	for _, p := range m.Outdated {
		found = append(found, of(lint.APIVersion, p))
	}
	for _, f := range lint.Check(m.inventory) {
		at := m.Origins[f.Object]
		if !broken[at] { // a finding about an object that was only read in part may be wrong
			found = append(found, finding{Check: f.Check, File: at.File, Document: at.Document, Object: f.Object, Field: f.Field, Detail: f.Detail, Hint: f.Hint, Count: f.Count})
		}
	}
	for _, p := range m.Holes {
		if !broken[manifests.Origin{File: p.File, Document: p.Document}] {
			found = append(found, of(lint.Empty, p))
		}
	}
	slices.SortStableFunc(found, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Document, b.Document), cmp.Compare(a.Object, b.Object))
	})
	return found
}

// uncertain reports whether the findings of a check may be wrong, because objects that matter to it
// could not be read, or were only read in part. All policies matter to checks of both ends of a flow.
func (m *compiled) uncertain(check string) bool {
	twoEnds := check == lint.OneSided || check == lint.OneSidedPart
	if twoEnds && slices.ContainsFunc(m.problems, func(p manifests.Problem) bool { return strings.Contains(p.Object, "NetworkPolicy ") }) {
		return true
	}
	return (twoEnds || check == lint.NoMatch || check == lint.NoPort) && slices.ContainsFunc(m.NotRead, func(n manifests.NotRead) bool {
		return n.Reason != "" && (slices.Contains([]string{"Pod", "Namespace", "Node"}, n.Name) && n.Group == "" || twoEnds && strings.HasSuffix(n.Name, "NetworkPolicy"))
	})
}

// ignores lists, for each object with the annotation, the checks that the annotation names. The keys
// are as in "Pod shop/web".
type ignores map[string][]string

// ignoredBy reads the annotations of all objects. It prints a note for each check that does not exist,
// or that cannot be ignored.
func ignoredBy(e env, l *loaded) ignores {
	all := make(ignores)
	add := func(object, text string) {
		if text == "" {
			return
		}
		for _, check := range strings.Split(text, ",") {
			all[object] = append(all[object], strings.TrimSpace(check))
		}
		if err := ignorable(all[object]); err != nil && l.concerns(object) {
			e.say("note: %s, metadata.annotations[%q]: %v", object, policy.LintIgnoreAnnotation, err)
		}
	}
	for _, n := range l.Namespaces {
		add("Namespace "+n.Name, n.Annotations[policy.LintIgnoreAnnotation])
	}
	for _, p := range l.Policies {
		add(p.Ref.Object(), p.LintIgnore)
	}
	for _, w := range l.Workloads {
		add(w.Ref.Object(), w.LintIgnore)
	}
	return all
}

// has reports whether the report omits the findings of a check about an object.
func (i ignores) has(object, check string) bool {
	_, name, _ := strings.Cut(object, " ")
	namespace, _, _ := strings.Cut(name, "/")
	return slices.Contains(i[object], check) || strings.Contains(name, "/") && slices.Contains(i["Namespace "+namespace], check)
}

// ignorable returns an error if a check does not exist, or cannot be ignored.
func ignorable(names []string) error {
	var all []string
	for _, c := range lint.Checks() {
		all = append(all, c.ID)
	}
	for _, name := range names {
		switch {
		case name == lint.Manifest:
			return fmt.Errorf("%s cannot be ignored: the other checks rely on objects that can be read, and the API server would reject these", name)
		case slices.Contains(all, name):
			continue
		}
		if best, ok := near.Name(name, all); ok {
			return fmt.Errorf("there is no check %q: did you mean %s?", name, best)
		}
		return fmt.Errorf("there is no check %q: the checks are %s", name, strings.Join(all, ", "))
	}
	return nil
}
