package main

import (
	"cmp"
	"net/url"
	"path/filepath"

	"sluice/filter/policy/lint"
	"sluice/watch/manifests"
)

// The parts of SARIF 2.1.0 that lint writes
// (https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html).
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool        sarifTool         `json:"tool"`
		Invocations []sarifInvocation `json:"invocations,omitempty"`
		Results     []sarifResult     `json:"results"`
	}
	sarifInvocation struct {
		Successful    bool                `json:"executionSuccessful"`
		Notifications []sarifNotification `json:"toolExecutionNotifications"`
	}
	sarifNotification struct {
		Level   string       `json:"level"`
		Message sarifMessage `json:"message"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version,omitempty"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID      string       `json:"id"`
		Short   sarifMessage `json:"shortDescription"`
		Full    sarifMessage `json:"fullDescription"`
		Help    sarifHelp    `json:"help"`
		Default sarifLevel   `json:"defaultConfiguration"`
	}
	sarifHelp struct {
		Text     string `json:"text"`
		Markdown string `json:"markdown"`
	}
	sarifLevel struct {
		Level string `json:"level"`
	}
	sarifMessage struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		Rule      string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifMessage    `json:"message"`
		Locations []sarifLocation `json:"locations,omitempty"`
	}
	sarifLocation struct {
		Physical *sarifPhysical `json:"physicalLocation,omitempty"`
		Logical  []sarifLogical `json:"logicalLocations,omitempty"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   *sarifRegion  `json:"region,omitempty"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine int `json:"startLine"`
	}
	sarifLogical struct {
		Name string `json:"fullyQualifiedName"`
	}
)

// sarif returns the report as SARIF.
func (r *lintReport) sarif() sarifLog {
	run := sarifRun{Results: []sarifResult{}}
	run.Tool.Driver = sarifDriver{Name: "sluice lint", Version: version()}
	index := make(map[string]int)
	for i, c := range lint.Checks() {
		index[c.ID] = i
		run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{
			ID: c.ID, Short: sarifMessage{c.Summary}, Full: sarifMessage{c.Meaning()}, Help: sarifHelp{c.Meaning(), c.Help()},
			Default: sarifLevel{sarifLevelOf(c.Severity)},
		})
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		result := sarifResult{Rule: f.Check, RuleIndex: index[f.Check], Level: sarifLevelOf(f.Severity), Message: sarifMessage{f.message()}}
		var at sarifLocation
		if f.Line > 0 && f.File != manifests.StdinName {
			at.Physical = &sarifPhysical{sarifArtifact{uriOf(fromHere(f.File))}, &sarifRegion{f.Line}}
		}
		if name := cmp.Or(f.Object, f.File); name != "" {
			at.Logical = []sarifLogical{{name}}
		}
		result.Locations = []sarifLocation{at}
		run.Results = append(run.Results, result)
	}
	if len(r.NotRead) > 0 {
		invocation := sarifInvocation{Successful: true}
		for _, line := range manifests.LinesOf(r.NotRead) {
			invocation.Notifications = append(invocation.Notifications, sarifNotification{"warning", sarifMessage{notReadText(line)}})
		}
		run.Invocations = []sarifInvocation{invocation}
	}
	return sarifLog{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}}
}

func sarifLevelOf(s lint.Severity) string {
	if s == lint.Info {
		return "note"
	}
	return s.String()
}

// uriOf returns a path as a URI reference. A relative path becomes a relative reference.
func uriOf(path string) string {
	u := url.URL{Path: filepath.ToSlash(path)}
	if filepath.IsAbs(path) {
		u.Scheme = "file"
	}
	return u.String()
}
