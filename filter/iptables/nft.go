//go:build linux

package iptables

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftTable is a table of one family in nf_tables, accessed over netlink: iptables' mangle or
// filter, or the separate table.
//
// iptables-nft refuses to list a table or chain with a rule that it cannot express, but still
// writes to such a table. So iptables is used to write the rules of mangle and to read owned
// chains. Netlink is used to read the rules of other programs, and to make the few changes
// that iptables cannot make.
type nftTable struct {
	family Family
	name   string
}

// nftChain is a chain of the table.
type nftChain struct {
	name string
	// base is set if the kernel itself calls the chain, at the given hook and priority. "kind"
	// is the chain's type, such as "filter".
	base     bool
	kind     string
	hook     uint32
	priority int32
}

// layout returns what the rules use of the table. The separate table has that of mangle.
func (t nftTable) layout() *layout {
	if t.name == rejecting.table {
		return rejecting
	}
	return mangle
}

// proto returns netfilter's number of the family.
func (t nftTable) proto() byte {
	if t.family == IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// message returns a request to nf_tables for this table's family.
func (t nftTable) message(kind uint16, flags netlink.HeaderFlags, attrs []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: nftType(kind), Flags: netlink.Request | flags},
		Data:   append([]byte{t.proto(), unix.NFNETLINK_V0, 0, 0}, attrs...),
	}
}

// encode returns the attributes that fill() adds, with numbers in network byte order, as
// nf_tables requires.
func encode(fill func(*netlink.AttributeEncoder)) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	fill(ae)
	return ae.Encode()
}

// dumpTries bounds the attempts to read a list that changes while it is read.
const dumpTries = 5

// dump reads a list of objects from the kernel, and calls each() with the attributes of every
// object. The list of a missing table or chain is empty. Each call of dump opens a new socket,
// because a socket belongs to the network namespace of the thread that opens it.
func (t nftTable) dump(kind uint16, attrs []byte, each func(*netlink.AttributeDecoder) error) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	var answers []netlink.Message
	for try := 1; ; try++ {
		answers, err = c.Execute(t.message(kind, netlink.Dump, attrs))
		if err == nil && !slices.ContainsFunc(answers, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }) {
			break
		}
		if errors.Is(err, unix.ENOENT) {
			return nil // no such table or chain
		}
		if try < dumpTries && (err == nil || errors.Is(err, unix.EINTR)) {
			continue
		}
		if err == nil {
			err = errors.New("the rules change faster than they can be read")
		}
		return err
	}
	for _, m := range answers {
		if len(m.Data) < nfgenmsgLen || m.Data[0] != t.proto() {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[nfgenmsgLen:])
		if err != nil {
			return err
		}
		ad.ByteOrder = binary.BigEndian
		if err := each(ad); err != nil {
			return err
		}
	}
	return nil
}

// chains returns all chains of the table, none if it does not exist.
func (t nftTable) chains() (chains []nftChain, err error) {
	err = t.dump(unix.NFT_MSG_GETCHAIN, nil, func(ad *netlink.AttributeDecoder) error {
		var c nftChain
		var in string // table
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_CHAIN_TABLE:
				in = ad.String()
			case unix.NFTA_CHAIN_NAME:
				c.name = ad.String()
			case unix.NFTA_CHAIN_TYPE:
				c.kind = ad.String()
			case unix.NFTA_CHAIN_HOOK:
				c.base = true
				ad.Nested(c.readHook)
			}
		}
		if in == t.name {
			chains = append(chains, c)
		}
		return ad.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("list the chains of %s: %w", t.name, explain(err))
	}
	return chains, nil
}

func (c *nftChain) readHook(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_HOOK_HOOKNUM:
			c.hook = ad.Uint32()
		case unix.NFTA_HOOK_PRIORITY:
			c.priority = int32(ad.Uint32())
		}
	}
	return nil
}

// dormant reports whether the table is switched off: its rules exist, but packets do not
// traverse them.
func (t nftTable) dormant() (bool, error) { return t.flag(unix.NFT_TABLE_F_DORMANT) }

// hasOwner reports whether the table belongs to a process. Only that process can change it.
func (t nftTable) hasOwner() (bool, error) { return t.flag(tableOwner) }

// tableOwner is NFT_TABLE_F_OWNER.
const tableOwner = 0x2

// flag reports whether the table has a flag.
func (t nftTable) flag(flag uint32) (set bool, err error) {
	err = t.dump(unix.NFT_MSG_GETTABLE, nil, func(ad *netlink.AttributeDecoder) error {
		var name string
		var flags uint32
		for ad.Next() {
			switch ad.Type() {
			case unix.NFTA_TABLE_NAME:
				name = ad.String()
			case unix.NFTA_TABLE_FLAGS:
				flags = ad.Uint32()
			}
		}
		set = set || name == t.name && flags&flag != 0
		return ad.Err()
	})
	if err != nil {
		return false, fmt.Errorf("read the flags of %s: %w", t.name, explain(err))
	}
	return set, nil
}

// rules returns the rules of a chain in order, none if it does not exist.
func (t nftTable) rules(chain string) (rules []nftRule, err error) {
	attrs, err := encode(func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_RULE_TABLE, t.name)
		ae.String(unix.NFTA_RULE_CHAIN, chain)
	})
	if err != nil {
		return nil, err
	}
	err = t.dump(unix.NFT_MSG_GETRULE, attrs, func(ad *netlink.AttributeDecoder) error {
		r, at, err := readRule(ad)
		if at == (rulePlace{t.name, chain}) {
			rules = append(rules, r)
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the rules of %s %s: %w", t.name, chain, explain(err))
	}
	return rules, nil
}

// count adds the rules of other programs in all tables of the family to u.rules, including the
// tables of native nft. It sets u.kubelet if a chain of the kubelet exists.
func (t nftTable) count(u *use) error {
	err := t.dump(unix.NFT_MSG_GETCHAIN, nil, func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_CHAIN_NAME {
				u.kubelet = u.kubelet || isKubelets(ad.String())
			}
		}
		return ad.Err()
	})
	if err == nil {
		err = t.dump(unix.NFT_MSG_GETRULE, nil, func(ad *netlink.AttributeDecoder) error {
			r, at, err := readRule(ad)
			if err == nil && !isOwned(at.chain) && !leadsTo(r.text(at.chain), isOwned) {
				u.rules++
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("count the rules of %s in nf_tables: %w", t.family, explain(err))
	}
	return nil
}

// hooks maps the built-in chains of iptables to the kernel's hook numbers.
var hooks = map[string]uint32{
	"PREROUTING": unix.NF_INET_PRE_ROUTING, "INPUT": unix.NF_INET_LOCAL_IN, "FORWARD": unix.NF_INET_FORWARD,
	"OUTPUT": unix.NF_INET_LOCAL_OUT, "POSTROUTING": unix.NF_INET_POST_ROUTING,
}

// chainKind is the type of the chains that Sluice uses. A chain of type nat would be
// called only for the first packet of a connection.
const chainKind = "filter"

// inactive returns the reason why packets do not traverse the rules of the table; empty if they do.
func (t nftTable) inactive() (string, error) {
	off, err := t.dormant()
	if err != nil {
		return "", err
	}
	if off {
		return fmt.Sprintf("table %s is dormant", t.name), nil
	}
	return t.wrongHook()
}

// wrongHook describes the first chain that is named like a built-in chain that the rules use
// (see layout.entries), but has a different type, hook or priority. The
// kernel would not call its rules at the right place. wrongHook returns "" if there is none.
func (t nftTable) wrongHook() (string, error) {
	chains, err := t.chains()
	if err != nil {
		return "", err
	}
	for _, c := range chains {
		if t.layout().isHook(c.name) && (!c.base || c.kind != chainKind || c.hook != hooks[c.name] || c.priority != t.layout().priority) {
			return fmt.Sprintf("chain %s of %s has another type, hook or priority than iptables gives it: delete or rename it", c.name, t.name), nil
		}
	}
	return "", nil
}
