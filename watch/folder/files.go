package folder

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// content is what one file holds.
type content struct {
	items    []*item
	problems []Problem
}

// list gives the paths of the manifests in dir and below, sorted. A single file
// is given back whatever its name. visit, if not nil, is called with each folder
// before it is read, so that a watch misses nothing in between.
//
// Names that begin with a dot are passed over: editors keep their own files
// under such names, and a mounted ConfigMap its versions. Symbolic links are
// followed, since in a ConfigMap every file is one.
func list(dir string, visit func(dir string)) ([]string, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	if !info.IsDir() {
		if visit != nil {
			visit(filepath.Dir(dir))
		}
		return []string{dir}, nil
	}
	l := lister{visit: visit, seen: make(map[string]bool)}
	if err := l.folder(dir); err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	slices.Sort(l.paths)
	return l.paths, nil
}

type lister struct {
	visit func(dir string)
	seen  map[string]bool // folders by their real paths: links may go in circles
	paths []string
}

func (l *lister) folder(dir string) error {
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
		if err := l.entry(filepath.Join(dir, e.Name()), e); err != nil {
			return err
		}
	}
	return nil
}

func (l *lister) entry(path string, e fs.DirEntry) error {
	if strings.HasPrefix(e.Name(), ".") {
		return nil
	}
	isDir := e.IsDir()
	if e.Type()&fs.ModeSymlink != 0 {
		info, err := os.Stat(path)
		isDir = err == nil && info.IsDir()
	}
	switch {
	case isDir:
		// A folder that goes away while it is read is none.
		if err := l.folder(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	case slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(filepath.Ext(path))):
		l.paths = append(l.paths, path)
	}
	return nil
}

// readFile reads one file. Whatever is wrong with it becomes a problem.
func readFile(path string, logger *slog.Logger) *content {
	data, err := os.ReadFile(path)
	if err != nil {
		return &content{problems: []Problem{{
			File: path, Detail: err.Error(), Mend: "make it a file that the process may read",
		}}}
	}
	return parse(path, data, logger)
}
