package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sluice/filter/policy/lint"
)

// lintPage is the page that describes the checks of lint.
const lintPage = "filter/policy/lint/README.md"

// The page has a section for each check, with its severity and examples. lint prints exactly the
// findings that the page shows for an example, and none for a corrected example. With
// SLUICE_UPDATE_SCRIPTS set, the test writes the findings to the page.
func TestLintPage(t *testing.T) {
	p := onePage(t, lintPage)
	var checks, sections []string
	for _, c := range lint.Checks() {
		checks = append(checks, c.ID)
		if row := fmt.Sprintf("| [%s](#%s) | %s | %s |", c.ID, c.ID, c.Severity, c.Summary); !slices.Contains(p.lines, row) {
			t.Errorf("the page does not have the line %s", row)
		}
		if want := "**" + c.Severity.String() + ".** "; !strings.HasPrefix(c.Help(), want) || c.Meaning() == "" {
			t.Errorf("the section %s begins with %.20q, want %q and what the check means", c.ID, c.Help(), want)
		}
	}
	var lines []string
	last, id, cluster, bad := 0, "", "", ""
	for _, b := range p.blocks() {
		for _, line := range p.lines[last:b.first] {
			if name, is := strings.CutPrefix(line, "## "); is {
				id, bad = name, ""
				sections = append(sections, name)
			}
		}
		lines = append(lines, p.lines[last:b.first]...)
		last = b.end
		text := strings.Join(p.lines[b.first:b.end], "\n") + "\n"
		switch {
		case id == "":
			cluster = text
		case b.language == "text":
			got := lintExample(t, id, cluster, bad)
			findings, _, _ := strings.Cut(got, "\n\n")
			checkExample(t, id, findings+"\n", text)
			lines = append(lines, strings.Split(findings, "\n")...)
			continue
		case bad == "":
			bad = text
		default:
			if got := lintExample(t, id, cluster, text); !strings.HasPrefix(got, "0 findings") {
				t.Errorf("%s: what is right has findings:\n%s", id, got)
			}
		}
		lines = append(lines, p.lines[b.first:b.end]...)
	}
	sections = append(sections, lint.Invalid) // no example in a file can have this finding
	slices.Sort(checks)
	slices.Sort(sections)
	if sections = slices.Compact(sections); !slices.Equal(checks, sections) {
		t.Errorf("the page has sections of %v, want %v", sections, checks)
	}
	if os.Getenv("SLUICE_UPDATE_SCRIPTS") != "" {
		lines = append(lines, p.lines[last:]...)
		if err := os.WriteFile(filepath.Join(module, lintPage), []byte(strings.Join(lines, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// checkExample compares the findings about an example with the findings on the page.
func checkExample(t *testing.T, id, got, want string) {
	t.Helper()
	if got != want && os.Getenv("SLUICE_UPDATE_SCRIPTS") == "" {
		t.Errorf("%s: lint prints\n%s\nand the page shows\n%s", id, got, want)
	}
	if n := strings.Count(got, "\n      hint: "); n == 0 || n != strings.Count(got, "  ["+id+"]\n") {
		t.Errorf("%s: its example has other findings:\n%s", id, got)
	}
}

// lintExample runs lint on an example. It ignores the check not-isolated, except in the example of this
// check, because most examples have pods that no policy isolates.
func lintExample(t *testing.T, id, cluster, policies string) (printed string) {
	t.Helper()
	t.Run(id, func(t *testing.T) { printed = lintIn(t, id, cluster, policies) })
	return printed
}

func lintIn(t *testing.T, id, cluster, policies string) string {
	t.Helper()
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{"cluster.yaml": cluster, "policy.yaml": policies} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"lint", "-f", "cluster.yaml", "-f", "policy.yaml", "--fail-on", "none"}
	if id != lint.NotIsolated {
		args = append(args, "--ignore", lint.NotIsolated)
	}
	var out, errs bytes.Buffer
	if s := run(t.Context(), env{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}, args); s != 0 {
		t.Fatalf("%s: status %d: %s", id, s, &errs)
	}
	return out.String()
}

// The help lists each check with its severity and its summary.
func TestLintHelp(t *testing.T) {
	var out bytes.Buffer
	if s := run(t.Context(), env{stdout: &out, stderr: &out, getenv: func(string) string { return "" }}, []string{"lint", "--help"}); s != 0 {
		t.Fatalf("status %d: %s", s, &out)
	}
	for _, c := range lint.Checks() {
		line := fmt.Sprintf("  %-16s %-8s %s\n", c.ID, c.Severity, c.Summary)
		if strings.Count(out.String(), line) != 1 {
			t.Errorf("the help does not have the line %q once", line)
		}
		if len(line) > 100 {
			t.Errorf("the line of %s is longer than 100 bytes", c.ID)
		}
	}
}
