package diff

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy/near"
	"sluice/filter/policy/reach"
)

// merger merges changes into lines: those that open if opens is true, and those that close otherwise.
type merger struct {
	opens bool
	// matches are the parties of the cluster in which the flows are allowed: the new one if opens
	// is true, and the old one otherwise.
	matches []*reach.Match
	index   map[*reach.Match]int
}

func newMerger(matches []*reach.Match, opens bool) *merger {
	m := &merger{opens: opens, index: make(map[*reach.Match]int)}
	for i, x := range matches {
		m.index[x] = i
		if opens && x.New != nil || !opens && x.Old != nil {
			m.matches = append(m.matches, x)
		}
	}
	return m
}

// sort is what all changes of a line have in common: the ports, the causes and the conditions.
type sort struct{ ports, causes, conditions string }

// block is a set of equal changes: from each party in from to each party in to, but not from a single
// pod to itself.
type block struct {
	change   reach.Change // one of the changes
	from, to []*reach.Match
}

// lines returns the lines of the changes.
func (m *merger) lines(changes []reach.Change) (lines []Line) {
	for _, b := range m.blocks(changes) {
		lines = append(lines, Line{
			Opens: m.opens, From: m.words(b.from, b.to), To: m.words(b.to, b.from),
			Ports: reach.PortsText(b.change.Spans, maxPorts), By: byText(&b.change), block: b,
		})
	}
	return lines
}

// blocks divides the changes into few blocks, in the order of their first change.
func (m *merger) blocks(changes []reach.Change) (all []block) {
	bySort := make(map[sort][]reach.Change)
	var order []sort
	texts := make(map[*reach.Effect]sort)
	for _, c := range changes {
		if c.Opens != m.opens {
			continue
		}
		s, known := texts[c.Effect]
		if !known {
			s = sort{reach.PortsText(c.Spans, maxPorts), fmt.Sprint(c.Causes), ""}
			texts[c.Effect] = s
		}
		s.conditions = conditions(&c) + without(&c)
		if bySort[s] == nil {
			order = append(order, s)
		}
		bySort[s] = append(bySort[s], c)
	}
	for _, s := range order {
		best := m.blocksBy(bySort[s], false, false)
		for _, how := range []struct{ byTo, self bool }{{false, true}, {true, false}, {true, true}} {
			if other := m.blocksBy(bySort[s], how.byTo, how.self); len(other) < len(best) {
				best = other
			}
		}
		all = append(all, best...)
	}
	return all
}

// blocksBy makes a block of all sources with equal sets of destinations or, if byTo is set, of all
// destinations with equal sets of sources. If self is set, each single pod is added to its own set, so
// that pods that all reach each other have equal sets.
func (m *merger) blocksBy(changes []reach.Change, byTo, self bool) (all []block) {
	sets := make(map[*reach.Match][]*reach.Match)
	var order []*reach.Match
	for _, c := range changes {
		key, other := c.From, c.To
		if byTo {
			key, other = c.To, c.From
		}
		if sets[key] == nil {
			order = append(order, key)
			if self && key.Party().Single() {
				sets[key] = append(sets[key], key)
			}
		}
		sets[key] = append(sets[key], other)
	}
	blocks := make(map[string]int)
	for _, key := range order {
		set := sets[key]
		slices.SortFunc(set, func(a, b *reach.Match) int { return m.index[a] - m.index[b] })
		set = slices.Compact(set)
		text := m.key(set)
		i, known := blocks[text]
		if !known {
			i = len(all)
			blocks[text] = i
			all = append(all, block{change: changes[0]})
		}
		if b := &all[i]; byTo {
			b.from, b.to = set, append(b.to, key)
		} else {
			b.from, b.to = append(b.from, key), set
		}
	}
	for i := range all {
		all[i].withoutSelf()
	}
	return all
}

// withoutSelf removes a single pod from its own peers, to which blocksBy may have added it.
func (b *block) withoutSelf() {
	if len(b.from) == 1 && b.from[0].Party().Single() {
		b.to = removed(b.to, b.from[0])
	} else if len(b.to) == 1 && b.to[0].Party().Single() {
		b.from = removed(b.from, b.to[0])
	}
}

func removed(set []*reach.Match, one *reach.Match) []*reach.Match {
	return slices.DeleteFunc(slices.Clone(set), func(m *reach.Match) bool { return m == one })
}

func (m *merger) key(set []*reach.Match) string {
	key := make([]byte, 0, 2*len(set))
	for _, x := range set {
		key = binary.AppendUvarint(key, uint64(m.index[x]))
	}
	return string(key)
}

// words returns names for the parties in set, which have changes with those in others. It uses words
// such as "every pod" for all parties, or for all of a kind or a namespace, even if few are missing.
func (m *merger) words(set, others []*reach.Match) (words []string) {
	w := wording{m: m, others: others, left: slices.Clone(set)}
	isPod := func(p *reach.Party) bool { return p.Kind == reach.Pods || p.Kind == reach.HostPods }
	w.take("everything", "everything else", 4, func(*reach.Party) bool { return true })
	w.take("every pod", "every other pod", 4, isPod)
	for _, ns := range namespacesOf(w.left) {
		w.take(ns+"/*", "the rest of "+ns+"/*", 2, func(p *reach.Party) bool { return isPod(p) && p.Namespace == ns })
	}
	w.take("all nodes", "all other nodes", 2, func(p *reach.Party) bool { return p.Kind == reach.Nodes })
	w.take("everything outside", "everything else outside", 2, func(p *reach.Party) bool { return p.Kind == reach.Outside && !p.PodRange })
	for _, x := range w.left {
		w.words = append(w.words, name(x))
	}
	return w.words
}

// wording finds words for a set of parties.
type wording struct {
	m      *merger
	others []*reach.Match
	left   []*reach.Match // parties without a word so far
	words  []string
}

// maxMissing bounds the number of parties that a word names as exceptions.
const maxMissing = 2

// take appends a word for all parties that match the predicate of, and removes them from left. The
// parameter least is the minimum number of such parties. left must contain all of them, or all but a
// few of many, which the word then names as exceptions. If left lacks only the party on the other side
// of the changes, take appends rest instead of word.
func (w *wording) take(word, rest string, least int, of func(*reach.Party) bool) {
	left := make(map[*reach.Match]bool, len(w.left))
	for _, x := range w.left {
		left[x] = true
	}
	podsOnly := slices.ContainsFunc(w.others, func(o *reach.Match) bool { return o.Party().Kind != reach.Pods })
	n := 0
	var missing []*reach.Match
	for _, x := range w.m.matches {
		p := x.Party()
		if !of(p) || podsOnly && p.Kind != reach.Pods {
			continue
		}
		if n++; !left[x] && !(len(w.others) == 1 && x == w.others[0] && p.Single()) {
			if missing = append(missing, x); len(missing) > maxMissing {
				return
			}
		}
	}
	switch {
	case n < least:
		return
	case len(missing) == 0:
	case n-1 >= least && len(w.others) == 1 && slices.Equal(missing, w.others):
		word = rest
	case n < 4*len(missing):
		return
	default:
		var names []string
		for _, x := range missing {
			names = append(names, name(x))
		}
		word += " but " + strings.Join(names, " and ")
	}
	w.words = append(w.words, word)
	w.left = slices.DeleteFunc(w.left, func(x *reach.Match) bool { return of(x.Party()) })
}

// namespacesOf returns the namespaces of the parties, in the order of the parties.
func namespacesOf(set []*reach.Match) (all []string) {
	for _, m := range set {
		if ns := m.Party().Namespace; ns != "" && !slices.Contains(all, ns) {
			all = append(all, ns)
		}
	}
	return all
}

// name returns the name of a party, with "(new)" or "(gone)" if only one cluster has it.
func name(m *reach.Match) string {
	switch {
	case m.Old == nil:
		return m.Name + " (new)"
	case m.New == nil:
		return m.Name + " (gone)"
	}
	return m.Name
}

// maxCauses and maxPorts bound the number of causes and of spans that a line names.
const (
	maxCauses = 3
	maxPorts  = 8
)

// byText describes the causes of a change and its conditions.
func byText(c *reach.Change) string {
	var causes []string
	for _, cause := range c.Causes {
		if text := cause.String(); !slices.Contains(causes, text) {
			causes = append(causes, text)
		}
	}
	if len(causes) == 0 {
		return without(c) + conditions(c)
	}
	return "by " + near.List(causes, maxCauses, ", ") + conditions(c)
}

// without returns the reason for a change that has no causes; empty if it has some.
func without(c *reach.Change) string {
	switch {
	case len(c.Causes) > 0:
		return ""
	case c.Gone():
		return "it is gone"
	case !c.Opens:
		return "they have no address family in common"
	case c.From.New.Kind != reach.Pods && c.To.New.Kind != reach.Pods:
		return "policies do not apply to the host network"
	}
	return "no policy denies it"
}

// conditions describes the limits of a change: to an address family, to pods and their own node, or to
// some of the addresses that are not known.
func conditions(c *reach.Change) (text string) {
	if c.Family != "" {
		text += "; only " + c.Family
	}
	if c.OwnNode {
		text += "; pods and their own node"
	}
	if c.Maybe {
		text += "; depends on addresses that are not known"
	}
	return text
}
