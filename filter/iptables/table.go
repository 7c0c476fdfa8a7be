package iptables

import "context"

// Table is the mangle table of one family in one backend, or what is used in its place. Its methods are not
// called concurrently.
type Table interface {
	// Family is the IP version whose packets meet the table.
	Family() Family
	// String is the name of the command that handles it, such as
	// "ip6tables-legacy".
	String() string
	// Choose decides, where there is a choice, which table of the family has the rules from
	// now on, and Tidy takes what is left in the other one away, if it can. The rules
	// are written between the two.
	Choose() error
	Tidy(ctx context.Context)
	// Leave takes away what is ours of the table itself, when no rules of ours are in it.
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
	// Inactive says why no packet meets the rules of the table although they are there;
	// empty if packets do. Restore ends such a state where it can.
	Inactive(ctx context.Context) (why string, err error)
	// Generation is a number that is another one after any change to the table,
	// and perhaps after others, where that is much cheaper to know than Rules.
	Generation() (number uint32, known bool)
	// Watch calls told soon after each change to the table that may concern us, our own
	// included, until ctx ends. It returns at once, with [errors.ErrUnsupported] where
	// the kernel does not tell. Changes may be missed.
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
