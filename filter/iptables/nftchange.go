//go:build linux

package iptables

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// deleteRule deletes a rule. A rule that is already gone is not an error: the kernel does not
// reuse its handle for another rule.
func (t nftTable) deleteRule(chain string, handle uint64) error {
	err := t.commit(unix.NFT_MSG_DELRULE, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_RULE_TABLE, t.name)
		ae.String(unix.NFTA_RULE_CHAIN, chain)
		ae.Uint64(unix.NFTA_RULE_HANDLE, handle)
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete rule %d of %s %s: %w", handle, t.name, chain, explain(err))
	}
	return nil
}

// deleteChain deletes a chain and its rules.
func (t nftTable) deleteChain(chain string) error {
	err := t.commit(unix.NFT_MSG_DELCHAIN, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_CHAIN_TABLE, t.name)
		ae.String(unix.NFTA_CHAIN_NAME, chain)
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete chain %s %s: %w", t.name, chain, explain(err))
	}
	return nil
}

// wake switches on a dormant table.
func (t nftTable) wake() error {
	err := t.commit(unix.NFT_MSG_NEWTABLE, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_TABLE_NAME, t.name)
		ae.Uint32(unix.NFTA_TABLE_FLAGS, 0)
	})
	if err != nil {
		return fmt.Errorf("switch table %s on: %w", t.name, explain(err))
	}
	return nil
}

// commit applies one change.
func (t nftTable) commit(kind uint16, flags netlink.HeaderFlags, fill func(*netlink.AttributeEncoder)) error {
	attrs, err := encode(fill)
	if err != nil {
		return err
	}
	return t.commitAll([]netlink.Message{t.message(kind, flags, attrs)})
}

// commitAll applies the changes in one transaction: all of them or none.
func (t nftTable) commitAll(changes []netlink.Message) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	edge := func(kind uint16) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
			Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	last := len(changes) // index of the last change in batch
	changes[last-1].Header.Flags |= netlink.Acknowledge
	batch := slices.Concat([]netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}, changes, []netlink.Message{edge(unix.NFNL_MSG_BATCH_END)})
	sent, err := c.SendMessages(batch)
	if err != nil {
		return err
	}
	for { // the kernel sends errors first, and then the acknowledgement of the last change
		answers, err := c.Receive()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(answers, func(m netlink.Message) bool { return m.Header.Sequence == sent[last].Header.Sequence }) {
			return nil
		}
	}
}
