package iptables

import "context"

// Table is the mangle table of one family in one backend, or its replacement. Its methods are not
// called concurrently.
type Table interface {
	// Family returns the IP version of the packets that meet the table.
	Family() Family
	// String returns the name of the command for the table, such as "ip6tables-legacy", or of
	// the separate table.
	String() string
	// Choose selects the table of the family that has the rules from now on, if there is a choice.
	// Call it before writing the rules, and Tidy afterwards: Tidy tries to remove rules that are
	// left in the other table.
	Choose() error
	Tidy(ctx context.Context)
	// Leave deletes a separate table after its rules are gone.
	Leave() error
	// Chains returns the names of all chains, built-in ones included.
	Chains(ctx context.Context) ([]string, error)
	// Rules returns the rules of an existing chain in order, each "-A CHAIN ...". If iptables
	// cannot print a rule, its text has at least the jumps to other chains, and suffices to
	// delete it.
	Rules(ctx context.Context, chain string) ([]string, error)
	// Jumps returns the rules of a chain like Rules, but each text may be the short form with
	// only the jumps. It may be cheaper than Rules.
	Jumps(ctx context.Context, chain string) ([]string, error)
	// Count returns the number of rules of a chain. It is known only where counting is much
	// cheaper than Rules.
	Count(ctx context.Context, chain string) (rules int, known bool)
	// Inactive returns the reason why no packet meets the existing rules; empty if packets do.
	// Restore ends such a state where it can.
	Inactive(ctx context.Context) (why string, err error)
	// Generation returns a number that changes with every change to the table, and perhaps with
	// changes to other tables. It is known only where reading it is much cheaper than Rules.
	Generation() (number uint32, known bool)
	// Watch calls notify soon after each relevant change to the table, including changes by
	// Restore, until ctx ends. It returns at once, with [errors.ErrUnsupported] if the table has
	// no notifications. It may miss changes.
	Watch(ctx context.Context, notify func()) error
	// Restore carries out a text in the format of iptables-restore --noflush, as a whole or not
	// at all.
	Restore(ctx context.Context, text string) error
}

// noChoice has the methods of a [Table] without an alternative.
type noChoice struct{}

// Choose implements [Table].
func (noChoice) Choose() error { return nil }

// Tidy implements [Table].
func (noChoice) Tidy(context.Context) {}

// Leave implements [Table].
func (noChoice) Leave() error { return nil }
