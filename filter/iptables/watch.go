//go:build linux

package iptables

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// watchBuffer is the size in bytes of the socket's receive buffer, which holds notifications of
// about 1,000 rules. If it overflows, the kernel reports the loss (ENOBUFS), which counts as a
// change.
const watchBuffer = 1 << 20

// Watch implements Table. nf_tables sends a notification of every change; the legacy backend is
// polled.
func (k *kernelTable) Watch(ctx context.Context, notify func()) error {
	if k.backend == NFT {
		return k.nft().watch(ctx, notify, k.filter)
	}
	return watchLegacy(ctx, k.family, k.filter, notify)
}

// watch calls notify after changes that concern Sluice, until ctx ends: changes to this table,
// and to filter while filter.attended() returns true. filter may be nil.
func (t nftTable) watch(ctx context.Context, notify func(), filter *kernelTable) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	if err != nil {
		return fmt.Errorf("subscribe to changes of nf_tables: %w", explain(err))
	}
	_ = c.SetReadBuffer(watchBuffer) // after an error, the smaller buffer only overflows sooner
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	go func() {
		defer stop()
		defer c.Close()
		for ctx.Err() == nil {
			messages, err := c.Receive()
			switch {
			case errors.Is(err, unix.ENOBUFS):
				notify()
			case err != nil:
				notify()
				// Such errors are not expected. The wait avoids a busy loop.
				select {
				case <-ctx.Done():
				case <-time.After(checkInterval):
				}
			default:
				for _, m := range messages {
					if t.concerns(m) || filter.attended() && filter.nft().concerns(m) {
						notify()
						break
					}
				}
			}
		}
	}()
	return nil
}

// concerns reports whether a message is about the table itself, an owned chain or a hook.
// Other programs change thousands of rules at a time, so it parses as little as it can.
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
	// NFTA_RULE_TABLE and NFTA_CHAIN_TABLE are the same number.
	if !is(attribute(attrs, unix.NFTA_RULE_TABLE), t.name) {
		return false
	}
	name := attribute(attrs, chain)
	return isOwned(string(name)) || t.layout().isHook(string(name))
}

// is reports whether an attribute's value is s.
func is(name []byte, s string) bool { return string(name) == s }

// attribute returns the value of an attribute without its final zero bytes, nil if it is missing.
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

// legacyInterval is the time between two readings of a legacy table's size. A reading takes about
// a microsecond.
const legacyInterval = 20 * time.Millisecond

// legacyInfo is the kernel's struct ipt_getinfo, which equals ip6t_getinfo.
type legacyInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	numEntries uint32
	size       uint32
}

// getInfo is the socket option IPT_SO_GET_INFO, which equals IP6T_SO_GET_INFO.
const getInfo = 64

// watchLegacy calls notify when the number of rules in the legacy table mangle, their total size
// or the offsets of the hooks' rules have changed. It does the same for the table filter after
// filter.attend(true). It misses a rule that is replaced by one of the same size.
func watchLegacy(ctx context.Context, f Family, filter *kernelTable, notify func()) error {
	domain, level := unix.AF_INET, unix.IPPROTO_IP
	if f == IPv6 {
		domain, level = unix.AF_INET6, unix.IPPROTO_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("read the size of legacy tables: %w", explain(err))
	}
	read := func(name string) (info legacyInfo, err error) {
		copy(info.name[:], name)
		size := uint32(unsafe.Sizeof(info))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			return info, fmt.Errorf("read the size of legacy tables: %w", explain(errno))
		}
		return info, nil
	}
	before, _ := read(table) // after an error, the first success counts as a change
	var beforeFilter legacyInfo
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
			if now, err := read(table); err == nil && now != before {
				before = now
				notify()
			}
			if !filter.attended() {
				continue
			}
			if now, err := read(rejecting.table); err == nil && now != beforeFilter {
				beforeFilter = now
				notify()
			}
		}
	}()
	return nil
}
