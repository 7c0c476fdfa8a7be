package manifests

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/kuberoute"
)

// keys returns the key of each object in Origins.
func (o *Objects) keys() []string {
	return slices.Concat(
		keysOf(o.Namespaces, namespaceKey), keysOf(o.Pods, podKey), keysOf(o.Nodes, nodeKey), keysOf(o.Workloads, workloadKey),
		keysOf(o.Policies, policyKey), keysOf(o.Services, serviceKey), keysOf(o.EndpointSlices, sliceKey),
		keysOf(o.Routing.Routes, routeKey), keysOf(o.Routing.Classes, classKey), keysOf(o.Routing.Gateways, gatewayKey), keysOf(o.Routing.Grants, grantKey),
	)
}

func keysOf[T any](objects []T, key func(T) string) []string {
	keys := make([]string, len(objects))
	for i, o := range objects {
		keys[i] = key(o)
	}
	return keys
}

// Overlay returns the objects of a cluster as if files were applied to it. An object in files
// replaces the object of the cluster with the same name. If files change the template of a workload,
// Overlay leaves out the cluster's pods of the workload, because a rollout would replace them. Notes
// count the objects that are replaced, added and left out. The parameter name is that of the cluster
// in the notes, as in "context production".
func Overlay(cluster Objects, name string, files Objects) Objects {
	out := files
	out.Notes = slices.Concat(cluster.Notes, files.Notes, []Problem{overlayNote(name, cluster, files)})
	rolled := rolledOut(&cluster, &files)
	live := slices.DeleteFunc(slices.Clone(cluster.Pods), func(p *policy.Pod) bool { return rolled[p.Owner] })
	if n := len(cluster.Pods) - len(live); n > 0 {
		out.Notes = append(out.Notes, rolloutNote(name, n, rolled))
	}
	out.Origins = maps.Clone(cluster.Origins)
	maps.Copy(out.Origins, files.Origins)
	out.Namespaces = over(cluster.Namespaces, files.Namespaces, namespaceKey)
	out.Pods = over(live, files.Pods, podKey)
	out.Nodes = over(cluster.Nodes, files.Nodes, nodeKey)
	out.Workloads = over(cluster.Workloads, files.Workloads, workloadKey)
	out.Policies = over(cluster.Policies, files.Policies, policyKey)
	out.Services = over(cluster.Services, files.Services, serviceKey)
	out.EndpointSlices = over(cluster.EndpointSlices, files.EndpointSlices, sliceKey)
	out.Routing = kuberoute.Objects{
		Routes:   over(cluster.Routing.Routes, files.Routing.Routes, routeKey),
		Classes:  over(cluster.Routing.Classes, files.Routing.Classes, classKey),
		Gateways: over(cluster.Routing.Gateways, files.Routing.Gateways, gatewayKey),
		Grants:   over(cluster.Routing.Grants, files.Routing.Grants, grantKey),
	}
	out.NotRead = slices.Concat(cluster.NotRead, files.NotRead)
	return out
}

// over returns the objects of the cluster that files do not replace, and those of the files.
func over[T any](cluster, files []T, key func(T) string) []T {
	replaced := make(map[string]bool, len(files))
	for _, k := range keysOf(files, key) {
		replaced[k] = true
	}
	kept := slices.DeleteFunc(slices.Clone(cluster), func(o T) bool { return replaced[key(o)] })
	return append(kept, files...)
}

// overlayNote counts the objects that files replace and add.
func overlayNote(name string, cluster, files Objects) Problem {
	replaced, added := 0, 0
	for key := range files.Origins {
		if _, there := cluster.Origins[key]; there {
			replaced++
		} else {
			added++
		}
	}
	return Problem{File: name, Detail: fmt.Sprintf("as if the files were applied: %s of the cluster replaced, %d added", plural(replaced, "object"), added)}
}

func rolloutNote(name string, pods int, rolled map[policy.Ref]bool) Problem {
	var names []string
	for ref := range rolled {
		names = append(names, ref.Object())
	}
	slices.Sort(names)
	return Problem{File: name, Detail: fmt.Sprintf("%s left out, because a rollout of the new template replaces them: %s", plural(pods, "pod"), strings.Join(names, ", "))}
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// rolledOut returns the workloads in files whose templates make pods that are not equal for decisions
// to the pods of the cluster; see samePods.
func rolledOut(cluster, files *Objects) map[policy.Ref]bool {
	before := make(map[policy.Ref]*policy.Pod, len(cluster.Workloads))
	for _, w := range cluster.Workloads {
		before[w.Ref] = w.Pod
	}
	rolled := make(map[policy.Ref]bool)
	for _, w := range files.Workloads {
		was := before[w.Ref]
		if was == nil { // the cluster's workload was not read: compare with one of its pods
			i := slices.IndexFunc(cluster.Pods, func(p *policy.Pod) bool { return p.Owner == w.Ref })
			if i < 0 {
				continue
			}
			was = cluster.Pods[i]
		}
		if !samePods(was, w.Pod) {
			rolled[w.Ref] = true
		}
	}
	return rolled
}

// samePods reports whether the pods of two templates are equal for decisions. was may also be a pod of
// the cluster: samePods ignores the labels that controllers add to pods.
func samePods(was, now *policy.Pod) bool {
	more := maps.Clone(was.Labels)
	for _, added := range []string{"pod-template-hash", "controller-revision-hash", "pod-template-generation", "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index"} {
		delete(more, added)
	}
	return labels.Equals(more, now.Labels) && was.HostNetwork == now.HostNetwork && (len(was.Ports)+len(now.Ports) == 0 || reflect.DeepEqual(was.Ports, now.Ports))
}

func namespaceKey(n *corev1.Namespace) string { return "Namespace " + n.Name }
func podKey(p *policy.Pod) string             { return "Pod " + p.String() }
func nodeKey(n *policy.Node) string           { return "Node " + n.Name }
func workloadKey(w *kubepod.Workload) string  { return w.Ref.Object() }
func policyKey(p *policy.Policy) string       { return p.Ref.Object() }
func serviceKey(s *corev1.Service) string     { return "Service " + nameOf("Service", s) }
func sliceKey(s *discoveryv1.EndpointSlice) string {
	return "EndpointSlice " + nameOf("EndpointSlice", s)
}
func routeKey(r *kuberoute.Route) string     { return r.Ref.Object() }
func classKey(c *kuberoute.Class) string     { return c.Ref.Object() }
func gatewayKey(g *kuberoute.Gateway) string { return g.Ref.Object() }
func grantKey(g *kuberoute.Grant) string     { return g.Ref.Object() }
