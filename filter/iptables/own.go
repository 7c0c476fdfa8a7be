//go:build linux

package iptables

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ownName is the name of the separate tables in nf_tables.
const ownName = "sluice"

// ownTable is a separate table in nf_tables, whose chains have the hooks and priority of
// iptables' mangle. It holds the same rules, for nodes where mangle cannot be used.
//
// iptables-nft writes only to its own tables. So ownTable writes the rules over netlink:
// ownChange translates a transaction of iptables-restore into a transaction of nf_tables.
type ownTable struct {
	noChoice
	family Family
	// texts holds the text of each rule that this agent wrote, without "-A" and the chain. The
	// keys are the kernel's forms of the rules.
	texts map[string]string
	stays bool // Leave does not delete the table
}

func newOwnTable(f Family) *ownTable { return &ownTable{family: f, texts: map[string]string{}} }

func (o *ownTable) nft() nftTable { return nftTable{o.family, ownName} }

// Family implements Table.
func (o *ownTable) Family() Family { return o.family }

// String implements Table.
func (o *ownTable) String() string {
	return fmt.Sprintf("nft table %s %s", map[Family]string{IPv4: "ip", IPv6: "ip6"}[o.family], ownName)
}

// Chains implements Table.
func (o *ownTable) Chains(context.Context) (names []string, err error) {
	chains, err := o.nft().chains()
	for _, c := range chains {
		names = append(names, c.name)
	}
	return names, err
}

// Rules implements Table. A rule that this ownTable has written is returned as it was written,
// any other rule in the form of nftRule.text.
func (o *ownTable) Rules(_ context.Context, chain string) ([]string, error) {
	rules, err := o.nft().rules(chain)
	var lines []string
	for _, r := range rules {
		line := r.text(chain)
		if text, known := o.texts[string(withoutCounters(r.expressions))]; known {
			line = "-A " + chain + " " + text
		}
		lines = append(lines, line)
	}
	return lines, err
}

// Jumps implements Table.
func (o *ownTable) Jumps(_ context.Context, chain string) ([]string, error) {
	rules, err := o.nft().rules(chain)
	var lines []string
	for _, r := range rules {
		lines = append(lines, r.text(chain))
	}
	return lines, err
}

// Count implements Table.
func (o *ownTable) Count(_ context.Context, chain string) (int, bool) {
	rules, err := o.nft().rules(chain)
	return len(rules), err == nil
}

// Inactive implements Table.
func (o *ownTable) Inactive(context.Context) (string, error) { return o.nft().inactive() }

// Generation implements Table.
func (o *ownTable) Generation() (uint32, bool) {
	n, err := nftGeneration()
	return n, err == nil
}

// Watch implements Table.
func (o *ownTable) Watch(ctx context.Context, notify func()) error {
	return o.nft().watch(ctx, notify, nil)
}

// Dropped returns the number of packets that the rules of a chain have dropped since the chain
// was written, 0 if the chain does not exist.
func (o *ownTable) Dropped(chain string) (packets uint64, err error) {
	rules, err := o.nft().rules(chain)
	for _, r := range rules {
		if r.drops {
			packets += r.packets
		}
	}
	return packets, err
}

// Leave implements Table. It deletes the table, except in two cases: the table has chains of
// other programs, or stays is set. When a table is deleted, the kernel drops all packets that
// wait in queues of the node. Therefore Others sets stays for an agent that uses mangle.
func (o *ownTable) Leave() error {
	chains, err := o.nft().chains()
	if err != nil || o.stays || len(chains) == 0 {
		return err
	}
	for _, c := range chains {
		if !isOwned(c.name) && !mangle.isHook(c.name) {
			return nil
		}
	}
	b := newOwnChange(o.nft())
	b.add(unix.NFT_MSG_DELTABLE, 0, attributes{}.text(unix.NFTA_TABLE_NAME, ownName))
	if err := b.commit(); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete table %s: %w", ownName, explain(err))
	}
	return nil
}

// Restore implements Table.
func (o *ownTable) Restore(_ context.Context, text string) error {
	text, err := o.nft().withHandles(text)
	if err != nil {
		return err
	}
	b := newOwnChange(o.nft())
	if err := b.all(text); err != nil {
		return fmt.Errorf("write table %s: %w", ownName, explain(err))
	}
	for expressions, text := range b.texts {
		o.texts[expressions] = text
	}
	return nil
}

// ownChange is a transaction under construction.
type ownChange struct {
	table    nftTable
	messages []netlink.Message
	texts    map[string]string
	hooks    []entry // hooks with a jump to a chain that the transaction fills
	renewed  bool    // the transaction first deletes the table and creates it again, because a hook was wrong
	// kept has the expressions of the jumps in a renewed table that are right, by their hooks.
	kept map[string][]byte
}

func newOwnChange(t nftTable) ownChange {
	return ownChange{table: t, texts: map[string]string{}, kept: map[string][]byte{}}
}

// all applies a text in the format of iptables-restore.
func (b *ownChange) all(text string) error {
	if err := b.prepare(text); err != nil {
		return err
	}
	for line := range strings.Lines(text) {
		if err := b.carryOut(strings.TrimSpace(line)); err != nil {
			return err
		}
	}
	return b.commit()
}

// prepare begins the transaction for text. If text declares chains, in lines that begin
// with ":", prepare creates the table and the hooks of these chains.
func (b *ownChange) prepare(text string) error {
	if !strings.Contains(text, "\n:") {
		return nil
	}
	chains, err := b.table.chains()
	if err != nil {
		return err
	}
	why, err := b.table.wrongHook()
	if err != nil {
		return err
	}
	called := slices.ContainsFunc(chains, func(c nftChain) bool { return c.base && isOwned(c.name) })
	if b.renewed = why != "" || called; b.renewed {
		b.add(unix.NFT_MSG_DELTABLE, 0, attributes{}.text(unix.NFTA_TABLE_NAME, b.table.name))
	}
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, attributes{}.text(unix.NFTA_TABLE_NAME, b.table.name).number(unix.NFTA_TABLE_FLAGS, 0))
	for _, e := range mangle.entries {
		if !strings.Contains(text, "\n:"+e.chain+" ") {
			continue
		}
		b.hooks = append(b.hooks, e)
		if err := b.keep(e); err != nil {
			return err
		}
		place := attributes{}.number(unix.NFTA_HOOK_HOOKNUM, hooks[e.name]).number(unix.NFTA_HOOK_PRIORITY, uint32(mangle.priority))
		b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, b.chain(e.name).raw(unix.NFTA_CHAIN_HOOK, place).
			number(unix.NFTA_CHAIN_POLICY, verdictAccept).text(unix.NFTA_CHAIN_TYPE, chainKind))
	}
	return nil
}

// keep keeps the jump of a hook if the table is renewed: the text of the transaction has only the
// jumps that are wrong.
func (b *ownChange) keep(e entry) error {
	if !b.renewed {
		return nil
	}
	rules, err := b.table.rules(e.name)
	for _, r := range rules {
		if leadsTo(r.text(e.name), func(chain string) bool { return chain == e.chain }) {
			b.kept[e.name] = r.expressions
		}
	}
	return err
}

// verdictAccept is NF_ACCEPT.
const verdictAccept = 1

// carryOut appends the messages for one line in the format of iptables-restore.
func (b *ownChange) carryOut(line string) error {
	command, rest, _ := strings.Cut(line, " ")
	chain, rule, _ := strings.Cut(rest, " ")
	switch {
	case b.renewed && (command == "-D" || command == "-F" || command == "-X"): // the new table has nothing to delete
	case strings.HasPrefix(command, ":"):
		b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, b.chain(command[1:]))
		b.flush(command[1:])
	case command == "-A":
		return b.addRule(chain, rule)
	case command == "-I": // always the jump of a hook, which must have no other rule
		b.flush(chain)
		delete(b.kept, chain)
		_, rule, _ = strings.Cut(rule, " ")
		return b.addRule(chain, rule)
	case command == "-D":
		if chain, handle, is := handleOf(line); is {
			b.add(unix.NFT_MSG_DELRULE, 0, b.ruleOf(chain).raw(unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, handle)))
		}
	case command == "-F":
		b.flush(chain)
	case command == "-X":
		b.add(unix.NFT_MSG_DELCHAIN, 0, b.chain(chain))
	}
	return nil
}

// commit applies the transaction.
func (b *ownChange) commit() error {
	for _, e := range b.hooks {
		if jump, is := b.kept[e.name]; is {
			b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, b.ruleOf(e.name).raw(unix.NFTA_RULE_EXPRESSIONS, jump))
		}
	}
	return b.table.commitAll(b.messages)
}

// addRule appends a rule to a chain.
func (b *ownChange) addRule(chain, rule string) error {
	e, err := encodeRule(b.table.family, rule)
	if err != nil {
		return err
	}
	attrs := b.ruleOf(chain).raw(unix.NFTA_RULE_EXPRESSIONS, e.expressions)
	if e.protocol != 0 {
		attrs = attrs.raw(unix.NFTA_RULE_COMPAT, attributes{}.number(unix.NFTA_RULE_COMPAT_PROTO, e.protocol).number(unix.NFTA_RULE_COMPAT_FLAGS, 0))
	}
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, attrs)
	b.texts[string(withoutCounters(e.expressions))] = rule
	return nil
}

// flush deletes all rules of a chain.
func (b *ownChange) flush(chain string) { b.add(unix.NFT_MSG_DELRULE, 0, b.ruleOf(chain)) }

func (b *ownChange) add(kind uint16, flags netlink.HeaderFlags, attrs attributes) {
	b.messages = append(b.messages, b.table.message(kind, flags, attrs))
}

func (b *ownChange) chain(name string) attributes {
	return attributes{}.text(unix.NFTA_CHAIN_TABLE, b.table.name).text(unix.NFTA_CHAIN_NAME, name)
}

func (b *ownChange) ruleOf(chain string) attributes {
	return attributes{}.text(unix.NFTA_RULE_TABLE, b.table.name).text(unix.NFTA_RULE_CHAIN, chain)
}
