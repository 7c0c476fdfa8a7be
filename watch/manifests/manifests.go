// Package manifests reads a cluster from a directory of manifests: the Namespaces,
// Pods and NetworkPolicies in its YAML and JSON files, as the API server would
// have them after its defaulting.
//
// [Read] reads once; [Follow] reads and then goes with what changes. Both are
// made so that a mistake never opens anything in silence: what cannot be
// understood is a [Problem] that names file, document, object, field and mend,
// a policy that cannot be read stands in force as one that allows nothing, and
// for a file that breaks later its last good state stays.
//
// Other kinds of objects may lie in the same folder; they are passed over, and those
// that may change what is allowed are counted.
package manifests

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// Objects are the objects of a folder, in the order of files and documents. They
// are complete, as if they had come from the API server, and must not be changed:
// a World keeps references to them.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*policy.Pod
	Policies   []*policy.Policy

	// What is behind addresses of Services. No decision depends on it.
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice

	// Origins says where each object came from, by its text form:
	// "NetworkPolicy default/x", "Pod default/x", "Namespace x".
	Origins map[string]Origin

	Notes    []Problem // what is odd in the files, and changes nothing
	Outdated []Problem // what is read, and no API server takes any more
	Holes    []Problem // what is there and empty in rules of policies, and so opens them
	NotRead  []NotRead // kinds that may change what is allowed, in the order of the files
}

// Origin is the place of an object in the folder.
type Origin struct {
	File     string // path, beginning with the folder's
	Document int    // in the file, from 1; 0 where there are none
}

// FromCluster makes the same of objects that a live cluster has, of which origin is
// the name.
func FromCluster(origin string, namespaces []*corev1.Namespace, podObjects []*corev1.Pod, policies []*networkingv1.NetworkPolicy) Objects {
	o := Objects{Namespaces: namespaces, Pods: kubepod.ReadAll(podObjects), Policies: netpol.ReadAll(policies), Origins: make(map[string]Origin)}
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
		note("NetworkPolicy", p)
	}
	return o
}

// Problem is something in a manifest that the API server would reject, or that
// cannot be read at all.
type Problem struct {
	File     string // path, beginning with the folder's
	Document int    // in the file, from 1; 0 for the file as a whole
	Object   string // as in "NetworkPolicy default/x"; empty if it cannot be told
	Field    string // as in "spec.ingress[0].from"; empty for the whole document
	Detail   string // what is wrong
	Hint     string // what would be right
}

// Error is the problem in one line, the place first.
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
	return b.String() + ": " + p.Detail + ": " + p.Hint
}

// LogValue keeps the parts apart in structured logs.
func (p Problem) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("file", p.File),
		slog.Int("document", p.Document),
		slog.String("object", p.Object),
		slog.String("field", p.Field),
		slog.String("detail", p.Detail),
		slog.String("hint", p.Hint),
	)
}

// Read reads folders with their subfolders, or single files. In a folder it takes
// the files *.yaml, *.yml and *.json whose names do not begin with a dot.
//
// What cannot be understood is left out and listed as a problem; only a folder
// that cannot be opened is an error. Of two objects with one name the first
// counts: in the order of dirs, then by path and then by place in the file.
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
			if key := filepath.Clean(path); !seen[key] { // a folder, and a file in it
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

// merged is the objects of several files put together.
type merged struct {
	items    []*item
	byName   map[string]*item
	problems []Problem // objects that are there twice
	notes    []Problem // likewise, of kinds that no decision depends on
}

// merge takes the first of each object. The contents come sorted by path.
func merge(contents []*content) *merged {
	m := &merged{byName: make(map[string]*item)}
	for _, c := range contents {
		for _, it := range c.items {
			if first := m.byName[it.name]; first != nil {
				twice := Problem{
					File: it.origin.File, Document: it.origin.Document, Object: it.name, Field: "metadata.name",
					Detail: fmt.Sprintf("the same object stands in %s, document %d, which counts", first.origin.File, first.origin.Document),
					Hint:   "delete one of the two, or give it another name",
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

// decides reports whether a decision depends on the object.
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
	switch object := it.object.(type) {
	case *corev1.Namespace:
		o.Namespaces = append(o.Namespaces, object)
	case *corev1.Pod:
		o.Pods = append(o.Pods, kubepod.Read(object))
	case *networkingv1.NetworkPolicy:
		o.Policies = append(o.Policies, netpol.Read(object))
	case *corev1.Service:
		o.Services = append(o.Services, object)
	case *discoveryv1.EndpointSlice:
		o.EndpointSlices = append(o.EndpointSlices, object)
	}
}
