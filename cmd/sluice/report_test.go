//go:build linux

package main

import (
	"regexp"
	"strings"
	"testing"
)

var (
	digestLine = regexp.MustCompile(`(?m)^Inputs: +(sha256:[0-9a-f]{64})$`)
	rulePlace  = regexp.MustCompile(`[a-z.]+\.yaml:\d+`)
)

// A report about a cluster has the same digest and answers as a report about its manifests. It names
// the context. Without -n, it is about the context's namespace.
func TestReportOfACluster(t *testing.T) {
	dir := matrixDir(t, matrixCluster)
	kubeconfig := liveCluster(t, dir, nil)
	status, live, stderr := sluice(t, "report", "--kubeconfig", kubeconfig, "-A")
	if status != 0 || stderr != "" {
		t.Fatalf("status %d, %s", status, stderr)
	}
	_, files, _ := sluice(t, "report", "-f", dir)
	if a, b := digestLine.FindString(live), digestLine.FindString(files); a == "" || a != b {
		t.Errorf("the digests are %q and %q", a, b)
	}
	if a, b := summaryOf(live), summaryOf(files); a == "" || a != b {
		t.Errorf("of the cluster:\n%s\nof the manifests:\n%s", a, b)
	}
	if !strings.Contains(live, "Read from:  context ") || rulePlace.MatchString(live) || !rulePlace.MatchString(files) {
		t.Errorf("where it is from:\n%s", live)
	}
	status, stdout, _ := sluice(t, "report", "--kubeconfig", kubeconfig)
	if status != 0 || !strings.Contains(stdout, "Scope:      namespace default\n") {
		t.Errorf("status %d\n%s", status, stdout)
	}
}

func summaryOf(report string) string {
	_, rest, _ := strings.Cut(report, "\nSummary\n")
	summary, _, _ := strings.Cut(rest, "\nWorkloads\n")
	return summary
}

// Equal objects give equal reports, in whatever files they are, except for the places of rules.
func TestReportIsTheSameEachTime(t *testing.T) {
	dir := clusterDir(t, 1, 90)
	for _, format := range []string{"text", "markdown", "json", "html"} {
		_, first, _ := sluice(t, "report", "-f", dir, "-o", format, "--date", "2026-01-31")
		for range 3 {
			if _, again, _ := sluice(t, "report", "-f", dir, "-o", format, "--date", "2026-01-31"); again != first {
				t.Fatalf("the reports as %s differ", format)
			}
		}
	}
}

// BenchmarkReport reports about all namespaces of a cluster of 300 pods.
func BenchmarkReport(b *testing.B) {
	dir := clusterDir(b, 1, 90)
	for b.Loop() {
		if status := run(b.Context(), env{stdout: &strings.Builder{}, stderr: &strings.Builder{}}, []string{"report", "-f", dir, "-o", "html"}); status != 0 {
			b.Fatalf("status %d", status)
		}
	}
}
