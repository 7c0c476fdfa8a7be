package rules

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// deleteRule deletes a rule. That it is gone already is no error: the kernel gives a
// handle to one rule only.
func (t nftTable) deleteRule(chain string, handle uint64) error {
	err := t.commit(unix.NFT_MSG_DELRULE, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_RULE_TABLE, table)
		ae.String(unix.NFTA_RULE_CHAIN, chain)
		ae.Uint64(unix.NFTA_RULE_HANDLE, handle)
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete rule %d of %s %s: %w", handle, table, chain, explain(err))
	}
	return nil
}

// deleteChain deletes a chain and its rules.
func (t nftTable) deleteChain(chain string) error {
	err := t.commit(unix.NFT_MSG_DELCHAIN, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_CHAIN_TABLE, table)
		ae.String(unix.NFTA_CHAIN_NAME, chain)
	})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("delete chain %s %s: %w", table, chain, explain(err))
	}
	return nil
}

// wake switches the table on.
func (t nftTable) wake() error {
	err := t.commit(unix.NFT_MSG_NEWTABLE, 0, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_TABLE_NAME, table)
		ae.Uint32(unix.NFTA_TABLE_FLAGS, 0)
	})
	if err != nil {
		return fmt.Errorf("switch table %s on: %w", table, explain(err))
	}
	return nil
}

// commit carries out one change, which nf_tables takes in a batch only.
func (t nftTable) commit(kind uint16, flags netlink.HeaderFlags, fill func(*netlink.AttributeEncoder)) error {
	attrs, err := encode(fill)
	if err != nil {
		return err
	}
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
	batch := []netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN), t.message(kind, netlink.Acknowledge|flags, attrs), edge(unix.NFNL_MSG_BATCH_END)}
	if _, err := c.SendMessages(batch); err != nil {
		return err
	}
	_, err = c.Receive() // the acknowledgement, or the error
	return err
}
