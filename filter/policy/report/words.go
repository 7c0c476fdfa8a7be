package report

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// words finds names for sets of parties. A name may be a word for several parties, such as "every node".
// The glossary at the end of the report explains each word that was used.
type words struct {
	report *Report
	used   map[string][]*reach.Party // the words that were used, with the parties for which they stand
}

func newWords(r *Report) *words { return &words{r, make(map[string][]*reach.Party)} }

// maxMissing bounds the number of parties that a word names as exceptions.
const maxMissing = 2

// of returns names for a set of parties. They must be all in the scope, or all outside of it.
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
	take("every address outside the cluster", 2, func(p *reach.Party) bool { return p.Kind == reach.Outside && !p.PodRange })
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

// single returns the names of the parties that are both in set and in left. If left has all parts of a
// workload, single returns the name of the workload instead of theirs, and removes the parts from left.
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

// take returns a word for all parties that match the predicate of, and removes them from left. The
// parameter least is the minimum number of such parties. left must contain all of them, or all but a
// few of many, which the word then names as exceptions. Otherwise take returns nil.
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

// name returns the name of a party. For a part of a workload, a party of several nodes, and the world,
// it adds the name to the glossary.
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
	case p.Kind == reach.Outside: // parentheses show where the exceptions end in a list
		if whole, except, has := strings.Cut(name, " except "); has {
			return whole + " (except " + except + ")"
		}
	}
	if p.Kind == reach.HostPods {
		name += " (host network)"
	}
	return name
}

// partName returns the name of a party with only a part of the pods of a workload: "shop/web part 1 (3 of
// 5 pods)".
func (w *words) partName(p *reach.Party) string {
	number, pods := 0, 0
	for _, o := range w.report.parts[p.Workload] {
		if pods += len(o.Pods); number == 0 || w.report.rank[o] <= w.report.rank[p] {
			number++
		}
	}
	return fmt.Sprintf("%s part %d (%d of %s)", w.workloadName(p), number, len(p.Pods), count(pods, "pod", "pods"))
}

// workloadName returns the name of the workload of a party. It contains the kind if workloads of several
// kinds have the same name.
func (w *words) workloadName(p *reach.Party) string {
	if w.report.clash[p.Namespace+"/"+p.Workload.Name] > 1 {
		return p.Namespace + "/" + strings.ToLower(p.Workload.Kind) + "/" + p.Workload.Name
	}
	return p.Namespace + "/" + p.Workload.Name
}

// meaning returns the explanation of a word for the glossary.
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

// maxListed bounds the number of parties that the explanation of a word lists. Words that end in "/*"
// have no bound.
const maxListed = 12

// rangesText lists the ranges of the world with all their exceptions.
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

// tally counts parties by kind. Pods without a workload count as workloads.
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

// peers returns the sum of workloads, nodes and ranges, plus 1 for the world.
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

// count returns n followed by one if n is 1, and by many otherwise.
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
