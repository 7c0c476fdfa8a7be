package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/lint"
	"sluice/watch/manifests"
)

// write writes the report in the given format.
func (r *lintReport) write(out io.Writer, format string, l *loaded) error {
	switch format {
	case "json":
		return writeJSON(out, r)
	case "sarif":
		return writeJSON(out, r.sarif())
	case "github":
		_, err := io.WriteString(out, r.github())
		return err
	}
	_, err := io.WriteString(out, r.text(l))
	return err
}

func writeJSON(out io.Writer, value any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(value)
}

// text returns the findings as text, grouped by object.
func (r *lintReport) text(l *loaded) string {
	var b strings.Builder
	last := ""
	for _, f := range r.Findings {
		head := f.File
		if f.Document > 0 {
			head += fmt.Sprintf(", document %d", f.Document)
		}
		if f.Object != "" {
			head = strings.TrimPrefix(head+": "+f.Object, ": ")
		}
		if head != last {
			fmt.Fprintln(&b, head)
		}
		last = head
		var place string
		if f.Line > 0 {
			place = fmt.Sprintf("%s:%d: ", f.File, f.Line)
		}
		if f.Field != "" {
			place += f.Field + ": "
		}
		fmt.Fprintf(&b, "  %s%s: %s  [%s]\n      hint: %s\n", place, f.Severity, f.Detail, f.Check, f.Hint)
	}
	if len(r.Findings) > 0 {
		fmt.Fprintln(&b)
	}
	return b.String() + r.summary(l)
}

// summary returns the last lines of the text: the number of findings, and the objects that were
// checked.
func (r *lintReport) summary(l *loaded) string {
	policies := slices.DeleteFunc(slices.Clone(l.Policies), func(p *policy.Policy) bool { return !l.within(p.Ref.Namespace) })
	pods := slices.DeleteFunc(slices.Clone(l.Pods), func(p *policy.Pod) bool { return !l.within(p.Namespace) })
	namespaces := slices.DeleteFunc(slices.Clone(l.Namespaces), func(n *corev1.Namespace) bool { return !l.within(n.Name) })
	workloads := slices.DeleteFunc(slices.Clone(l.Workloads), func(w *kubepod.Workload) bool { return !l.within(w.Ref.Namespace) })
	text := count(len(r.Findings), "finding", "findings")
	var kinds []string
	for _, c := range []struct {
		n         int
		one, many string
	}{{r.Counts.Error, "error", "errors"}, {r.Counts.Warning, "warning", "warnings"}, {r.Counts.Info, "info", "infos"}, {r.Counts.Ignored, "ignored", "ignored"}} {
		if c.n > 0 {
			kinds = append(kinds, count(c.n, c.one, c.many))
		}
	}
	if len(kinds) > 0 {
		text += " (" + strings.Join(kinds, ", ") + ")"
	}
	in := []string{count(len(policies), "policy", "policies"), count(len(pods), "pod", "pods")}
	if len(workloads) > 0 {
		in = append(in, count(len(workloads), "workload", "workloads"))
	}
	text += " in " + strings.Join(append(in, count(len(namespaces), "namespace", "namespaces")), ", ") + "\n"
	if len(l.Pods)+len(l.Workloads) == 0 && len(l.Policies) > 0 {
		text += "There are no pods and no workloads, so selectors were not checked.\n"
	}
	return text
}

// github returns the findings as annotations of GitHub Actions, one per line.
func (r *lintReport) github() string {
	var b strings.Builder
	message := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	property := strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
	for _, f := range r.Findings {
		level := map[lint.Severity]string{lint.Error: "error", lint.Warning: "warning", lint.Info: "notice"}[f.Severity]
		where, text := "", f.message()
		switch {
		case f.Line > 0 && f.File == manifests.StdinName:
			text = fmt.Sprintf("line %d of the %s: %s", f.Line, f.File, text)
		case f.Line > 0:
			where = fmt.Sprintf("file=%s,line=%d,", property.Replace(filepath.ToSlash(fromHere(f.File))), f.Line)
		}
		fmt.Fprintf(&b, "::%s %stitle=%s::%s\n", level, where, property.Replace("sluice lint: "+f.Check), message.Replace(text))
	}
	for _, line := range manifests.LinesOf(r.NotRead) {
		fmt.Fprintf(&b, "::notice title=%s::%s\n", property.Replace("sluice lint: not read"), message.Replace(notReadText(line)))
	}
	return b.String()
}

// fromHere returns an absolute path below the working directory relative to it, and other paths
// unchanged. The services that show reports know files by their paths in the repository.
func fromHere(path string) string {
	dir, err := os.Getwd()
	if err != nil || !filepath.IsAbs(path) {
		return path
	}
	if rel, err := filepath.Rel(dir, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return path
}

// notReadText describes a line of manifests.LinesOf as a notification.
func notReadText(line string) string {
	return "not read, so that there are no findings about it: " + line
}

// message returns the finding in one line, without its file.
func (f *finding) message() string {
	var parts []string
	for _, part := range []string{f.Object, f.Field} {
		if part != "" {
			parts = append(parts, part)
		}
	}
	text := f.Detail
	if len(parts) > 0 {
		text = strings.Join(parts, ", ") + ": " + text
	}
	if f.Hint != "" {
		text += ": " + f.Hint
	}
	return text
}

// count returns n and its unit, in the singular (one) or the plural (many).
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
