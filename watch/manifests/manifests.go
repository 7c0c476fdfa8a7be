// Package manifests reads Namespaces, Pods, Nodes, NetworkPolicies and ClusterNetworkPolicies
// from a directory of YAML and JSON files, with the defaulting and checks of the API server.
//
// [Read] reads once. [Follow] also reports changes. In both, a mistake never silently
// allows anything: everything that cannot be understood is a [Problem], and a policy that
// cannot be read allows nothing. If a file breaks while it is followed, its last good state
// stays in force.
//
// Objects of other kinds are skipped. Skipped objects that may change what is allowed are
// counted.
package manifests

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// Objects are the objects of a directory, in the order of files and documents. They are
// complete, as if read from the API server. They must not be modified, because the policy
// store keeps references to them.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*policy.Pod
	Nodes      []*policy.Node
	Policies   []*policy.Policy

	// The objects behind the addresses of Services. They do not affect decisions.
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice

	// Origins maps the text form of each object, such as "NetworkPolicy default/x" or
	// "Namespace x", to its origin.
	Origins map[string]Origin

	Notes    []Problem // mistakes that have no effect
	Outdated []Problem // former API versions, which are still supported here
	Holes    []Problem // empty fields in policy rules, which allow everything
	NotRead  []NotRead // skipped kinds that may change what is allowed, in the order of the files
}

// Origin is the place of an object in the directory.
type Origin struct {
	File     string // path, including the directory
	Document int    // number of the document in the file, from 1; 0 if the file has no documents
}

// FromCluster returns the given objects of a live cluster. In Origins, each object has origin as
// its File.
func FromCluster(origin string, namespaces []*corev1.Namespace, podObjects []*corev1.Pod, policies []*policy.Policy) Objects {
	o := Objects{Namespaces: namespaces, Pods: kubepod.ReadAll(podObjects), Policies: policies, Origins: make(map[string]Origin)}
	note := func(kind string, object metav1.Object) {
		o.Origins[kind+" "+nameOf(kind, object)] = Origin{File: origin}
	}
	for _, n := range namespaces {
		note("Namespace", n)
	}
	for _, p := range podObjects {
		note("Pod", p)
	}
	for _, p := range policies {
		o.Origins[p.Ref.Object()] = Origin{File: origin}
	}
	return o
}

// Problem is a part of a manifest that the API server would reject, or that cannot be read.
type Problem struct {
	File     string // path, including the directory
	Document int    // number of the document in the file, from 1; 0 for the whole file
	Object   string // as in "NetworkPolicy default/x"; empty if it is not known
	Field    string // as in "spec.ingress[0].from"; empty for the whole document
	Detail   string // what is wrong
	Effect   string // what the object does because of that; empty if that goes without saying
	Hint     string // how to correct it
	// InForce names what Follow keeps in force because of the problem, as in "the last good
	// state of the file". It is empty if the problem is not from Follow.
	InForce string
}

// What returns the detail with the effect.
func (p Problem) What() string {
	if p.Effect == "" {
		return p.Detail
	}
	return p.Detail + "; " + p.Effect
}

// Error formats the problem in one line that begins with the file.
func (p Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Document > 0 {
		fmt.Fprintf(&b, ", document %d", p.Document)
	}
	for _, part := range []string{p.Object, p.Field} {
		if part != "" {
			b.WriteString(", ")
			b.WriteString(part)
		}
	}
	return b.String() + ": " + p.What() + ": " + p.Hint
}

// LogValue logs the parts of the problem as separate attributes.
func (p Problem) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("file", p.File),
		slog.Int("document", p.Document),
		slog.String("object", p.Object),
		slog.String("field", p.Field),
		slog.String("detail", p.What()),
		slog.String("hint", p.Hint),
	)
}

// Read reads directories with their subdirectories, and single files. In directories it
// reads the files *.yaml, *.yml and *.json whose names do not begin with a dot.
//
// Read skips what it cannot understand, and returns it as problems. It returns an error
// only if a directory cannot be opened. Of several objects with the same name, Read takes the
// first one, in the order of dirs, then of paths, then of documents.
func Read(dirs ...string) (Objects, []Problem, error) {
	var contents []*content
	seen := make(map[string]bool)
	for _, dir := range dirs {
		found, err := list(dir, nil)
		if err != nil {
			return Objects{}, nil, err
		}
		contents = append(contents, &content{problems: found.problems})
		for _, path := range found.paths {
			if key := filepath.Clean(path); !seen[key] { // the same file may be found through several of the directories
				seen[key] = true
				o := opener{limit: maxRead, pipes: path == dir}
				contents = append(contents, o.readFile(path, slog.Default()))
			}
		}
	}
	m := merge(contents)
	var problems []Problem
	objects := m.objects()
	for _, c := range contents {
		problems = append(problems, c.problems...)
		objects.Notes = append(objects.Notes, c.notes...)
		objects.Outdated = append(objects.Outdated, c.outdated...)
		objects.Holes = append(objects.Holes, c.holes...)
	}
	objects.Notes = append(objects.Notes, m.notes...)
	objects.NotRead = sumNotRead(contents)
	return objects, append(problems, m.problems...), nil
}

// merged is the combined content of several files.
type merged struct {
	items    []*item
	byName   map[string]*item
	problems []Problem // duplicate objects
	notes    []Problem // duplicate objects that do not affect decisions
}

// merge combines contents, which are in the order of precedence. If several objects have
// the same name, it takes the first one.
func merge(contents []*content) *merged {
	m := &merged{byName: make(map[string]*item)}
	for _, c := range contents {
		for _, it := range c.items {
			if first := m.byName[it.name]; first != nil {
				twice := Problem{
					File: it.origin.File, Document: it.origin.Document, Object: it.name, Field: "metadata.name",
					Detail: fmt.Sprintf("the same object is in %s, document %d, which takes precedence", first.origin.File, first.origin.Document),
					Hint:   "delete one of the two, or give it another name", InForce: "the object that takes precedence",
				}
				if it.decides() {
					m.problems = append(m.problems, twice)
				} else {
					m.notes = append(m.notes, twice)
				}
				continue
			}
			m.byName[it.name] = it
			m.items = append(m.items, it)
		}
	}
	return m
}

// decides reports whether the object can affect decisions.
func (it *item) decides() bool {
	switch it.object.(type) {
	case *corev1.Service, *discoveryv1.EndpointSlice:
		return false
	}
	return true
}

func (m *merged) objects() Objects {
	out := Objects{Origins: make(map[string]Origin, len(m.items))}
	for _, it := range m.items {
		out.add(it)
	}
	return out
}

func (o *Objects) add(it *item) {
	o.Origins[it.name] = it.origin
	if it.policies != nil {
		o.Policies = append(o.Policies, it.policies.read(it.object))
		return
	}
	switch object := it.object.(type) {
	case *corev1.Namespace:
		o.Namespaces = append(o.Namespaces, object)
	case *corev1.Pod:
		o.Pods = append(o.Pods, kubepod.Read(object))
	case *corev1.Node:
		o.Nodes = append(o.Nodes, kubepod.ReadNode(object))
	case *corev1.Service:
		o.Services = append(o.Services, object)
	case *discoveryv1.EndpointSlice:
		o.EndpointSlices = append(o.EndpointSlices, object)
	}
}

// Source is a watch.Source that follows directories of manifests.
type Source struct {
	Dirs   []string     // directories or single files, in the order of precedence
	Logger *slog.Logger // logs problems of the files; nil discards them
	// NodeRanges passes the pod ranges of the Nodes to the policy store.
	NodeRanges bool
	// OnProblems, if not nil, is called with all problems of the files whenever they
	// change. It is not called before the first problem. Calls do not overlap.
	OnProblems func([]Problem)
	// OnNotRead, if not nil, is called in the same way with the counts of skipped objects
	// that may change what is allowed.
	OnNotRead func([]NotRead)
}

// String names the directories.
func (s Source) String() string { return "manifests " + strings.Join(s.Dirs, ", ") }

// Run follows the directories until ctx ends. It fails if it cannot read one of them at
// first.
func (s Source) Run(ctx context.Context, update func(func(*policy.Store))) error {
	return s.follow(ctx, func(d Delta) {
		if !s.NodeRanges {
			d.dropRanges()
		}
		update(d.Apply)
	})
}
