//go:build linux

package iptables

import (
	"context"
	"log/slog"
	"sync/atomic"
)

// place selects the table of one family in nf_tables that has the rules: iptables' mangle, or
// a separate table if mangle cannot be used, because a process owns it or one of its hooks is
// not as iptables creates it.
//
// Once the rules are in the separate table, they stay there until the agent ends. The next
// agent uses mangle again if it can. An earlier return to mangle would gain nothing, because
// the rules have the same effect in both tables. It would also drop the queued packets: a program
// that claims mangle repeatedly could then cause such losses at will.
type place struct {
	mangle *kernelTable
	own    *ownTable
	moved  atomic.Bool // the rules are in the separate table
	left   bool        // mangle may still have owned rules, which Tidy removes
	log    *slog.Logger
}

func newPlace(mangle *kernelTable, log *slog.Logger) *place {
	return &place{mangle: mangle, own: newOwnTable(mangle.family), log: log}
}

// in returns the selected table.
func (p *place) in() Table {
	if p.moved.Load() {
		return p.own
	}
	return p.mangle
}

// Choose implements Table: it moves to the separate table if mangle cannot be used.
func (p *place) Choose() error {
	if p.moved.Load() {
		return nil
	}
	why, err := p.mangle.nft().unusable()
	if err != nil || why == "" {
		return err
	}
	p.log.Warn("the rules are in a separate table", "table", p.own.String(), "because", why)
	p.left = true
	p.moved.Store(true)
	return nil
}

// Tidy implements Table.
func (p *place) Tidy(ctx context.Context) {
	if !p.left {
		return
	}
	if _, err := cleanTable(ctx, p.mangle); err != nil {
		p.log.Warn("rules may be left in the table that is not used; retrying", "table", p.mangle.String(), "err", err)
		return
	}
	p.left = false
}

func (p *place) layout() *layout  { return mangle }
func (p *place) companion() Table { return p.mangle.companion() }
func (p *place) exists() bool     { return true }
func (p *place) attend(bool)      {}

// Leave implements Table.
func (p *place) Leave() error { return p.own.Leave() }

// unusable returns the reason why the rules cannot be in the table; empty if they can.
func (t nftTable) unusable() (string, error) {
	hasOwner, err := t.hasOwner()
	if err != nil {
		return "", err
	}
	if hasOwner {
		return "table " + t.name + " belongs to a process (nft list tables shows which), and only that process can change it", nil
	}
	return t.wrongHook()
}

// Family implements Table.
func (p *place) Family() Family { return p.mangle.family }

// String implements Table.
func (p *place) String() string { return p.in().String() }

// Chains implements Table.
func (p *place) Chains(ctx context.Context) ([]string, error) { return p.in().Chains(ctx) }

// Rules implements Table.
func (p *place) Rules(ctx context.Context, chain string) ([]string, error) {
	return p.in().Rules(ctx, chain)
}

// Jumps implements Table.
func (p *place) Jumps(ctx context.Context, chain string) ([]string, error) {
	return p.in().Jumps(ctx, chain)
}

// Count implements Table.
func (p *place) Count(ctx context.Context, chain string) (int, bool) {
	return p.in().Count(ctx, chain)
}

// Inactive implements Table.
func (p *place) Inactive(ctx context.Context) (string, error) { return p.in().Inactive(ctx) }

// Generation implements Table. All tables of nf_tables share one generation number.
func (p *place) Generation() (uint32, bool) { return p.in().Generation() }

// Restore implements Table.
func (p *place) Restore(ctx context.Context, text string) error { return p.in().Restore(ctx, text) }

// Dropped implements dropCounter.
func (p *place) Dropped(chain string) (uint64, error) {
	if p.moved.Load() {
		return p.own.Dropped(chain)
	}
	return p.mangle.Dropped(chain)
}

// Watch implements Table. It notifies of changes to either table.
func (p *place) Watch(ctx context.Context, notify func()) error {
	if err := p.own.Watch(ctx, notify); err != nil {
		return err
	}
	return p.mangle.Watch(ctx, notify)
}
