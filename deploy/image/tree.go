package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// maxLinks bounds the number of symbolic links that are followed for a path. The kernel has the same
// bound.
const maxLinks = 40

// tree holds the files of a layer, by absolute path.
type tree struct {
	root    root   // the directory from which add takes files
	arch    string // the architecture for which programs and libraries must be built
	entries map[string]entry
	loaders map[string]bool // directories that contain libxtables, which loads extensions
}

// entry is a directory, a link or a file.
type entry struct {
	link string // target of a link; empty for a directory or file
	file string // path on this machine; empty for a directory or link
	mode fs.FileMode
}

func newTree(from root, arch string) *tree {
	return &tree{root: from, arch: arch, entries: make(map[string]entry), loaders: make(map[string]bool)}
}

// addDir adds a directory and its parents.
func (t *tree) addDir(path string) {
	for ; path != "/"; path = filepath.Dir(path) {
		if _, ok := t.entries[path]; !ok {
			t.entries[path] = entry{mode: 0o755}
		}
	}
}

// put adds a file of this machine at a given path.
func (t *tree) put(path, file string) {
	t.addDir(filepath.Dir(path))
	t.entries[path] = entry{file: file, mode: 0o755}
}

// add adds a file below the root under the same path, with all symbolic links on the path. It returns
// the path of the file with all links resolved. known reports whether the tree already had the file.
func (t *tree) add(path string) (file string, known bool, err error) {
	rest := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	at := "/"
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		rest = rest[1:]
		info, err := os.Lstat(t.root.path(next))
		if err != nil {
			return "", false, fmt.Errorf("add %s: %w", path, err)
		}
		switch {
		case info.Mode().Type() == fs.ModeSymlink:
			if links++; links > maxLinks {
				return "", false, fmt.Errorf("add %s: too many links", path)
			}
			to, err := os.Readlink(t.root.path(next))
			if err != nil {
				return "", false, fmt.Errorf("add %s: %w", path, err)
			}
			t.addDir(filepath.Dir(next))
			t.entries[next] = entry{link: to, mode: 0o777}
			if filepath.IsAbs(to) {
				at = "/"
			}
			rest = append(strings.Split(strings.Trim(filepath.Clean(to), "/"), "/"), rest...)
		case info.IsDir():
			at = next
		case info.Mode().IsRegular() && len(rest) == 0:
			_, known = t.entries[next]
			t.addDir(filepath.Dir(next))
			t.entries[next] = entry{file: t.root.path(next), mode: info.Mode().Perm()}
			return next, known, nil
		default:
			return "", false, fmt.Errorf("add %s: %s is not a file", path, next)
		}
	}
	return "", false, fmt.Errorf("add %s: it is a directory", path)
}

// addIfThere is like add, for a file that may be missing.
func (t *tree) addIfThere(path string) error {
	_, _, err := t.add(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// addProgram finds a program, and adds it with the libraries that it loads.
func (t *tree) addProgram(name string) error {
	path, err := t.find(name)
	if err != nil {
		return err
	}
	return t.addLinked(path)
}

// find returns the path of a program. On this machine, it looks in PATH and in /usr/sbin, which is
// often not in PATH. Below another root, it looks only in /usr/sbin.
func (t *tree) find(name string) (string, error) {
	inSbin := filepath.Join("/usr/sbin", name)
	if t.root != "/" {
		if _, err := os.Lstat(t.root.path(inSbin)); err != nil {
			return "", fmt.Errorf("find %s: %w: make the root with deploy/image/sysroot", name, err)
		}
		return inSbin, nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		path, err = exec.LookPath(inSbin)
	}
	if err != nil {
		return "", fmt.Errorf("find %s: %w: install it (Debian, Ubuntu: apt-get install iptables)", name, err)
	}
	return path, nil
}

// addLinked adds a program or library, and all libraries that the loader loads with it.
func (t *tree) addLinked(path string) error {
	file, known, err := t.add(path)
	if err != nil || known {
		return err
	}
	if err := checkMachine(t.root, file, t.arch); err != nil {
		return err
	}
	needs, err := needed(t.root, file)
	if err != nil {
		return err
	}
	for _, need := range needs {
		if err := t.addLinked(need); err != nil {
			return err
		}
		if strings.HasPrefix(filepath.Base(need), "libxtables.") {
			t.loaders[filepath.Dir(need)] = true
		}
	}
	return nil
}

// addExtensions adds the extensions of iptables, its matches and targets. libxtables loads them at run
// time from the directory xtables, which is next to libxtables.
func (t *tree) addExtensions() error {
	for dir := range t.loaders {
		found, err := filepath.Glob(t.root.path(filepath.Join(dir, "xtables", "*.so")))
		if err != nil {
			return fmt.Errorf("find the extensions of iptables: %w", err)
		}
		if len(found) == 0 {
			return fmt.Errorf("find the extensions of iptables: there are none in %s", filepath.Join(dir, "xtables"))
		}
		for _, f := range found {
			if err := t.addLinked(t.root.strip(f)); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeTar writes the files as a layer. The files are sorted, owned by root and without times, so that
// the same files give the same bytes.
func (t *tree) writeTar(out io.Writer) error {
	w := tar.NewWriter(out)
	for _, path := range slices.Sorted(maps.Keys(t.entries)) {
		e := t.entries[path]
		if err := e.writeTar(w, strings.TrimPrefix(path, "/")); err != nil {
			return fmt.Errorf("pack %s: %w", path, err)
		}
	}
	return w.Close()
}

func (e entry) writeTar(w *tar.Writer, name string) error {
	header := &tar.Header{Name: name, Mode: int64(e.mode.Perm()), Format: tar.FormatPAX}
	switch {
	case e.link != "":
		header.Typeflag, header.Linkname = tar.TypeSymlink, e.link
		return w.WriteHeader(header)
	case e.file == "":
		header.Typeflag, header.Name = tar.TypeDir, name+"/"
		return w.WriteHeader(header)
	}
	f, err := os.Open(e.file)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	header.Typeflag, header.Size = tar.TypeReg, info.Size()
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	return err
}

// writeDir writes the files below a directory, where they must not exist yet.
func (t *tree) writeDir(dir string) error {
	for _, path := range slices.Sorted(maps.Keys(t.entries)) {
		if err := t.entries[path].writeFile(filepath.Join(dir, path)); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}

func (e entry) writeFile(path string) error {
	switch {
	case e.link != "":
		return os.Symlink(e.link, path)
	case e.file == "":
		return os.MkdirAll(path, e.mode)
	}
	content, err := os.ReadFile(e.file)
	if err != nil {
		return err
	}
	return os.WriteFile(path, content, e.mode)
}
