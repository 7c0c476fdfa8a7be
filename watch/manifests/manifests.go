// Package manifests reads Namespaces, Pods, workloads, Nodes, Services, routes from outside the
// cluster, NetworkPolicies and ClusterNetworkPolicies from a directory of YAML and JSON files, with
// the defaulting and checks of the API server.
//
// [Read] reads once. [Follow] also reports changes, and skips workloads and routes. In both, a
// mistake never silently allows anything: everything that cannot be understood is a [Problem], and
// a policy that cannot be read allows nothing. If a file becomes invalid while Follow runs, its last
// good state stays in force.
//
// Objects of other kinds are skipped. Skipped objects that may change what is allowed are
// counted.
package manifests

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/kuberoute"
)

// Objects are the objects of a directory, in the order of files and documents. They are
// complete, as if read from the API server. They must not be modified, because the policy
// store keeps references to them.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*policy.Pod
	Nodes      []*policy.Node
	Workloads  []*kubepod.Workload // read by Read, but not by Follow: they do not affect packets
	Policies   []*policy.Policy

	// The objects behind the addresses of Services. They do not affect decisions.
	Services       []*corev1.Service
	EndpointSlices []*discoveryv1.EndpointSlice
	// Routing are the objects that lead from outside the cluster to Services. Only Read reads them.
	Routing kuberoute.Objects

	// Origins maps the text form of each object, such as "NetworkPolicy default/x" or
	// "Namespace x", to its origin.
	Origins map[string]Origin

	Notes    []Problem // mistakes that have no effect
	Outdated []Problem // former API versions, which are still supported here
	Holes    []Problem // empty fields in policy rules, which allow everything
	NotRead  []NotRead // skipped kinds that may change what is allowed, in the order of the files

	sources map[string][]byte // text by file, for Lines; nil if the objects are from Follow or from a cluster
}

// Origin is the place of an object in the directory.
type Origin struct {
	File     string // path, including the directory
	Document int    // number of the document in the file, from 1; 0 if the file has no documents
}

// FromCluster returns o, the objects of a live cluster, with Origins whose File is the given origin.
func FromCluster(origin string, o Objects) Objects {
	o.Origins = make(map[string]Origin)
	for _, key := range o.keys() {
		o.Origins[key] = Origin{File: origin}
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
	Hint     string // how to correct it; empty if there is nothing to correct
	// InForce names what Follow keeps in force because of the problem, as in "the last good
	// state of the file". It is empty if the problem is not from Follow.
	InForce string

	unrendered bool // the file or directory is not read, because it must be rendered first
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
	b.WriteString(": " + p.What())
	if p.Hint != "" {
		b.WriteString(": " + p.Hint)
	}
	return b.String()
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
	var doubles []double
	for _, c := range contents {
		for _, it := range c.items {
			if first := m.byName[it.name]; first != nil {
				doubles = append(doubles, double{first, it})
				continue
			}
			m.byName[it.name] = it
			m.items = append(m.items, it)
		}
	}
	m.addDoubles(doubles)
	return m
}

// decides reports whether the object can affect decisions.
func (it *item) decides() bool {
	switch it.object.(type) {
	case *corev1.Service, *discoveryv1.EndpointSlice:
		return false
	}
	return !it.outside
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
	if it.outside {
		o.Routing.Add(it.object)
		return
	}
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
	case *appsv1.Deployment, *appsv1.StatefulSet, *appsv1.DaemonSet, *appsv1.ReplicaSet,
		*batchv1.Job, *batchv1.CronJob, *corev1.ReplicationController:
		if !kubepod.Finished(it.object) { // as in a dump of a cluster
			o.Workloads = append(o.Workloads, kubepod.ReadWorkload(it.object))
		}
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
