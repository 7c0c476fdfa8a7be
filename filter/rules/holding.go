package rules

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// holding is what a table holds, as far as it concerns us.
type holding struct {
	names  []string            // of all chains
	chains map[string][]string // the rules of our chains, older ones included
	hook   []string            // the rules of the hook
}

// look reads a table. The commands read one chain at a time, so that somebody
// else's change may lie between two of them; the next look sees it.
func look(ctx context.Context, t Table) (holding, error) {
	names, err := t.Chains(ctx)
	if err != nil {
		return holding{}, err
	}
	h := holding{names: names, chains: map[string][]string{}}
	if h.hook, err = t.Rules(ctx, hook); err != nil {
		return holding{}, err
	}
	for _, name := range names {
		if !isOurs(name) {
			continue
		}
		if h.chains[name], err = t.Rules(ctx, name); err != nil {
			return holding{}, err
		}
	}
	return h, nil
}

// older are the chains that an older version kept and this one does not.
func (h holding) older() []string {
	var names []string
	for _, name := range h.names {
		if isOurs(name) && !slices.Contains(ours, name) {
			names = append(names, name)
		}
	}
	return names
}

// equal says whether both hold the same of ours.
func (h holding) equal(o holding) bool {
	return slices.Equal(h.hook, o.hook) && maps.EqualFunc(h.chains, o.chains, slices.Equal)
}

// spelling is how this node's iptables prints our rules, where that differs from
// how we write them.
type spelling map[string]string

// of is how a rule is printed.
func (s spelling) of(rule string) string {
	if printed, ok := s[rule]; ok {
		return printed
	}
	return rule
}

// learn takes what a table holds for the spelling of what we want, rule by rule.
// A table with another number of rules holds something else.
func (s spelling) learn(now holding, want map[string][]string) {
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
	if len(now.hook) > 0 && leadsTo(now.hook[0], func(chain string) bool { return chain == Chain }) {
		s[jump] = now.hook[0]
	}
}

// faults says all in which a table differs from what is wanted, in words for the
// log.
func (t *keptTable) faults(now holding, want map[string][]string) []string {
	var wrong []string
	for _, name := range ours {
		rules, there := now.chains[name]
		same := slices.EqualFunc(rules, want[name], func(is, wanted string) bool { return is == t.spelling.of(wanted) })
		switch {
		case !there:
			wrong = append(wrong, fmt.Sprintf("there is no chain %s", name))
		case len(rules) == 0:
			wrong = append(wrong, fmt.Sprintf("chain %s is empty", name))
		case !same:
			wrong = append(wrong, fmt.Sprintf("chain %s has other rules", name))
		}
	}
	for _, name := range now.older() {
		wrong = append(wrong, fmt.Sprintf("chain %s is not of this version", name))
	}
	return append(wrong, t.jumpFaults(now.hook)...)
}

// jumpFaults says what is wrong with the way into our chains: of all rules of the
// hook, the first must be our jump, and no other may lead to us.
func (t *keptTable) jumpFaults(rules []string) []string {
	wanted, count := t.spelling.of(jump), 0
	for _, rule := range rules {
		if leadsTo(rule, isOurs) {
			count++
		}
	}
	switch {
	case count == 0:
		return []string{fmt.Sprintf("%s does not jump to %s", hook, Chain)}
	case count > 1:
		return []string{fmt.Sprintf("%s jumps to %s %d times", hook, Chain, count)}
	case rules[0] == wanted:
		return nil
	case slices.Contains(rules, wanted):
		return []string{fmt.Sprintf("the jump to %s is not the first rule of %s", Chain, hook)}
	}
	return []string{fmt.Sprintf("%s jumps to %s by another rule", hook, Chain)}
}

// leading are all rules of a table that lead to a chain that is accepted, but
// those in the accepted chains themselves.
func leading(ctx context.Context, t Table, now holding, is func(chain string) bool) ([]string, error) {
	var found []string
	for _, name := range now.names {
		if is(name) || isOurs(name) {
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

// clearTable takes all of ours out of a table, and says what that was, in the
// words of iptables.
func clearTable(ctx context.Context, t Table) (removed []string, err error) {
	now, err := look(ctx, t)
	if err != nil {
		return nil, err
	}
	c := change{drop: slices.Sorted(maps.Keys(now.chains))}
	if len(c.drop) == 0 {
		return nil, nil // no rule can lead to a chain that is not there
	}
	if c.stale, err = leading(ctx, t, now, isOurs); err != nil {
		return nil, err
	}
	if err := t.Restore(ctx, c.text()); err != nil {
		return nil, fmt.Errorf("remove the rules: %w", err)
	}
	for _, rule := range c.stale {
		removed = append(removed, "rule "+strings.TrimPrefix(rule, "-A "))
	}
	for _, name := range c.drop {
		removed = append(removed, fmt.Sprintf("chain %s, rules: %d", name, len(now.chains[name])))
	}
	return removed, nil
}
