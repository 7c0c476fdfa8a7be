// Package node follows the addresses of this node. Traffic between a pod and its own node
// is always allowed, so the policy store needs these addresses.
//
// It also reads how the node reaches its pods, as a [Network], and derives the addresses of
// the pods from it. It checks the kernel settings that may let packets bypass policies.
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
	// addressDebounce is the time without further events after which the addresses are read.
	// Configuring an interface causes several events.
	addressDebounce = 50 * time.Millisecond
	// resyncInterval is the time without events after which this package reads addresses,
	// interfaces and routes again, in case an event was lost.
	resyncInterval = time.Minute
)

// Source is a watch.Source for the addresses of the process's network namespace.
type Source struct {
	Logger *slog.Logger // logs failures; nil discards them
}

// String names the source.
func (Source) String() string { return "this node's addresses" }

// Run calls update() with the addresses, and again after each change, until ctx ends. It fails
// if it cannot subscribe to changes or cannot read the addresses at first.
func (s Source) Run(ctx context.Context, update func(func(*policy.Store))) error {
	log := s.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	events := make(chan netlink.AddrUpdate, 64)
	err := netlink.AddrSubscribeWithOptions(events, ctx.Done(), netlink.AddrSubscribeOptions{
		ErrorCallback: func(err error) {
			if ctx.Err() == nil {
				log.Warn("changes of this node's addresses are seen late", "err", err, "interval_ms", resyncInterval.Milliseconds())
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
			log.Warn("cannot read this node's addresses; the last known ones stay in use", "err", err)
		case first || !slices.Equal(addrs, known):
			known = addrs
			log.Debug("addresses of this node", "addresses", addrs)
			update(func(w *policy.Store) { w.SetNode(addrs) })
		}
		if !waitForChange(ctx, &events) {
			return nil
		}
	}
}

// waitForChange waits until addresses may have changed: after a series of events, or after
// resyncInterval without events. It returns false if ctx has ended. If the channel is
// closed, it sets *events to nil.
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

// Addresses returns the sorted addresses of the interfaces, without loopback addresses.
func Addresses() ([]netip.Addr, error) {
	list, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	// An interrupted dump is not an error: the event of the change that interrupted it
	// follows.
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
