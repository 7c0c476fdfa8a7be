package reach

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"sluice/filter/policy"
)

// Match is a party of the old cluster and its counterpart in the new one.
type Match struct {
	// Name is the name of the party in the new cluster, or in the old one if the party is gone. If
	// several old parties match the new one, the name of Old follows.
	Name string
	// Old and New are the parties; one of them is nil if the party is new or gone.
	Old, New *Party
}

// Party returns the new party, or the old one if it is gone.
func (m *Match) Party() *Party { return cmp.Or(m.New, m.Old) }

// matchParties matches the parties of two clusters: workloads, pods and nodes by their names, and
// ranges by their addresses.
func matchParties(before, after *Map) (all []*Match) {
	links := newLinks()
	links.pods(before, after)
	links.named(before.of(Nodes), after.of(Nodes), func(p *Party) []string { return p.Nodes })
	links.named(before.of(Outside), after.of(Outside), func(p *Party) []string { return []string{p.Name} })
	for _, p := range after.Parties {
		if len(links.olds[p]) == 0 {
			all = append(all, &Match{Name: p.Name, New: p})
		}
		olds := links.olds[p]
		slices.SortFunc(olds, func(a, b *Party) int { return strings.Compare(a.Name, b.Name) })
		for _, o := range olds {
			m := &Match{p.Name, o, p}
			if len(olds) > 1 {
				m.Name += " (before: " + o.Name + ")"
			}
			all = append(all, m)
		}
	}
	for _, p := range before.Parties {
		if len(links.news[p]) == 0 {
			all = append(all, &Match{Name: p.Name, Old: p})
		}
	}
	return slices.DeleteFunc(all, func(m *Match) bool { return !canCompare(m, before, after) })
}

// canCompare reports whether a match can be compared. If a cluster has no nodes at all, its nodes are
// not known, and nodes cannot be compared. Nor can a range that one of the clusters lacks: there, all
// its addresses belong to pods and nodes.
func canCompare(m *Match, before, after *Map) bool {
	if m.Old != nil && m.New != nil {
		return true
	}
	switch m.Party().Kind {
	case Nodes:
		return len(before.of(Nodes)) > 0 && len(after.of(Nodes)) > 0
	case Outside:
		return false
	}
	return true
}

func (m *Map) of(kinds ...Kind) (all []*Party) {
	for _, p := range m.Parties {
		if slices.Contains(kinds, p.Kind) {
			all = append(all, p)
		}
	}
	return all
}

// links are the pairs of an old and a new party that match, in both directions.
type links struct{ news, olds map[*Party][]*Party }

func newLinks() links {
	return links{make(map[*Party][]*Party), make(map[*Party][]*Party)}
}

func (l links) add(before, after *Party) {
	if !slices.Contains(l.news[before], after) {
		l.news[before] = append(l.news[before], after)
		l.olds[after] = append(l.olds[after], before)
	}
}

// named links parties that have a name in common.
func (l links) named(before, after []*Party, names func(*Party) []string) {
	olds := make(map[string]*Party)
	for _, p := range before {
		for _, n := range names(p) {
			olds[n] = p
		}
	}
	for _, p := range after {
		for _, n := range names(p) {
			if o := olds[n]; o != nil {
				l.add(o, p)
			}
		}
	}
}

// pods links the parties of the pods of each workload.
func (l links) pods(before, after *Map) {
	olds, news := byWorkload(before.of(Pods, HostPods)), byWorkload(after.of(Pods, HostPods))
	byName := make(map[string][]policy.Ref) // the workloads that the new cluster does not have
	for ref := range olds {
		if news[ref] == nil {
			byName[ref.String()] = append(byName[ref.String()], ref)
		}
	}
	for ref, parties := range news {
		if o := olds[ref]; o != nil {
			l.replicas(o, parties)
		} else if same := byName[ref.String()]; len(same) == 1 {
			l.replicas(olds[same[0]], parties) // the kind has changed
		}
	}
}

// byWorkload groups parties by the workload of their pods. A pod without a workload counts as a
// workload of the kind Pod.
func byWorkload(parties []*Party) map[policy.Ref][]*Party {
	all := make(map[policy.Ref][]*Party)
	for _, p := range parties {
		ref := p.Workload
		if ref == (policy.Ref{}) {
			ref = policy.Ref{Kind: "Pod", Namespace: p.Namespace, Name: p.Pods[0].Name}
		}
		all[ref] = append(all[ref], p)
	}
	return all
}

// replicas links the parties of one workload: first parties that have a pod of the same name; then
// parties whose remaining pods have equal labels; finally each party without a link with all parties of
// the workload in the other cluster, because each pod may have replaced any other.
func (l links) replicas(before, after []*Party) {
	names := func(p *Party) (names []string) {
		for _, pod := range p.Pods {
			names = append(names, pod.Name)
		}
		return names
	}
	l.named(before, after, names)
	oldRest, newRest := without(before, after), without(after, before)
	for _, o := range before {
		for _, n := range after {
			if slices.ContainsFunc(oldRest[o], func(text string) bool { return slices.Contains(newRest[n], text) }) {
				l.add(o, n)
			}
		}
	}
	for _, n := range after {
		if len(l.olds[n]) == 0 {
			for _, o := range before {
				l.add(o, n)
			}
		}
	}
	for _, o := range before {
		if len(l.news[o]) == 0 {
			for _, n := range after {
				l.add(o, n)
			}
		}
	}
}

// without returns, by party, the labels (as text) of those pods whose names no pod of the others has.
func without(parties, others []*Party) map[*Party][]string {
	names := make(map[string]bool)
	for _, o := range others {
		for _, pod := range o.Pods {
			names[pod.Name] = true
		}
	}
	rest := make(map[*Party][]string)
	for _, p := range parties {
		for _, pod := range p.Pods {
			if !names[pod.Name] {
				rest[p] = append(rest[p], labelsOf(pod))
			}
		}
	}
	return rest
}

// volatile are the labels that controllers add, and that differ between the pods or the versions of a
// workload.
var volatile = []string{
	"pod-template-hash", "controller-revision-hash", "pod-template-generation",
	"statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
	"controller-uid", "batch.kubernetes.io/controller-uid", "job-name", "batch.kubernetes.io/job-name",
}

// labelsOf returns the labels that a pod has from its template, as text.
func labelsOf(p *policy.Pod) string {
	set := maps.Clone(p.Labels)
	for _, key := range volatile {
		delete(set, key)
	}
	return set.String()
}
