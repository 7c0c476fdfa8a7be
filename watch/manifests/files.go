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

// content is the content of one file.
type content struct {
	blank    bool // the file has no text, not even a comment
	items    []*item
	problems []Problem
	notes    []Problem // mistakes that have no effect
	outdated []Problem // former API versions, which are still supported here
	holes    []Problem // empty fields in policy rules: legal, but they allow everything
	notRead  []NotRead // skipped objects that may change what is allowed
	objects  int       // number of objects of any kind, including skipped ones
	again    bool      // the file was read before, through another path
	listed   bool      // the file has a list, possibly an empty one
	placed   int       // number of objects without a namespace
	file     string    // name of the file, for source
	source   []byte    // the text, for Lines; nil in Follow, which does not need it
}

// listing is the result of listing a directory.
type listing struct {
	paths      []string  // paths of manifests, sorted
	problems   []Problem // unreadable subdirectories and broken links
	unreadable []string  // paths of unreadable subdirectories
}

// list returns the manifests in dir and its subdirectories. If dir is a file, it returns
// that file, whatever its name. If visit is not nil, list calls visit() with each directory
// before it reads the directory. So if visit() starts a watch of the directory, the watch
// reports every change after the reading.
//
// list skips names that begin with a dot: editors use them for their own files, and a
// mounted ConfigMap for its versions. It follows symbolic links, because every file in a
// ConfigMap is one. It also returns irregular files with the name of a manifest, so that
// reading them reports the problem.
func list(dir string, visit func(dir string)) (listing, error) {
	return (&lister{visit: visit}).list(dir)
}

func (l *lister) list(dir string) (listing, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return listing{}, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		if l.visit != nil {
			l.visit(filepath.Dir(dir))
		}
		return listing{paths: []string{dir}}, nil
	}
	l.seen = make(map[string]bool)
	if err := l.directory(dir); err != nil {
		return listing{}, fmt.Errorf("read manifests: %w", err)
	}
	slices.Sort(l.paths)
	return l.listing, nil
}

type lister struct {
	listing
	visit func(dir string)
	// skip, if not nil, returns a problem if a directory must not be read, and nil otherwise.
	skip func(dir string) *Problem
	seen map[string]bool // real paths of directories; links may form a cycle
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
	if l.skip != nil {
		if p := l.skip(dir); p != nil {
			l.problems = append(l.problems, *p)
			return nil
		}
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
		if err != nil && !named(path) { // if path is a manifest, the later reading of it reports the error
			l.problems = append(l.problems, Problem{File: path, Detail: err.Error(), Hint: "correct the link, or remove it"})
		}
		isDir = err == nil && info.IsDir()
	}
	switch {
	case isDir:
		// Ignore a directory that has been deleted in the meantime.
		if err := l.directory(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			l.problems = append(l.problems, Problem{File: path, Detail: err.Error(), Hint: "make it a directory that this process can read"})
			l.unreadable = append(l.unreadable, path)
		}
	case named(path):
		l.paths = append(l.paths, path)
	}
}

// named reports whether path ends in a file name extension of manifests.
func named(path string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(path)))
}
