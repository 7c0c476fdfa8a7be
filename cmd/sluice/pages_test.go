package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// link matches a link in Markdown, or the reference of a link or picture in HTML.
var link = regexp.MustCompile(`\]\(([^)\s]+)\)|\b(?:src|srcset|href)="([^"\s]+)"`)

// The links on all pages lead to existing files and headings.
func TestPageLinks(t *testing.T) {
	pages, found := allPages(t), 0
	anchors := make(map[string][]string)
	for _, p := range pages {
		anchors[p.path] = p.anchors()
	}
	for _, p := range pages {
		for _, l := range link.FindAllStringSubmatch(p.prose(), -1) {
			target := l[1] + l[2]
			if strings.Contains(target, ":") {
				continue
			}
			found++
			path, anchor, has := strings.Cut(target, "#")
			file := filepath.Join(filepath.Dir(p.path), path)
			if path == "" {
				file = p.path
			}
			if _, err := os.Stat(filepath.Join(module, file)); err != nil {
				t.Errorf("%s: a link: %v", p.path, err)
			} else if has && !slices.Contains(anchors[file], anchor) {
				t.Errorf("%s links to %s, and %s has no such heading", p.path, target, file)
			}
		}
	}
	if found == 0 {
		t.Error("no links were found")
	}
}

// prose returns the text of a page without its blocks.
func (p page) prose() string {
	var parts []string
	last := 0
	for _, b := range p.blocks() {
		parts = append(parts, p.lines[last:b.first-1]...)
		last = min(b.end+1, len(p.lines))
	}
	return strings.Join(append(parts, p.lines[last:]...), "\n")
}

var (
	heading = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	// linkText matches the part of a heading that links somewhere.
	linkText = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	// notInAnchor matches the characters of a heading that its anchor omits.
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}\p{M}_ -]`)
)

// anchors returns the anchors that GitHub and GitLab generate for the headings of a page.
func (p page) anchors() (anchors []string) {
	for _, m := range heading.FindAllStringSubmatch(p.prose(), -1) {
		text := notInAnchor.ReplaceAllString(strings.ToLower(linkText.ReplaceAllString(m[1], "$1")), "")
		anchors = append(anchors, strings.ReplaceAll(strings.TrimSpace(text), " ", "-"))
	}
	return anchors
}

// The page that a newcomer reads first is short. A test runs each of its blocks of commands, unless the
// page gives the reason why not.
func TestReadmeIsShort(t *testing.T) {
	const limit = 300
	p := onePage(t, "README.md")
	if n := len(p.lines) - 1; n > limit {
		t.Errorf("README.md has %d lines, want at most %d: move details to the page of the part", n, limit)
	}
	for _, b := range p.blocks() {
		if b.language != "console" && !b.notRun {
			t.Errorf("README.md:%d: the block is not of commands that a test runs, and has no comment %q REASON -->", b.first, notRun)
		}
	}
}

// Tests of pages cannot produce some outputs, such as those of a node with problems. These are also in
// files, which other tests compare with the output of the program.
func TestOutputsOfPages(t *testing.T) {
	found := 0
	for _, p := range allPages(t) {
		for _, b := range p.blocks() {
			if b.outputFile == "" {
				continue
			}
			text, err := os.ReadFile(filepath.Join(module, b.outputFile))
			if err != nil {
				t.Fatalf("%s:%d: %v", p.path, b.first, err)
			}
			for _, c := range readmeCommands(p.lines[b.first:b.end]) {
				for line := range strings.Lines(c.output) {
					found++
					if !strings.Contains("\n...\n"+string(text), "\n"+strings.TrimSuffix(line, "...\n")) {
						t.Errorf("%s: %s does not have the line %s", p.path, b.outputFile, line)
					}
				}
			}
		}
	}
	if found == 0 {
		t.Error("no output was found")
	}
}

// Commands on pages that no test runs use only existing targets of make, files, values of the chart,
// and flags.
func TestCommandsOfPages(t *testing.T) {
	found := 0
	for _, p := range allPages(t) {
		for _, b := range p.blocks() {
			if b.language != "sh" && (b.language != "console" || !b.notRun) {
				continue
			}
			for _, line := range p.lines[b.first:b.end] {
				text, is := strings.CutPrefix(line, "$ ")
				if is || b.language == "sh" {
					found++
					t.Run(text, func(t *testing.T) { checkCommand(t, strings.TrimPrefix(text, "sudo ")) })
				}
			}
		}
	}
	if found == 0 {
		t.Error("no commands were found")
	}
}

func checkCommand(t *testing.T, text string) {
	t.Helper()
	text, _, _ = strings.Cut(text, " #")
	if target, is := strings.CutPrefix(text, "make "); is {
		checkTarget(t, target)
		return
	}
	fields := strings.Fields(text)
	if _, flags, is := strings.Cut(text, "sluice "); is && strings.HasPrefix(text, "sluice ") {
		fields = strings.Fields(flags)
		cmd, rest, err := rootCommand(env{}).Find(fields)
		if err == nil {
			err = cmd.ParseFlags(rest)
		}
		if err != nil {
			t.Error(err)
		}
	}
	for i, f := range fields {
		if strings.HasPrefix(f, "deploy/") {
			if _, err := os.Stat(filepath.Join(module, f)); err != nil {
				t.Error(err)
			}
		}
		if f == "--set" && i+1 < len(fields) {
			checkValue(t, fields[i+1])
		}
	}
}

// checkValue checks that the chart has the value that the setting "key=value" sets.
func checkValue(t *testing.T, setting string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(module, "deploy/helm/sluice/values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values any
	if err := yaml.Unmarshal(text, &values); err != nil {
		t.Fatal(err)
	}
	key, _, _ := strings.Cut(setting, "=")
	for part := range strings.SplitSeq(key, ".") {
		object, _ := values.(map[string]any)
		value, is := object[part]
		if !is && len(object) > 0 { // an empty object accepts any keys
			t.Errorf("the chart has no value %s", key)
			return
		}
		values = value
	}
}

// The page of all flags has the help of each command.
func TestPageOfFlagsIsComplete(t *testing.T) {
	p := onePage(t, "cmd/sluice/FLAGS.md")
	for _, cmd := range rootCommand(env{}).Commands() {
		if cmd.IsAvailableCommand() && !slices.Contains(p.lines, "$ sluice "+cmd.Name()+" --help") {
			t.Errorf("%s does not have sluice %s --help", p.path, cmd.Name())
		}
	}
}
