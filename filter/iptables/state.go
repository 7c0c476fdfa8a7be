package iptables

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// tableState is the part of a table's content that matters to Sluice.
type tableState struct {
	names  []string            // names of all chains
	chains map[string][]string // rules of owned chains, including chains of older versions
	hooks  map[string][]string // rules of the built-in chains of the layout
	// inactive is the reason why packets do not traverse the rules; empty if they do.
	inactive string
}

// readTable reads a table. Each command reads one chain, so another program may change the table
// between two commands; the next check finds that change.
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

// readOutline reads a table except the rules of owned chains. In nf_tables it runs no command, and
// takes a tenth of the time of readTable.
func readOutline(ctx context.Context, t Table) (tableState, error) {
	names, err := t.Chains(ctx)
	if err != nil {
		return tableState{}, err
	}
	h := tableState{names: names, chains: map[string][]string{}, hooks: map[string][]string{}}
	if h.inactive, err = t.Inactive(ctx); err != nil {
		return tableState{}, err
	}
	for _, e := range t.layout().entries {
		if h.hooks[e.name], err = t.Jumps(ctx, e.name); err != nil {
			return tableState{}, err
		}
	}
	return h, nil
}

// obviousDiff returns the differences that can be found without reading the rules of owned
// chains: missing chains, wrong numbers of rules, and wrong jumps. It exists for speed: after a
// flush, nothing is enforced until the rules are written again, and reading all rules first would
// delay the write.
func (t *keptTable) obviousDiff(ctx context.Context, now tableState, want map[string][]string) []string {
	if len(now.older(want)) > 0 {
		return nil // there are older chains, and only a full read finds the rules that lead to them
	}
	var wrong []string
	for _, name := range t.layout().wanted(want) {
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

// wanted returns the names of the wanted chains, in order.
func (l *layout) wanted(want map[string][]string) []string {
	return slices.DeleteFunc(slices.Clone(l.chains), func(name string) bool { _, is := want[name]; return !is })
}

// older returns the owned chains that are not wanted, such as those of an older version.
func (h tableState) older(want map[string][]string) []string {
	var names []string
	for _, name := range h.names {
		if _, is := want[name]; isOwned(name) && !is {
			names = append(names, name)
		}
	}
	return names
}

// outdated returns the owned chains to delete. It omits the empty chains in t.stuck, because they
// cannot be deleted.
func (t *keptTable) outdated(now tableState, want map[string][]string) []string {
	return slices.DeleteFunc(now.older(want), func(name string) bool {
		return len(now.chains[name]) == 0 && slices.Contains(t.stuck, name)
	})
}

// equal reports whether h and o have the same rules in hooks and owned chains, apart from handles.
func (h tableState) equal(o tableState) bool {
	same := func(a, b []string) bool {
		return slices.EqualFunc(a, b, func(a, b string) bool { return withoutHandle(a) == withoutHandle(b) })
	}
	return maps.EqualFunc(h.hooks, o.hooks, same) && maps.EqualFunc(h.chains, o.chains, same)
}

// canonicalForm maps a rule, as Sluice writes it, to the form in which this node's iptables prints
// it. A rule that is not in the map is printed as it is written.
type canonicalForm map[string]string

// of returns the printed form of a rule.
func (s canonicalForm) of(rule string) string {
	if printed, ok := s[rule]; ok {
		return printed
	}
	return rule
}

// record records the form in which iptables prints each wanted rule. It assumes that rule i of a
// chain is wanted rule i in another form. This cannot be true if a chain has more or fewer rules
// than wanted; record then records nothing.
func (s canonicalForm) record(now tableState, want map[string][]string, entries []entry) {
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

// diff returns all differences between a table and the wanted rules, as text for the log.
func (t *keptTable) diff(now tableState, want map[string][]string) []string {
	var wrong []string
	for _, name := range t.layout().wanted(want) {
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
		if slices.Contains(t.layout().chains, name) {
			text = "chain %s is not needed"
		}
		wrong = append(wrong, fmt.Sprintf(text, name))
	}
	return append(wrong, t.pathDiff(now, want)...)
}

// pathDiff returns the reasons why packets do not reach the owned chains.
func (t *keptTable) pathDiff(now tableState, want map[string][]string) (wrong []string) {
	if now.inactive != "" {
		wrong = append(wrong, now.inactive)
	}
	for _, e := range t.entries {
		_, wanted := want[e.chain]
		wrong = append(wrong, t.jumpDiff(e, now.hooks[e.name], wanted)...)
	}
	return wrong
}

// jumpDiff describes what is wrong with the jump from a hook to an owned chain. If needed is set,
// the jump must be the first rule of the hook. No other rule of the hook may lead to an owned
// chain.
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
		return []string{fmt.Sprintf("%s jumps to chains of Sluice that are not needed", e.name)}
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

// leading returns the rules that lead to a chain for which match() returns true. It searches
// neither these chains nor the owned chains.
func leading(ctx context.Context, t Table, now tableState, match func(chain string) bool) ([]string, error) {
	var found []string
	for _, name := range now.names {
		if match(name) || isOwned(name) {
			continue
		}
		rules, err := t.Rules(ctx, name)
		if err != nil {
			return nil, err
		}
		for _, rule := range rules {
			if leadsTo(rule, match) {
				found = append(found, rule)
			}
		}
	}
	return found, nil
}

// cleanTable removes all owned chains and the rules that lead to them from a table, and returns a
// line for each removed object. A chain that another object refers to, such as a map of native nft,
// cannot be deleted; cleanTable empties it, so that it has no effect.
func cleanTable(ctx context.Context, t Table) (removed []string, err error) {
	for try := 0; ; try++ {
		now, err := readTable(ctx, t)
		if err != nil {
			return nil, err
		}
		c := change{drop: slices.Sorted(maps.Keys(now.chains)), keepDropped: try == clearTries}
		if len(c.drop) == 0 {
			return nil, nil // without owned chains, no rule can lead to one
		}
		if c.stale, err = leading(ctx, t, now, isOwned); err != nil {
			return nil, err
		}
		err = t.Restore(ctx, c.text(t.layout()))
		if err != nil && (try == clearTries || ctx.Err() != nil) {
			return nil, fmt.Errorf("remove the rules: %w", err)
		}
		if err == nil {
			return c.removed(now, dropEach(ctx, t, c)), nil
		}
	}
}

// clearTries bounds the attempts to delete the owned chains; after that, they are only emptied. An
// attempt may fail because an object has disappeared since it was read, or because iptables does
// not find it.
const clearTries = 2

// dropEach deletes the chains that a change has only emptied (see change.keepDropped), one by one. It
// returns those that cannot be deleted.
func dropEach(ctx context.Context, t Table, c change) (left []string) {
	if !c.keepDropped {
		return nil
	}
	for _, name := range c.drop {
		if t.Restore(ctx, change{drop: []string{name}}.text(t.layout())) != nil {
			left = append(left, name)
		}
	}
	return left
}

// removed describes what a change has deleted. The chains in the parameter "left" could not be
// deleted.
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
