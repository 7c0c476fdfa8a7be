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

// Fake is a [Table] in memory, for tests. It supports the commands that this package writes, and
// returns an error for others. It may be used concurrently.
type Fake struct {
	noChoice
	family Family
	in     *layout
	filter *Fake // see WithFilter

	mu       sync.Mutex
	order    []string            // chains in the order of their creation
	chains   map[string][]string // rules, each "-A CHAIN ..."
	broken   error
	writes   int
	reads    int
	format   func(string) string
	refuse   func(text string) error
	notify   func() // the callback of Watch, or nil
	notifies bool   // Watch works
}

// NewFake returns a table with empty built-in chains.
func NewFake(f Family) *Fake {
	t := &Fake{family: f, in: mangle, chains: map[string][]string{}}
	for _, c := range []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"} {
		t.order, t.chains[c] = append(t.order, c), nil
	}
	return t
}

// WithFilter gives the table a companion, the table filter, and returns both.
func (t *Fake) WithFilter() (mangle, filter *Fake) {
	t.filter = NewFake(t.family)
	t.filter.in = rejecting
	return t, t.filter
}

func (t *Fake) layout() *layout { return t.in }

func (t *Fake) companion() Table {
	if t.filter == nil {
		return nil
	}
	return t.filter
}

// Family implements Table.
func (t *Fake) Family() Family { return t.family }

// String implements Table.
func (t *Fake) String() string { return t.family.command() + "-fake" }

// Break makes the methods that read or write the table fail with err, until it is set to nil.
func (t *Fake) Break(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.broken = err
}

// Refuse makes Restore call refuse() with its text, and fail if refuse() returns an error.
func (t *Fake) Refuse(refuse func(text string) error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.refuse = refuse
}

// Format makes Rules return f of each rule, to simulate another version of iptables.
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
	return strings.Join(slices.Concat([]string{"*" + t.in.table}, chains, rules, []string{"COMMIT", ""}), "\n")
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
	rules = slices.Clone(rules) // the loop changes elements
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

// SupportWatch makes Watch work. Without it, Watch returns [errors.ErrUnsupported].
func (t *Fake) SupportWatch() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notifies = true
}

// Watch implements Table.
func (t *Fake) Watch(_ context.Context, notify func()) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.notifies {
		return errors.ErrUnsupported
	}
	t.notify = notify
	return nil
}

// Reads returns the number of calls of Chains.
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
	next := &Fake{in: t.in, order: slices.Clone(t.order), chains: maps.Clone(t.chains), format: t.format}
	for i, line := range strings.Split(text, "\n") {
		if err := next.carryOut(line); err != nil {
			return fmt.Errorf("line %d, %q: %w", i+1, line, err)
		}
	}
	t.order, t.chains = next.order, next.chains
	t.writes++
	if t.notify != nil {
		t.notify()
	}
	return nil
}

// carryOut applies one line of a transaction.
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
	if command == "*"+t.in.table || command == "COMMIT" || command == "" {
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
			return fmt.Errorf("no position %s", place)
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
		return fmt.Errorf("unknown command")
	}
	return nil
}

// drop deletes a chain. It fails if the chain has rules or a rule leads to it.
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
