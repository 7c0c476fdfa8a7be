package filter_test

import (
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

// ARCHITECTURE.md lists every package of the module, and only directories that exist.
func TestArchitectureListsThePackages(t *testing.T) {
	text, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "\n## The house\n")
	_, tree, fenced := strings.Cut(section, "\n```\n")
	if !found || !fenced {
		t.Fatal("ARCHITECTURE.md has no tree of packages under \"The house\"")
	}
	tree, _, _ = strings.Cut(tree, "\n```")
	documented := directories(tree)
	for _, p := range goList(t) {
		dir := strings.TrimPrefix(p.ImportPath, "sluice/")
		if i := slices.Index(documented, dir); i < 0 {
			t.Errorf("ARCHITECTURE.md does not list %s", dir)
		} else {
			documented = slices.Delete(documented, i, i+1)
		}
	}
	for _, dir := range documented {
		if _, err := os.Stat("../" + dir); err != nil {
			t.Errorf("ARCHITECTURE.md lists %s: %v", dir, err)
		}
	}
}

// directories returns the paths in a tree. A line begins with one or more directories. Their
// parent is in the nearest line above that has less indentation.
func directories(tree string) (paths []string) {
	var parents []string // the directories above a line, by depth; two spaces for each level
	for line := range strings.Lines(tree) {
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		if depth > len(parents) {
			continue // a description that continues on this line
		}
		parents = parents[:depth]
		for _, name := range strings.Fields(line) {
			name, is := strings.CutSuffix(name, "/")
			if !is {
				break
			}
			paths = append(paths, path.Join(append(slices.Clone(parents), name)...))
		}
		if len(paths) > 0 {
			parents = append(parents, path.Base(paths[len(paths)-1]))
			if depth == 0 {
				parents[0] = paths[len(paths)-1] // cmd/sluice
			}
		}
	}
	return paths
}
