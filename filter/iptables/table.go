package iptables

import "context"

// Table is the mangle table of one family in one backend, or its replacement. Its methods are not
// called concurrently.
type Table interface {
	// Family is the IP version whose packets meet the table.
	Family() Family
	// String is the name of the command that handles it, such as
	// "ip6tables-legacy".
	String() string
	// Choose selects, where there is a choice, the table of the family that has the rules from now
	// on. Tidy removes what is left in the other one, if it can. The rules are written between
	// the two.
	Choose() error
	Tidy(ctx context.Context)
	// Leave deletes a separate table after its rules are gone.
	Leave() error
	// Chains are the names of all chains, built-in ones included.
	Chains(ctx context.Context) ([]string, error)
	// Rules are the rules of a chain that exists, each "-A CHAIN ...", in order. Of one
	// that iptables cannot print the text has at least the jumps to other chains, and
	// suffices for deleting it.
	Rules(ctx context.Context, chain string) ([]string, error)
	// Jumps are the rules of a chain as far as they lead to other chains: as Rules gives
	// those of a chain that iptables cannot print.
	Jumps(ctx context.Context, chain string) ([]string, error)
	// Count is how many rules a chain has, where that is much cheaper to know than Rules.
	Count(ctx context.Context, chain string) (rules int, known bool)
	// Inactive returns the reason why no packet meets the existing rules; empty if packets do.
	// Restore ends such a state where it can.
	Inactive(ctx context.Context) (why string, err error)
	// Generation is a number that changes with every change to the table, and perhaps with others,
	// where that is much cheaper to read than Rules.
	Generation() (number uint32, known bool)
	// Watch calls told soon after each relevant change to the table, its own included, until ctx
	// ends. It returns at once, with [errors.ErrUnsupported] where the kernel does not notify.
	// It may miss changes.
	Watch(ctx context.Context, told func()) error
	// Restore carries out a text for iptables-restore --noflush, as a whole or
	// not at all.
	Restore(ctx context.Context, text string) error
}

// noChoice is the part of a [Table] that has none.
type noChoice struct{}

// Choose implements [Table].
func (noChoice) Choose() error { return nil }

// Tidy implements [Table].
func (noChoice) Tidy(context.Context) {}

// Leave implements [Table].
func (noChoice) Leave() error { return nil }
