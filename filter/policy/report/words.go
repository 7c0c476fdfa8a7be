package report

import (
	"fmt"
	"slices"
	"strings"

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
		take(ns+"/*", 2, func(p *reach.Party) bool { return isPod(p) && p.Namespace == ns })
	}
	for _, p := range set {
		if left[p] {
			names = append(names, w.name(p))
		}
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
		if !left[p] {
			missing = append(missing, p)
		}
	}
	if len(all) < least || len(missing) > maxMissing || len(all) < 6*len(missing) {
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
		word += " but " + strings.Join(names, " and ")
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
	switch {
	case p.Kind == reach.HostPods:
		return p.Name + " (host network)"
	case p.Name == inventory.World, p.Part && len(p.Pods) > 1, len(p.Nodes) > 1:
		w.used[p.Name] = []*reach.Party{p}
	case p.Kind == reach.Nodes:
		return "node " + p.Name
	}
	return p.Name
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
	var names []string
	for _, p := range set {
		names = append(names, w.name(p))
	}
	return strings.Join(names, ", ")
}

func rangesText(p *reach.Party) string {
	var texts []string
	for _, r := range p.Ranges {
		texts = append(texts, r.String())
	}
	return " (" + strings.Join(texts, ", ") + ")"
}

func podNames(p *reach.Party) string {
	names := make([]string, len(p.Pods))
	for i, pod := range p.Pods {
		names[i] = pod.String()
	}
	return strings.Join(names, ", ")
}

// kinds counts parties by kind: "2 workloads, 1 node, 3 ranges of addresses".
func kinds(set []*reach.Party) string {
	var pods, nodes, ranges, namespaces int
	seen := make(map[string]bool)
	world := false
	for _, p := range set {
		switch p.Kind {
		case reach.Nodes:
			nodes += len(p.Nodes)
		case reach.Outside:
			if p.Name == inventory.World {
				world = true
			} else {
				ranges++
			}
		default:
			pods++
			if !seen[p.Namespace] {
				seen[p.Namespace] = true
				namespaces++
			}
		}
	}
	var texts []string
	if pods > 0 {
		texts = append(texts, count(pods, "workload", "workloads")+" in "+count(namespaces, "namespace", "namespaces"))
	}
	if nodes > 0 {
		texts = append(texts, count(nodes, "node", "nodes"))
	}
	if ranges > 0 {
		texts = append(texts, count(ranges, "range of addresses", "ranges of addresses"))
	}
	if world {
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
