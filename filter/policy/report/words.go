package report

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// words finds names for sets of peers. A word for many means exactly these, and is explained at the
// end of the report.
type words struct {
	report *Report
	used   map[string][]*reach.Party // words for many, and what they mean
}

func newWords(r *Report) *words { return &words{r, make(map[string][]*reach.Party)} }

// maxMissing bounds the parties that may be missing from what a word names.
const maxMissing = 2

// of returns names for a set of parties, which are all in the scope, or all outside of it.
func (w *words) of(set []*reach.Party) (names []string) {
	left := make(map[*reach.Party]bool, len(set))
	within := false
	for _, p := range set {
		left[p] = true
		within = w.report.within(p)
	}
	take := func(word string, least int, of func(*reach.Party) bool) {
		names = append(names, w.take(left, word, least, func(p *reach.Party) bool { return w.report.within(p) == within && of(p) })...)
	}
	isPod := func(p *reach.Party) bool { return p.Kind == reach.Pods || p.Kind == reach.HostPods }
	switch scoped := len(w.report.options.Namespaces) > 0; {
	case within && scoped && len(w.report.options.Namespaces) > 1:
		take("every pod in the scope", 4, isPod)
	case within && !scoped:
		take("every pod", 4, isPod)
	case !within && scoped:
		take("everything else", 4, func(*reach.Party) bool { return true })
	}
	take("every address outside the cluster", 2, func(p *reach.Party) bool { return p.Kind == reach.Outside })
	take("every node", 2, func(p *reach.Party) bool { return p.Kind == reach.Nodes })
	if !within {
		take("every other pod", 4, isPod)
	}
	for _, ns := range namespacesOf(set) {
		if w.report.workloads[ns] > 1 {
			take(ns+"/*", 2, func(p *reach.Party) bool { return isPod(p) && p.Namespace == ns })
		}
	}
	if !within {
		take("every other pod of the host network", 2, func(p *reach.Party) bool { return p.Kind == reach.HostPods })
	}
	return append(names, w.single(set, left)...)
}

// single returns the names of those parties of a set that are left: of a workload, if it has all its parts.
func (w *words) single(set []*reach.Party, left map[*reach.Party]bool) (names []string) {
	for _, p := range set {
		if !left[p] {
			continue
		}
		parts := w.report.parts[p.Workload]
		if !p.Part || slices.ContainsFunc(parts, func(o *reach.Party) bool { return !left[o] || o.Kind != p.Kind }) {
			names = append(names, w.name(p))
			continue
		}
		for _, o := range parts {
			delete(left, o)
		}
		names = append(names, w.workloadName(p))
	}
	return names
}

// take takes all parties of a kind from a set, and returns the word for them: if they are all in the
// set, or all but few of many.
func (w *words) take(left map[*reach.Party]bool, word string, least int, of func(*reach.Party) bool) []string {
	var all, missing []*reach.Party
	for _, p := range w.report.parties {
		if !of(p) {
			continue
		}
		all = append(all, p)
		if left[p] {
			continue
		}
		if missing = append(missing, p); len(missing) > maxMissing {
			return nil
		}
	}
	if len(all) < least || len(all) < 6*len(missing) {
		return nil
	}
	for _, p := range all {
		delete(left, p)
	}
	w.used[word] = all
	if len(missing) > 0 {
		var names []string
		for _, p := range missing {
			names = append(names, w.name(p))
		}
		word += " (but not " + strings.Join(names, " and ") + ")"
	}
	return []string{word}
}

func namespacesOf(set []*reach.Party) (all []string) {
	for _, p := range set {
		if p.Namespace != "" && !slices.Contains(all, p.Namespace) {
			all = append(all, p.Namespace)
		}
	}
	return all
}

// name returns the name of a party. The names of several pods or nodes, and the world, are explained
// at the end.
func (w *words) name(p *reach.Party) string {
	name := p.Name
	switch {
	case p.Part:
		name = w.partName(p)
		w.used[name] = []*reach.Party{p}
	case p.Name == inventory.World, len(p.Nodes) > 1:
		w.used[name] = []*reach.Party{p}
	case p.Kind == reach.Nodes:
		return "node " + name
	case p.Kind == reach.Outside: // in a list, it is clear where the exceptions end
		if whole, except, has := strings.Cut(name, " except "); has {
			return whole + " (except " + except + ")"
		}
	}
	if p.Kind == reach.HostPods {
		name += " (host network)"
	}
	return name
}

// partName returns the name of some pods of a workload: "shop/web part 1 (3 of 5 pods)".
func (w *words) partName(p *reach.Party) string {
	number, pods := 0, 0
	for _, o := range w.report.parts[p.Workload] {
		if pods += len(o.Pods); number == 0 || w.report.rank[o] <= w.report.rank[p] {
			number++
		}
	}
	return fmt.Sprintf("%s part %d (%d of %s)", w.workloadName(p), number, len(p.Pods), count(pods, "pod", "pods"))
}

// workloadName returns the name of the workload of a party: with its kind if another has the same name.
func (w *words) workloadName(p *reach.Party) string {
	if w.report.clash[p.Namespace+"/"+p.Workload.Name] > 1 {
		return p.Namespace + "/" + strings.ToLower(p.Workload.Kind) + "/" + p.Workload.Name
	}
	return p.Namespace + "/" + p.Workload.Name
}

// meaning explains a word that was used.
func (w *words) meaning(word string) string {
	set := w.used[word]
	if len(set) == 1 {
		switch p := set[0]; {
		case p.Name == inventory.World:
			return "every address outside the cluster that is in no other range of the policies" + rangesText(p)
		case len(p.Nodes) > 0:
			return strings.Join(p.Nodes, ", ")
		case p.Part:
			return podNames(p)
		}
	}
	if !strings.HasSuffix(word, "/*") && len(set) > maxListed {
		return kinds(set)
	}
	left := make(map[*reach.Party]bool)
	for _, p := range set {
		left[p] = true
	}
	return strings.Join(w.single(set, left), ", ")
}

// maxListed bounds the names in the explanation of a word that is clear without them.
const maxListed = 12

// rangesText lists the addresses of the world with all exceptions.
func rangesText(p *reach.Party) string {
	var texts []string
	for _, r := range p.Ranges {
		text := r.Prefix.String()
		for i, e := range r.Except {
			text += map[bool]string{true: " except ", false: ", "}[i == 0] + e.String()
		}
		texts = append(texts, text)
	}
	return " (" + strings.Join(texts, "; ") + ")"
}

func podNames(p *reach.Party) string {
	names := make([]string, len(p.Pods))
	for i, pod := range p.Pods {
		names[i] = pod.String()
	}
	return strings.Join(names, ", ")
}

// tally counts workloads and pods that no workload has made, nodes, and ranges of addresses.
type tally struct {
	workloads, namespaces, nodes, ranges int
	world                                bool
}

func tallyOf(set []*reach.Party) (t tally) {
	namespaces, workloads := make(map[string]bool), make(map[policy.Ref]bool)
	for _, p := range set {
		switch {
		case p.Kind == reach.Nodes:
			t.nodes += len(p.Nodes)
		case isWorld(p):
			t.world = true
		case p.Kind == reach.Outside:
			t.ranges++
		case p.Workload.Name == "" || !workloads[p.Workload]:
			workloads[p.Workload] = true
			t.workloads++
			namespaces[p.Namespace] = true
		}
	}
	t.namespaces = len(namespaces)
	return t
}

// peers is the number of all, of which world is one.
func (t tally) peers() int {
	n := t.workloads + t.nodes + t.ranges
	if t.world {
		n++
	}
	return n
}

// kinds counts parties by kind: "2 workloads in 1 namespace, 1 node, 3 ranges of addresses".
func kinds(set []*reach.Party) string {
	t := tallyOf(set)
	var texts []string
	if t.workloads > 0 {
		texts = append(texts, count(t.workloads, "workload", "workloads")+" in "+count(t.namespaces, "namespace", "namespaces"))
	}
	if t.nodes > 0 {
		texts = append(texts, count(t.nodes, "node", "nodes"))
	}
	if t.ranges > 0 {
		texts = append(texts, count(t.ranges, "range of addresses", "ranges of addresses"))
	}
	if t.world {
		texts = append(texts, "world")
	}
	return strings.Join(texts, ", ")
}

// count returns n with its unit, in the singular or the plural.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// both joins names as in "a, b and c".
func both(names []string) string {
	if n := len(names); n > 1 {
		return strings.Join(names[:n-1], ", ") + " and " + names[n-1]
	}
	return strings.Join(names, "")
}
