package iptables

import "context"

// Table is the mangle table of one family in one backend, or the separate table that replaces it.
// Its methods are not called concurrently.
type Table interface {
	// Family returns the IP version of the packets that traverse the table.
	Family() Family
	// String returns the name of the command for the table, such as "ip6tables-legacy", or the
	// name of the separate table.
	String() string
	// Choose selects one of the possible tables for the rules of this family. Call Choose before
	// the rules are written, and Tidy after that: if Choose has selected a different table than
	// before, Tidy tries to remove the rules from the earlier table.
	Choose() error
	Tidy(ctx context.Context)
	// Leave deletes a separate table after its rules are gone.
	Leave() error
	// Chains returns the names of all chains, including built-in chains.
	Chains(ctx context.Context) ([]string, error)
	// Rules returns the rules of an existing chain in order, each as "-A CHAIN ...". If iptables
	// cannot print a rule, Rules returns a short form of it: the text contains at least the jumps
	// to other chains, and suffices to delete the rule.
	Rules(ctx context.Context, chain string) ([]string, error)
	// Jumps is like Rules, but may return the short form even for rules that iptables can
	// print. Jumps may be cheaper than Rules.
	Jumps(ctx context.Context, chain string) ([]string, error)
	// Count returns the number of rules of a chain, if counting is much cheaper than Rules.
	// Otherwise, known is false.
	Count(ctx context.Context, chain string) (rules int, known bool)
	// Inactive returns the reason why packets do not traverse the existing rules; empty if they do.
	// Restore makes the table active again where it can.
	Inactive(ctx context.Context) (why string, err error)
	// Generation returns a number. If two calls return the same number, the table has not
	// changed between them; a change to another table may change the number too. If there
	// is no such number, or if it costs nearly as much to read as Rules, known is false.
	Generation() (number uint32, known bool)
	// Watch calls notify() soon after each relevant change to the table, including changes by
	// Restore, until ctx ends. It returns at once, with [errors.ErrUnsupported] if the table
	// has no notifications. It may miss changes.
	Watch(ctx context.Context, notify func()) error
	// Restore applies a text in the format of iptables-restore --noflush, as a whole or not at
	// all.
	Restore(ctx context.Context, text string) error

	// layout returns what the rules use of the table.
	layout() *layout
	// companion returns the table filter of the same family and backend, for the rules that
	// reject; nil if there is none.
	companion() Table
	// exists reports whether the table exists. Reading a legacy table creates it.
	exists() bool
	// attend is called for a companion. It sets whether Watch of the other table, which has this
	// companion, also notifies of changes to the companion.
	attend(on bool)
}

// noChoice implements some methods for a [Table] without an alternative and without companion.
type noChoice struct{}

// Choose implements [Table].
func (noChoice) Choose() error { return nil }

// Tidy implements [Table].
func (noChoice) Tidy(context.Context) {}

// Leave implements [Table].
func (noChoice) Leave() error { return nil }

func (noChoice) layout() *layout  { return mangle }
func (noChoice) companion() Table { return nil }
func (noChoice) exists() bool     { return true }
func (noChoice) attend(bool)      {}
