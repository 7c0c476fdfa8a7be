package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"sluice/filter"
	"sluice/filter/iptables"
)

// addRulesFlags adds the flags of the iptables rules, which several commands share, and sets o
// to the defaults. After parsing, the caller must call o.Validate.
func addRulesFlags(fs *pflag.FlagSet, o *iptables.Options) {
	*o = iptables.Defaults
	fs.Var((*markFlag)(&o.AllowedMark), "allowed-mark", `bit of allowed connections in connection marks, and for a moment in packet marks. A packet
with this mark is not judged, so nothing else on the node may set it`)
	addOldName(fs, "judged-mark", "allowed-mark")
	fs.Var((*markFlag)(&o.RevokedMark), "revoked-mark", `bit of connections that are no longer allowed, in connection marks`)
	fs.Var(newNumberFlag(&o.FirstQueue, 0, 65534), "queue-first", "number of the first NFQUEUE")
	fs.Var(newNumberFlag(&o.Queues, 1, 65535), "queues", "the number of NFQUEUEs, with one worker each")
	fs.Var(newNumberFlag(&o.SourceShare, 0, iptables.MaxSourceShare), "source-share", `the number of new connections per second that one source may have judged in these
queues. More go to the overflow queue, so that others do not wait for them; 0 disables it`)
	fs.Var(newChoiceFlag(&o.Backend, iptables.Auto, iptables.NFT, iptables.Legacy), "iptables", "iptables to use: auto (the one that the node's other rules use), nft or legacy")
	fs.Var((*failFlag)(&o.FailOpen), "fail", "what happens to new connections while no agent runs, unless --kernel-cache remembers their verdict:\nopen (they pass) or closed (they are dropped)")
}

// markFlag is a bit of a mark. [iptables.Options.Validate] checks that it is a single bit.
type markFlag uint32

func (m *markFlag) String() string { return fmt.Sprintf("%#x", uint32(*m)) }
func (m *markFlag) Type() string   { return "bit" }

func (m *markFlag) Set(text string) error {
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		return fmt.Errorf("give a 32-bit number with one bit set, such as 0x10")
	}
	*m = markFlag(n)
	return nil
}

// addDenyWithFlag adds the flag --deny-with.
func addDenyWithFlag(fs *pflag.FlagSet, d *filter.Denial, usage string) {
	*d = filter.DenialDrop
	fs.Var((*denialFlag)(d), "deny-with", usage)
}

// denialFlag is how packets are denied.
type denialFlag filter.Denial

func (d *denialFlag) String() string { return filter.Denial(*d).String() }
func (d *denialFlag) Type() string   { return "drop|reject" }

func (d *denialFlag) Set(text string) error {
	denial, ok := filter.ParseDenial(text)
	if !ok {
		return fmt.Errorf("give drop or reject")
	}
	*d = denialFlag(denial)
	return nil
}

// failFlag is the fail mode; true means open.
type failFlag bool

func (f *failFlag) Type() string { return "open|closed" }

func (f *failFlag) String() string {
	if *f {
		return "open"
	}
	return "closed"
}

func (f *failFlag) Set(text string) error {
	if text != "open" && text != "closed" {
		return fmt.Errorf("give open or closed")
	}
	*f = text == "open"
	return nil
}

// numberFlag is an integer from low to high.
type numberFlag[T int | uint16] struct {
	value     *T
	low, high int
}

func newNumberFlag[T int | uint16](value *T, low, high int) *numberFlag[T] {
	return &numberFlag[T]{value, low, high}
}

func (n *numberFlag[T]) String() string { return strconv.Itoa(int(*n.value)) }
func (n *numberFlag[T]) Type() string   { return "number" }

func (n *numberFlag[T]) Set(text string) error {
	i, err := strconv.Atoi(text)
	if err != nil || i < n.low || i > n.high {
		return fmt.Errorf("give a number from %d to %d", n.low, n.high)
	}
	*n.value = T(i)
	return nil
}

// choiceFlag is one of several words.
type choiceFlag[T ~string] struct {
	value   *T
	choices []T
}

func newChoiceFlag[T ~string](value *T, choices ...T) *choiceFlag[T] {
	return &choiceFlag[T]{value, choices}
}

func (c *choiceFlag[T]) String() string { return string(*c.value) }

func (c *choiceFlag[T]) Type() string { return strings.Join(c.words(), "|") }

func (c *choiceFlag[T]) Set(text string) error {
	if !slices.Contains(c.words(), text) {
		return fmt.Errorf("give one of %s", strings.Join(c.words(), ", "))
	}
	*c.value = T(text)
	return nil
}

func (c *choiceFlag[T]) words() []string {
	var words []string
	for _, choice := range c.choices {
		if choice != "" { // the default of a flag that may be left out
			words = append(words, string(choice))
		}
	}
	return words
}

// prefixesFlag is a list of CIDRs.
type prefixesFlag []netip.Prefix

func (p *prefixesFlag) Type() string { return "CIDR,..." }

func (p *prefixesFlag) String() string {
	var texts []string
	for _, prefix := range *p {
		texts = append(texts, prefix.String())
	}
	return strings.Join(texts, ",")
}

func (p *prefixesFlag) Set(text string) error {
	for one := range strings.SplitSeq(text, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(one))
		if err != nil {
			return fmt.Errorf("give CIDRs, such as 10.1.2.0/24 or fd00:1:2::/64, separated by commas")
		}
		*p = append(*p, prefix.Masked())
	}
	return nil
}
