package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// link matches a link of Markdown, and a picture of HTML.
var link = regexp.MustCompile(`\]\(([^)\s]+)\)|\b(?:src|srcset|href)="([^"\s]+)"`)

// The links between the pages lead to files and headings that exist.
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
	// notInAnchor matches what anchors of headings leave out.
	notInAnchor = regexp.MustCompile(`[^\p{L}\p{N}\p{M}_ -]`)
)

// anchors returns the anchors that GitHub and GitLab make of the headings of a page.
func (p page) anchors() (anchors []string) {
	for _, m := range heading.FindAllStringSubmatch(p.prose(), -1) {
		text := notInAnchor.ReplaceAllString(strings.ToLower(linkText.ReplaceAllString(m[1], "$1")), "")
		anchors = append(anchors, strings.ReplaceAll(strings.TrimSpace(text), " ", "-"))
	}
	return anchors
}

// The page that a newcomer reads first is short, and each of its blocks of commands is run by a
// test, or marked with the reason why it is not.
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
