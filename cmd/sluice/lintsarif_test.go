package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/owenrumney/go-sarif/v3/pkg/report/v210/sarif"

	"sluice/filter/policy/lint"
	"sluice/watch/manifests"
)

// The output is valid against the schema of SARIF 2.1.0, even if findings lack a file or a line, and it
// describes each check.
func TestSarifIsValid(t *testing.T) {
	r := lintReport{Findings: []finding{
		{Check: lint.NoDNS, Severity: lint.Warning, File: "a dir/x.yaml", Line: 3, Document: 1, Object: "NetworkPolicy default/x", Field: "spec.egress", Detail: "a", Hint: "b"},
		{Check: lint.Manifest, Severity: lint.Error, File: "/abs/y.yaml", Detail: "a"},
		{Check: lint.Covered, Severity: lint.Info, File: "https://192.0.2.1:6443", Object: "NetworkPolicy default/x", Detail: "a", Hint: "b"},
	}}
	for name, r := range map[string]lintReport{"findings": r, "none": {}, "not read": {NotRead: []manifests.NotRead{{Kind: manifests.Kind{Group: "cilium.io", Name: "CiliumNetworkPolicy"}, Count: 1}}}} {
		log := r.sarif()
		if err := validateSarif(t, log); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if n := len(log.Runs[0].Tool.Driver.Rules); n != len(lint.Checks()) {
			t.Errorf("%d rules", n)
		}
		for _, rule := range log.Runs[0].Tool.Driver.Rules {
			if rule.Help.Text == "" || !strings.Contains(rule.Help.Markdown, "** ") || rule.Full.Text == "" {
				t.Errorf("rule %s has help %+v", rule.ID, rule.Help)
			}
		}
	}
	wrong := r.sarif()
	wrong.Runs[0].Results[0].Level = "info" // not a level of SARIF
	if validateSarif(t, wrong) == nil {
		t.Error("a level that SARIF does not have is valid")
	}
	if got := r.sarif().Runs[0].Results[0].Locations[0].Physical.Artifact.URI; got != "a%20dir/x.yaml" {
		t.Errorf("uri %s", got)
	}
}

// validateSarif validates a log against the schema. It also returns an error for a field that SARIF
// does not have: the library's types have all fields of SARIF.
func validateSarif(t *testing.T, log sarifLog) error {
	t.Helper()
	text, err := json.Marshal(log)
	if err != nil {
		t.Fatal(err)
	}
	var report sarif.Report
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&report); err != nil {
		return err
	}
	// Validate encodes all fields of the library's types again. Fields that our log omits need valid
	// values for this.
	filled, err := sarif.FromBytes(text)
	if err != nil {
		return err
	}
	for _, r := range filled.Runs {
		r.NewlineSequences = []string{"\n"}
		r.Language, r.Tool.Driver.Language = "en-US", "en-US"
	}
	return filled.Validate()
}

// Each annotation of GitHub Actions is one line. Messages and properties escape characters that have a
// meaning in it.
func TestGitHubAnnotations(t *testing.T) {
	r := lintReport{Findings: []finding{
		{Check: lint.NoDNS, Severity: lint.Warning, File: "a,b:c%/x.yaml", Line: 3, Object: "NetworkPolicy default/x", Field: "spec.egress", Detail: "100% of\r\nit", Hint: "a: b, c"},
		{Check: lint.Manifest, Severity: lint.Error, File: "y.yaml", Detail: "::error::"},
		{Check: lint.Covered, Severity: lint.Info, Line: 0, Detail: "x"},
	}}
	want := "::warning file=a%2Cb%3Ac%25/x.yaml,line=3,title=sluice lint%3A no-dns::NetworkPolicy default/x, spec.egress: 100%25 of%0D%0Ait: a: b, c\n" +
		"::error title=sluice lint%3A manifest::::error::\n" +
		"::notice title=sluice lint%3A covered::x\n"
	if got := r.github(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}
