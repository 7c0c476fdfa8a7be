package manifests

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// content is what one file holds.
type content struct {
	blank    bool // it has no text, not even a comment
	items    []*item
	problems []Problem
	notes    []Problem //  what changes nothing
	outdated []Problem // what is read, and no API server takes any more
	holes    []Problem // what is legal and empty in rules of policies
	notRead  []NotRead // objects that were passed over and may change what is allowed
}

// listing is what was found in a folder.
type listing struct {
	paths    []string  // of manifests, sorted
	problems []Problem // folders below that cannot be read, and links that lead nowhere
	closed   []string  // the folders below that cannot be read
}

// list finds the manifests in dir and below. A single file is given back whatever
// its name. visit, if not nil, is called with each folder before it is read, so that a
// watch misses nothing in between.
//
// Names that begin with a dot are passed over: editors keep their own files
// under such names, and a mounted ConfigMap its versions. Symbolic links are
// followed, since in a ConfigMap every file is one. What is no regular file and is
// named as a manifest is among the paths: reading it says what is wrong with it.
func list(dir string, visit func(dir string)) (listing, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return listing{}, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		if visit != nil {
			visit(filepath.Dir(dir))
		}
		return listing{paths: []string{dir}}, nil
	}
	l := lister{visit: visit, seen: make(map[string]bool)}
	if err := l.directory(dir); err != nil {
		return listing{}, fmt.Errorf("read manifests: %w", err)
	}
	slices.Sort(l.paths)
	return l.listing, nil
}

type lister struct {
	listing
	visit func(dir string)
	seen  map[string]bool // folders by their real paths: links may go in circles
}

func (l *lister) directory(dir string) error {
	resolved, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if l.seen[resolved] {
		return nil
	}
	l.seen[resolved] = true
	if l.visit != nil {
		l.visit(dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		l.entry(filepath.Join(dir, e.Name()), e)
	}
	return nil
}

func (l *lister) entry(path string, e fs.DirEntry) {
	if strings.HasPrefix(e.Name(), ".") {
		return
	}
	isDir := e.IsDir()
	if e.Type()&fs.ModeSymlink != 0 {
		info, err := os.Stat(path)
		if err != nil && !named(path) { // else reading it says so
			l.problems = append(l.problems, Problem{File: path, Detail: err.Error(), Hint: "correct the link, or remove it"})
		}
		isDir = err == nil && info.IsDir()
	}
	switch {
	case isDir:
		// A folder that goes away while it is read is none.
		if err := l.directory(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.problems = append(l.problems, Problem{File: path, Detail: err.Error(), Hint: "make it a folder that the process may read"})
			l.closed = append(l.closed, path)
		}
	case named(path):
		l.paths = append(l.paths, path)
	}
}

// named reports whether the file's name is one of a manifest.
func named(path string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(path)))
}
