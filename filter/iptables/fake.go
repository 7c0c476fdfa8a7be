package iptables

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Fake is a [Table] in memory, for tests. It understands what this package
// writes and refuses the rest. It may be used concurrently.
type Fake struct {
	noChoice
	family Family

	mu     sync.Mutex
	order  []string            // chains in the order in which they were made
	chains map[string][]string // rules, each "-A CHAIN ..."
	broken error
	writes int
	reads  int
	format func(string) string
	refuse func(text string) error
	told   func() // nil where the kernel does not tell
	tells  bool
}

// NewFake makes an empty table.
func NewFake(f Family) *Fake {
	t := &Fake{family: f, chains: map[string][]string{}}
	for _, c := range []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"} {
		t.order, t.chains[c] = append(t.order, c), nil
	}
	return t
}

// Family implements Table.
func (t *Fake) Family() Family { return t.family }

// String implements Table.
func (t *Fake) String() string { return t.family.command() + "-fake" }

// Break makes every call fail with err, until it is nil again.
func (t *Fake) Break(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.broken = err
}

// Refuse makes transactions fail for which refuse gives an error.
func (t *Fake) Refuse(refuse func(text string) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refuse = refuse
}

// Format makes Rules return each rule as f prints it, as another version of
// iptables might.
func (t *Fake) Format(f func(string) string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.format = f
}

// Writes returns the number of completed transactions.
func (t *Fake) Writes() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writes
}

// Dump returns the whole table in the format of iptables-save, without counters.
func (t *Fake) Dump() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var chains, rules []string
	for _, c := range t.order {
		chains = append(chains, ":"+c)
		rules = append(rules, t.chains[c]...)
	}
	return strings.Join(slices.Concat([]string{"*" + table}, chains, rules, []string{"COMMIT", ""}), "\n")
}

// Chains implements Table.
func (t *Fake) Chains(context.Context) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reads++
	return slices.Clone(t.order), t.broken
}

// Rules implements Table.
func (t *Fake) Rules(_ context.Context, chain string) ([]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken != nil {
		return nil, t.broken
	}
	rules, ok := t.chains[chain]
	if !ok {
		return nil, fmt.Errorf("no chain %s", chain)
	}
	rules = slices.Clone(rules) // format changes them
	for i, r := range rules {
		if t.format != nil {
			rules[i] = t.format(r)
		}
	}
	return rules, nil
}

// Jumps implements Table.
func (t *Fake) Jumps(ctx context.Context, chain string) ([]string, error) { return t.Rules(ctx, chain) }

// Count implements Table.
func (t *Fake) Count(_ context.Context, chain string) (int, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.chains[chain]), t.broken == nil
}

// Inactive implements Table.
func (t *Fake) Inactive(context.Context) (string, error) { return "", nil }

// Generation implements Table.
func (t *Fake) Generation() (uint32, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return uint32(t.writes), t.broken == nil
}

// Tell makes Watch work.
func (t *Fake) Tell() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tells = true
}

// Watch implements Table.
func (t *Fake) Watch(_ context.Context, told func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.tells {
		return errors.ErrUnsupported
	}
	t.told = told
	return nil
}

// Reads returns how often the chains were listed.
func (t *Fake) Reads() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reads
}

// Restore implements Table.
func (t *Fake) Restore(_ context.Context, text string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.broken != nil {
		return t.broken
	}
	if t.refuse != nil {
		if err := t.refuse(text); err != nil {
			return err
		}
	}
	next := &Fake{order: slices.Clone(t.order), chains: maps.Clone(t.chains), format: t.format}
	for i, line := range strings.Split(text, "\n") {
		if err := next.carryOut(line); err != nil {
			return fmt.Errorf("line %d, %q: %w", i+1, line, err)
		}
	}
	t.order, t.chains = next.order, next.chains
	t.writes++
	if t.told != nil {
		t.told()
	}
	return nil
}

// carryOut does what one line of a transaction says.
func (t *Fake) carryOut(line string) error {
	command, rest, _ := strings.Cut(line, " ")
	chain, rule, _ := strings.Cut(rest, " ")
	if name, ok := strings.CutPrefix(command, ":"); ok {
		if _, exists := t.chains[name]; !exists {
			t.order = append(t.order, name)
		}
		t.chains[name] = nil
		return nil
	}
	if command == "*"+table || command == "COMMIT" || command == "" {
		return nil
	}
	rules, ok := t.chains[chain]
	if !ok {
		return fmt.Errorf("no chain %s", chain)
	}
	full := "-A " + chain + " " + rule
	switch command {
	case "-A":
		t.chains[chain] = append(slices.Clone(rules), full)
	case "-I":
		place, rule, _ := strings.Cut(rule, " ")
		at, err := strconv.Atoi(place)
		if err != nil || at < 1 || at > len(rules)+1 {
			return fmt.Errorf("no place %s", place)
		}
		t.chains[chain] = slices.Insert(slices.Clone(rules), at-1, "-A "+chain+" "+rule)
	case "-D":
		at := slices.IndexFunc(rules, func(r string) bool { return r == full || t.format != nil && t.format(r) == full })
		if at < 0 {
			return fmt.Errorf("no such rule")
		}
		t.chains[chain] = slices.Delete(slices.Clone(rules), at, at+1)
	case "-F":
		t.chains[chain] = nil
	case "-X":
		return t.drop(chain)
	default:
		return fmt.Errorf("command not understood")
	}
	return nil
}

// drop takes away a chain that is empty and that no rule leads to.
func (t *Fake) drop(chain string) error {
	if len(t.chains[chain]) > 0 {
		return fmt.Errorf("chain %s has rules", chain)
	}
	for _, rules := range t.chains {
		if slices.ContainsFunc(rules, func(r string) bool { return leadsTo(r, func(c string) bool { return c == chain }) }) {
			return fmt.Errorf("chain %s is in use", chain)
		}
	}
	delete(t.chains, chain)
	t.order = slices.DeleteFunc(t.order, func(c string) bool { return c == chain })
	return nil
}
