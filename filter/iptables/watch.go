package iptables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watchBuffer is the room for changes that have not been read yet: of about 1,000
// rules. More are not lost: that there were some is told.
const watchBuffer = 1 << 20

// Watch implements Table: nf_tables tells of each change; of the legacy backend it is
// asked often whether its size is another one.
func (k *kernelTable) Watch(ctx context.Context, told func()) error {
	if k.backend == NFT {
		return k.nft().watch(ctx, told)
	}
	return watchLegacy(ctx, k.family, told)
}

// watch calls told after changes to what is ours in the table, until ctx ends.
func (t nftTable) watch(ctx context.Context, told func()) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return fmt.Errorf("be told of changes by nf_tables: %w", explain(err))
	}
	_ = c.SetReadBuffer(watchBuffer) // with less room, more changes are only known to have been
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	go func() {
		defer stop()
		defer c.Close()
		for ctx.Err() == nil {
			messages, err := c.Receive()
			switch {
			case errors.Is(err, unix.ENOBUFS):
				told()
			case err != nil:
				told()
				// Anything else is not known to happen, and must not become a busy loop.
				select {
				case <-ctx.Done():
				case <-time.After(checkInterval):
				}
			default:
				for _, m := range messages {
					if t.concerns(m) {
						told()
						break
					}
				}
			}
		}
	}()
	return nil
}

// concerns reports whether a message is about the table itself, one of our chains or
// a hook. Others change thousands of rules at a time, so it reads no more of a
// message than it needs.
func (t nftTable) concerns(m netlink.Message) bool {
	if len(m.Data) < nfgenmsgLen || m.Data[0] != t.proto() || m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES {
		return false
	}
	attrs := m.Data[nfgenmsgLen:]
	chain := uint16(unix.NFTA_CHAIN_NAME)
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		return is(attribute(attrs, unix.NFTA_TABLE_NAME), t.name)
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain = unix.NFTA_RULE_CHAIN
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
	default:
		return false
	}
	// Of rules and of chains the table's name has the same number.
	if !is(attribute(attrs, unix.NFTA_RULE_TABLE), t.name) {
		return false
	}
	name := attribute(attrs, chain)
	return isOwned(string(name)) || slices.ContainsFunc(entries, func(e entry) bool { return is(name, e.name) })
}

func is(name []byte, s string) bool { return string(name) == s }

// attribute finds an attribute of a message and gives its text, nil without it.
func attribute(attrs []byte, kind uint16) []byte {
	const header = 4
	for len(attrs) >= header {
		length := int(binary.NativeEndian.Uint16(attrs))
		if length < header || length > len(attrs) {
			return nil
		}
		if binary.NativeEndian.Uint16(attrs[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER) == kind {
			return bytes.TrimRight(attrs[header:length], "\x00")
		}
		attrs = attrs[min(len(attrs), (length+3)&^3):]
	}
	return nil
}

// legacyInterval is how often the legacy backend is asked for the size of the table,
// which costs about a microsecond.
const legacyInterval = 20 * time.Millisecond

// legacyInfo is struct ipt_getinfo, and ip6t_getinfo, of the kernel.
type legacyInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	numEntries uint32
	size       uint32
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// watchLegacy calls told when the number of rules of a legacy table, the size of any or
// the places of the hooks' rules have changed. A rule that is replaced by one of the
// same size it does not see.
func watchLegacy(ctx context.Context, f Family, told func()) error {
	domain, level := unix.AF_INET, unix.IPPROTO_IP
	if f == IPv6 {
		domain, level = unix.AF_INET6, unix.IPPROTO_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("ask for the size of legacy tables: %w", explain(err))
	}
	read := func() (info legacyInfo, err error) {
		copy(info.name[:], table)
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return info, fmt.Errorf("ask for the size of legacy tables: %w", explain(errno))
		}
		return info, nil
	}
	before, _ := read() // without an answer the next one is another
	go func() {
		defer unix.Close(fd)
		tick := time.NewTicker(legacyInterval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			if now, err := read(); err == nil && now != before {
				before = now
				told()
			}
		}
	}()
	return nil
}
