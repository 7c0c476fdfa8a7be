package manifests

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy/near"
)

// Stdin is the path that means the standard input.
const Stdin = "-"

// maxFiles bounds the number of files that a note names.
const maxFiles = 3

// StdinName is the name of the standard input in messages and Origins.
const StdinName = "standard input"

// Input states what to read once.
type Input struct {
	// Paths are directories with their subdirectories, single files, and [Stdin]. In directories,
	// Read reads the files *.yaml, *.yml and *.json, except those whose names begin with a dot.
	Paths []string
	Stdin io.Reader // the standard input; nil if it must not be read
	// Namespace is the namespace of objects that have none; empty means default.
	Namespace string
	// Scope are the namespaces of the question; empty means all.
	Scope []string
	// Command is the running command, as in "sluice lint", for hints; empty means sluice.
	Command string
	// Pipe is the command that reads the standard input in the place of one of Paths, for hints; empty
	// means Command with -f -.
	Pipe string
}

// Read reads directories with their subdirectories, and single files. See [Input.Read].
func Read(paths ...string) (Objects, []Problem, error) { return Input{Paths: paths}.Read() }

// Read reads all paths.
//
// It skips what it cannot understand, and reports it as problems. It returns an error if a path
// cannot be opened or has no objects, or if it can read none of the objects and only has problems
// about files that must be rendered first: an answer from no objects would be right only by accident.
// Of several objects with the same name, Read takes the first one, in the order of the paths, then of
// files, then of documents.
func (in Input) Read() (Objects, []Problem, error) {
	r := newReader(in)
	objects, problems, err := r.read()
	if err == nil {
		err = r.nothing()
	}
	if err != nil {
		return Objects{}, nil, err
	}
	return objects, problems, nil
}

// reader reads an Input.
type reader struct {
	Input
	contents []*content
	seen     map[string]bool // files that have been read: several paths may lead to one
	empty    error           // the error about the first path without objects; nil if there is none
	items    int             // number of objects that were read
}

func newReader(in Input) *reader {
	in.Command = cmp.Or(in.Command, "sluice")
	in.Pipe = cmp.Or(in.Pipe, in.Command+" -f -")
	return &reader{Input: in, seen: make(map[string]bool)}
}

func (r *reader) read() (Objects, []Problem, error) {
	for _, path := range r.Paths {
		if err := r.path(path); err != nil {
			return Objects{}, nil, err
		}
	}
	m := merge(r.contents)
	r.items = len(m.items)
	objects, problems := m.summary(r.contents)
	if placed := r.placed(); placed != nil {
		objects.Notes = append(objects.Notes, *placed)
	}
	return objects, problems, nil
}

func (r *reader) how() reading {
	return reading{templates: true, namespace: r.Namespace, command: r.Pipe}
}

// path reads a path.
func (r *reader) path(path string) error {
	first := len(r.contents)
	var err error
	switch {
	case path == Stdin:
		err = r.stdin()
	case path == os.DevNull:
		err = fmt.Errorf("%s has no objects: give a file that has some, or a directory of such files", path)
	case strings.HasPrefix(path, "http://"), strings.HasPrefix(path, "https://"):
		err = fmt.Errorf("%s is a URL: download it, as in: curl -fsSL %s | %s", path, path, r.Pipe)
	case slices.Contains(kustomizationFiles, filepath.Base(path)) && kustomizationIn(path) != nil:
		err = fmt.Errorf("%s is a kustomization and has no objects: %s", path, r.how().renderHint("kustomize build "+filepath.Dir(path)))
	default:
		err = r.files(path)
	}
	if err != nil {
		return err
	}
	if r.empty == nil && !slices.ContainsFunc(r.contents[first:], (*content).hasText) {
		r.empty = fmt.Errorf("%s has no objects: give a directory with files *.yaml, *.yml or *.json, or a single file", path)
		if info, err := os.Stat(path); err == nil && !info.IsDir() {
			r.empty = fmt.Errorf("%s has no objects: give a file that has some, or a directory of such files", path)
		}
		if path == Stdin {
			r.empty = errors.New("the standard input has no objects: check the command before the pipe")
		}
	}
	return nil
}

// hasText reports whether a file has objects or a list, was read before, or has problems.
func (c *content) hasText() bool {
	return c.objects > 0 || c.listed || c.again || len(c.problems) > 0
}

// stdin reads the standard input.
func (r *reader) stdin() error {
	if r.seen[Stdin] {
		return errors.New("the standard input is given twice, and can be read once: remove one -f -")
	}
	r.seen[Stdin] = true
	if r.Stdin == nil {
		return errors.New("the standard input cannot be read here: give a file")
	}
	data, err := io.ReadAll(io.LimitReader(r.Stdin, maxRead+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the standard input: %w", err)
	case len(data) > maxRead:
		return fmt.Errorf("the standard input has more than %d bytes, which is the limit: write it to several files", maxRead)
	case len(bytes.TrimSpace(data)) == 0:
		return errors.New("the standard input is empty: check the command before the pipe")
	}
	r.contents = append(r.contents, parse(StdinName, data, r.how(), slog.Default()))
	return nil
}

// files reads a directory or a file.
func (r *reader) files(path string) error {
	l := lister{skip: func(dir string) *Problem { return unrendered(dir, r.Pipe) }}
	found, err := l.list(path)
	if err != nil && strings.Contains(path, ",") {
		return fmt.Errorf("%w: repeat -f for each path, as in: -f %s", err, strings.ReplaceAll(path, ",", " -f "))
	}
	if err != nil {
		return err
	}
	r.contents = append(r.contents, &content{problems: found.problems})
	for _, file := range found.paths {
		key := filepath.Clean(file)
		if r.seen[key] {
			r.contents = append(r.contents, &content{again: true})
			continue
		}
		r.seen[key] = true
		o := opener{limit: maxRead, pipes: file == path, reading: r.how()}
		r.contents = append(r.contents, o.readFile(file, slog.Default()))
	}
	return nil
}

// nothing returns an error if one of the paths has no objects. It also returns one if no object of any
// path was read, unless there is a problem that explains this, other than that a file must be rendered
// first.
func (r *reader) nothing() error {
	if r.empty != nil || r.items > 0 {
		return r.empty
	}
	var objects int
	var first *Problem
	for _, c := range r.contents {
		objects += c.objects
		for i := range c.problems {
			if !c.problems[i].unrendered {
				return nil
			}
			if first == nil {
				first = &c.problems[i]
			}
		}
	}
	if first != nil {
		return *first
	}
	where, have := r.where(), "1 object of another kind"
	switch {
	case objects == 0:
		return fmt.Errorf("%s has only an empty list: add what policies are about", where)
	case objects > 1:
		have = fmt.Sprintf("%d objects of other kinds", objects)
	}
	if not := sumNotRead(r.contents); len(not) > 0 {
		have += " (" + TextOf(not) + ", which are not read)"
	}
	return fmt.Errorf("%s has no Pods, workloads, Namespaces or policies, only %s: add what policies are about", where, have)
}

// where names the paths.
func (r *reader) where() string {
	names := slices.Clone(r.Paths)
	for i := range names {
		if names[i] == Stdin {
			names[i] = StdinName
		}
	}
	return strings.Join(names, ", ")
}

// placed returns a note about objects that state no namespace. It returns nil if there are none, or if
// they are in namespace default because r.Namespace is empty, and r.Scope is empty or contains default.
func (r *reader) placed() *Problem {
	n := 0
	var files []string
	for _, c := range r.contents {
		if n += c.placed; c.placed > 0 {
			files = append(files, c.file)
		}
	}
	have := "1 object has"
	if n > 1 {
		have = fmt.Sprintf("%d objects have", n)
	}
	note := Problem{File: near.List(files, maxFiles, ", ")}
	switch {
	case n == 0:
		return nil
	case r.Namespace != "":
		note.Detail = fmt.Sprintf("%s no namespace and would be created in namespace %s", have, r.Namespace)
		note.Hint = "write metadata.namespace if that is not meant"
	case len(r.Scope) > 0 && !slices.Contains(r.Scope, metav1.NamespaceDefault):
		note.Detail = have + " no namespace and would be created in namespace default, which the answer is not about"
		note.Hint = "write metadata.namespace; helm template leaves it out, unless the chart has it"
	default:
		return nil
	}
	return &note
}

// summary returns the merged objects, and the problems of contents and of the merge.
func (m *merged) summary(contents []*content) (Objects, []Problem) {
	var problems []Problem
	objects := m.objects()
	objects.sources = make(map[string][]byte, len(contents))
	for _, c := range contents {
		if c.source != nil {
			objects.sources[c.file] = c.source
		}
		problems = append(problems, c.problems...)
		objects.Notes = append(objects.Notes, c.notes...)
		objects.Outdated = append(objects.Outdated, c.outdated...)
		objects.Holes = append(objects.Holes, c.holes...)
	}
	objects.Notes = append(objects.Notes, m.notes...)
	objects.NotRead = sumNotRead(contents)
	return objects, append(problems, m.problems...)
}
