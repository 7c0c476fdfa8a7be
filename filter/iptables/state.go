package iptables

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// holding is what a table holds, as far as it concerns us.
type tableState struct {
	names  []string            // of all chains
	chains map[string][]string // the rules of our chains, older ones included
	hooks  map[string][]string // the rules of the hooks
	// inactive says why no packet meets the rules, if none does.
	inactive string
}

// look reads a table. The commands read one chain at a time, so that somebody
// else's change may lie between two of them; the next look sees it.
func readTable(ctx context.Context, t Table) (tableState, error) {
	h, err := readOutline(ctx, t)
	if err != nil {
		return tableState{}, err
	}
	for _, name := range h.names {
		if !isOwned(name) {
			continue
		}
		if h.chains[name], err = t.Rules(ctx, name); err != nil {
			return tableState{}, err
		}
	}
	return h, nil
}

// glance reads a table without the rules of our chains. In nf_tables that takes no
// command, and so a tenth of the time.
func readOutline(ctx context.Context, t Table) (tableState, error) {
	names, err := t.Chains(ctx)
	if err != nil {
		return tableState{}, err
	}
	h := tableState{names: names, chains: map[string][]string{}, hooks: map[string][]string{}}
	if h.inactive, err = t.Inactive(ctx); err != nil {
		return tableState{}, err
	}
	for _, e := range entries {
		if h.hooks[e.name], err = t.Jumps(ctx, e.name); err != nil {
			return tableState{}, err
		}
	}
	return h, nil
}

// obvious says in which ways a table differs from what is wanted that a glance shows:
// so does a flush, and then the node is open until the rules are written.
func (t *keptTable) obviousDiff(ctx context.Context, now tableState, want map[string][]string) []string {
	if len(now.older(want)) > 0 {
		return nil // which rules lead to these must be found first
	}
	var wrong []string
	for _, name := range wantedNames(want) {
		n, known := t.Count(ctx, name)
		switch {
		case !slices.Contains(now.names, name):
			wrong = append(wrong, fmt.Sprintf("there is no chain %s", name))
		case known && n == 0:
			wrong = append(wrong, fmt.Sprintf("chain %s is empty", name))
		case known && n != len(want[name]):
			wrong = append(wrong, fmt.Sprintf("chain %s has other rules", name))
		}
	}
	return append(wrong, t.pathDiff(now, want)...)
}

// wantedNames are the names of the wanted chains, in order.
func wantedNames(want map[string][]string) []string {
	return slices.DeleteFunc(slices.Clone(ownedChains), func(name string) bool { _, is := want[name]; return !is })
}

// older are the chains that an older version kept and this one does not, or that are not
// wanted any more.
func (h tableState) older(want map[string][]string) []string {
	var names []string
	for _, name := range h.names {
		if _, is := want[name]; isOwned(name) && !is {
			names = append(names, name)
		}
	}
	return names
}

// outdated are the chains that are to go: not those that are empty and cannot be deleted.
func (t *keptTable) outdated(now tableState, want map[string][]string) []string {
	return slices.DeleteFunc(now.older(want), func(name string) bool {
		return len(now.chains[name]) == 0 && slices.Contains(t.stuck, name)
	})
}

// equal reports whether both hold the same chains and rules of ours, apart from the
// handles of rules.
func (h tableState) equal(o tableState) bool {
	same := func(a, b []string) bool {
		return slices.EqualFunc(a, b, func(a, b string) bool { return withoutHandle(a) == withoutHandle(b) })
	}
	return maps.EqualFunc(h.hooks, o.hooks, same) && maps.EqualFunc(h.chains, o.chains, same)
}

// spelling is how this node's iptables prints our rules, where that differs from
// how we write them.
type canonicalForm map[string]string

// of is how a rule is printed.
func (s canonicalForm) of(rule string) string {
	if printed, ok := s[rule]; ok {
		return printed
	}
	return rule
}

// learn takes what a table holds for the spelling of what we want, rule by rule.
// A table with another number of rules holds something else.
func (s canonicalForm) learn(now tableState, want map[string][]string) {
	for name, rules := range want {
		if len(now.chains[name]) != len(rules) {
			return
		}
	}
	for name, rules := range want {
		for i, rule := range rules {
			s[rule] = now.chains[name][i]
		}
	}
	for _, e := range entries {
		if rules := now.hooks[e.name]; len(rules) > 0 && leadsTo(rules[0], func(chain string) bool { return chain == e.chain }) {
			s[e.jump()] = rules[0]
		}
	}
}

// faults says all in which a table differs from what is wanted, in words for the
// log.
func (t *keptTable) diff(now tableState, want map[string][]string) []string {
	var wrong []string
	for _, name := range wantedNames(want) {
		rules, there := now.chains[name]
		same := slices.EqualFunc(rules, want[name], func(is, wanted string) bool { return is == t.canonical.of(wanted) })
		switch {
		case !there:
			wrong = append(wrong, fmt.Sprintf("there is no chain %s", name))
		case len(rules) == 0:
			wrong = append(wrong, fmt.Sprintf("chain %s is empty", name))
		case !same:
			wrong = append(wrong, fmt.Sprintf("chain %s has other rules", name))
		}
	}
	for _, name := range t.outdated(now, want) {
		text := "chain %s is not of this version"
		if slices.Contains(ownedChains, name) {
			text = "chain %s is not needed"
		}
		wrong = append(wrong, fmt.Sprintf(text, name))
	}
	return append(wrong, t.pathDiff(now, want)...)
}

// pathDiff says what keeps packets from our chains.
func (t *keptTable) pathDiff(now tableState, want map[string][]string) (wrong []string) {
	if now.inactive != "" {
		wrong = append(wrong, now.inactive)
	}
	for _, e := range entries {
		_, wanted := want[e.chain]
		wrong = append(wrong, t.jumpDiff(e, now.hooks[e.name], wanted)...)
	}
	return wrong
}

// jumpDiff says what is wrong with the way into our chains: of all rules of the
// hook, the first must be our jump if it is needed, and no other may lead to us.
func (t *keptTable) jumpDiff(e entry, rules []string, needed bool) []string {
	wanted, count := t.canonical.of(e.jump()), 0
	for _, rule := range rules {
		if leadsTo(rule, isOwned) {
			count++
		}
	}
	switch {
	case !needed && count == 0:
		return nil
	case !needed:
		return []string{fmt.Sprintf("%s jumps to chains of ours without need", e.name)}
	case count == 0:
		return []string{fmt.Sprintf("%s does not jump to %s", e.name, e.chain)}
	case count > 1:
		return []string{fmt.Sprintf("%s jumps to %s %d times", e.name, e.chain, count)}
	case rules[0] == wanted:
		return nil
	case slices.Contains(rules, wanted):
		return []string{fmt.Sprintf("the jump to %s is not the first rule of %s", e.chain, e.name)}
	}
	return []string{fmt.Sprintf("%s jumps to %s by another rule", e.name, e.chain)}
}

// leading are all rules of a table that lead to a chain that is accepted, but
// those in the accepted chains themselves.
func leading(ctx context.Context, t Table, now tableState, is func(chain string) bool) ([]string, error) {
	var found []string
	for _, name := range now.names {
		if is(name) || isOwned(name) {
			continue
		}
		rules, err := t.Rules(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, rule := range rules {
			if leadsTo(rule, is) {
				found = append(found, rule)
			}
		}
	}
	return found, nil
}

// cleanTable takes all of ours out of a table, and says what that was, in the
// words of iptables. A chain that something else refers to, such as a map of native
// nft, cannot be deleted: it is emptied, and then does nothing.
func cleanTable(ctx context.Context, t Table) (removed []string, err error) {
	for try := 0; ; try++ {
		now, err := readTable(ctx, t)
		if err != nil {
			return nil, err
		}
		c := change{drop: slices.Sorted(maps.Keys(now.chains)), keepDropped: try == clearTries}
		if len(c.drop) == 0 {
			return nil, nil // no rule can lead to a chain that is not there
		}
		if c.stale, err = leading(ctx, t, now, isOwned); err != nil {
			return nil, err
		}
		err = t.Restore(ctx, c.text())
		if err != nil && (try == clearTries || ctx.Err() != nil) {
			return nil, fmt.Errorf("remove the rules: %w", err)
		}
		if err == nil {
			return c.removed(now, dropEach(ctx, t, c)), nil
		}
	}
}

// clearTries is how often the chains are to be deleted, before they are only emptied:
// what is to be deleted may be gone since the look, or iptables may not find it.
const clearTries = 2

// dropEach deletes those chains of a change that only have been emptied, one by one,
// and returns those that cannot be deleted.
func dropEach(ctx context.Context, t Table, c change) (left []string) {
	if !c.keepDropped {
		return nil
	}
	for _, name := range c.drop {
		if t.Restore(ctx, change{drop: []string{name}}.text()) != nil {
			left = append(left, name)
		}
	}
	return left
}

// removed says what a change has taken away. The chains in left could not be deleted.
func (c change) removed(before tableState, left []string) (lines []string) {
	for _, rule := range c.stale {
		lines = append(lines, "rule "+strings.TrimPrefix(rule, "-A "))
	}
	for _, name := range c.drop {
		line := fmt.Sprintf("chain %s, rules: %d", name, len(before.chains[name]))
		if slices.Contains(left, name) {
			line = fmt.Sprintf("rules of chain %s: %d; the chain itself stays, empty, because something else refers to it", name, len(before.chains[name]))
		}
		lines = append(lines, line)
	}
	return lines
}
