// Package node follows the addresses of the node that the agent runs on. Traffic
// from and to the node that a pod runs on is always allowed, so that the World
// has to know them.
//
// It also reads how the node reaches its pods, by [Network], and what follows from
// that: which addresses are theirs, and which of the kernel's settings matter.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"sluice/filter/policy"
)

const (
	// addressDebounce without events ends a burst: bringing up an interface is one.
	addressDebounce = 50 * time.Millisecond
	// resyncInterval is how often all is read without an event, in case one was lost.
	resyncInterval = time.Minute
)

// Source is the addresses of the interfaces of the process's network namespace,
// as a source of a watch.Keeper.
type Source struct {
	Logger *slog.Logger // gets what goes wrong on the way; nil discards it
}

// String says what it is.
func (Source) String() string { return "this node's addresses" }

// Run gives the addresses, and gives them again whenever they change, until ctx
// ends.
func (s Source) Run(ctx context.Context, update func(func(*policy.World))) error {
	log := s.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	events := make(chan netlink.AddrUpdate, 64)
	err := netlink.AddrSubscribeWithOptions(events, ctx.Done(), netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) {
			if ctx.Err() == nil {
				log.Warn("changes of this node's addresses are seen late", "err", err, "every", resyncInterval)
			}
		},
	})
	if err != nil {
		return fmt.Errorf("follow this node's addresses: %w", err)
	}
	var known []netip.Addr
	for first := true; ; first = false {
		addrs, err := Addresses()
		switch {
		case err != nil && first:
			return err
		case err != nil:
			log.Warn("this node's addresses are not known; those from before count", "err", err)
		case first || !slices.Equal(addrs, known):
			known = addrs
			log.Debug("addresses of this node", "addresses", addrs)
			update(func(w *policy.World) { w.SetNode(addrs) })
		}
		if !waitForChange(ctx, &events) {
			return nil
		}
	}
}

// waitForChange returns when addresses may have changed: after a burst of events, or
// without one when it is time to look. It is false when ctx has ended. A channel
// that breaks off is not read again.
func waitForChange(ctx context.Context, events *chan netlink.AddrUpdate) bool {
	timer := time.NewTimer(resyncInterval)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case _, open := <-*events:
			if !open {
				*events = nil
			}
			timer.Reset(addressDebounce)
		case <-timer.C:
			return true
		}
	}
}

// Addresses lists the addresses that the interfaces have, without those of
// loopback, sorted.
func Addresses() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	// A dump that was interrupted by a change is followed by the change's event.
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list this node's addresses: %w", err)
	}
	var addrs []netip.Addr
	for _, a := range list {
		if addr, ok := netip.AddrFromSlice(a.IP); ok && !addr.Unmap().IsLoopback() {
			addrs = append(addrs, addr.Unmap())
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs), nil
}
