package iptables

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sluice/filter/event"
)

// Less lists the parts that the rules omit because the node does not meet their requirements.
// Pinned programs require their names and the match bpf, the overflow queue requires hashlimit,
// and the rules about forged sources require bpf and rpfilter. Without pinned programs and the
// overflow queue, policies are still enforced, at a higher cost.
type Less struct {
	Pins     bool // the pinned programs
	Overflow bool // the overflow queue
	Sources  bool // the rules about forged sources
	Reject   bool // the rules that reject packets, so that denied packets are dropped
}

// lesser lists all combinations of omitted parts, in the order of preference.
var lesser = []Less{
	{}, {Overflow: true}, {Pins: true}, {Sources: true},
	{Overflow: true, Pins: true}, {Overflow: true, Sources: true}, {Pins: true, Sources: true},
	{Overflow: true, Pins: true, Sources: true},
}

// completeInterval is the time between attempts to add the omitted parts. Only the first attempt
// comes sooner, after checkInterval. A failed attempt costs two runs of iptables and changes
// nothing.
const completeInterval = time.Minute

// without returns a copy of o that omits the given parts.
func (o Options) without(less Less) Options {
	if less.Pins {
		o.AllowPin, o.DenyPin, o.ForwardedPin, o.OthersPin, o.LaterPin, o.RejectPin = "", "", "", "", "", ""
	}
	if less.Overflow {
		o.SourceShare = 0
	}
	o.AnySource = o.AnySource || less.Sources
	o.Reject = o.Reject && !less.Reject
	return o
}

// fallbacks returns the combinations of omitted parts to try, in order.
func (m *Manager) fallbacks() []Less {
	return slices.DeleteFunc(slices.Clone(lesser), func(l Less) bool {
		return l.Pins && (m.opts.AllowPin == "" || m.mustPin) || l.Overflow && m.opts.SourceShare == 0 || l.Sources && (m.opts.AnySource || m.opts.Guarded)
	})
}

// MustPin sets whether rules without the pinned programs are an error.
func (m *Manager) MustPin(must bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mustPin = must
}

// Lacks returns the parts that at least one table omits, and the reason.
func (m *Manager) Lacks() (less Less, because string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tables {
		less.Pins, less.Overflow, less.Sources, less.Reject = less.Pins || t.lacks.Pins, less.Overflow || t.lacks.Overflow, less.Sources || t.lacks.Sources, less.Reject || t.lacks.Reject
		if reduced := t.reduced.Load(); reduced != nil {
			because = *reduced
		}
	}
	return less, because
}

// ensure writes the wanted rules of a table if they differ, and returns the differences. If
// writing all parts fails, it omits parts that require something that the node may lack. Start,
// repair and takeover all use ensure, so that they have the same fallbacks.
func (m *Manager) ensure(ctx context.Context, t *keptTable) (wrong []string, err error) {
	defer func() {
		m.noteRejects()
		m.logRejects(t)
	}()
	if less := t.lacks; less.Reject && !m.opts.Reject {
		if less.Reject = false; less == (Less{}) {
			t.reduce(less, nil, 0)
		}
		t.lacks.Reject = false
	}
	pinsErr := m.ensurePins()
	wrong, err = t.put(ctx, m.opts.without(t.lacks))
	if err == nil {
		m.completeParts(ctx, t)
		return wrong, nil
	}
	if errors.Is(err, errNoReject) && ctx.Err() == nil {
		because := err
		t.lacks.Reject = true
		if wrong, err = t.put(ctx, m.opts.without(t.lacks)); err == nil {
			t.reduce(t.lacks, because, checkInterval)
			return wrong, nil
		}
	}
	if pinsErr != nil {
		err = fmt.Errorf("%w (%w)", err, pinsErr)
	}
	if !errors.Is(err, errWrite) {
		return wrong, err // reading failed, so omitting parts would not help
	}
	for _, less := range m.fallbacks() {
		if ctx.Err() != nil {
			break
		}
		if less.Reject = t.lacks.Reject; less == t.lacks {
			continue
		}
		// If all fallbacks fail too, ensure returns the error of the first attempt: it explains
		// more than the errors of the fallbacks.
		if _, second := t.put(ctx, m.opts.without(less)); second == nil {
			// Try again soon: the cause of the failure may be temporary.
			t.reduce(less, err, checkInterval)
			return wrong, nil
		}
	}
	return wrong, err
}

// ensurePins restores the pins of the programs in the BPF file system if rules call them.
func (m *Manager) ensurePins() error {
	if m.EnsurePins == nil || m.opts.AllowPin == "" {
		return nil
	}
	return m.EnsurePins()
}

// reduce records the parts that a table omits, and when to try them again.
func (t *keptTable) reduce(less Less, because error, wait time.Duration) {
	t.lacks, t.complete = less, time.Now().Add(wait)
	if less == (Less{}) {
		t.reduced.Store(nil)
		return
	}
	text := fmt.Sprintf("%s: %v", less, because)
	t.reduced.Store(&text)
}

// String describes the effect of the omission.
func (l Less) String() string {
	var lines []string
	if l.Pins {
		lines = append(lines, "the rules do not call the kernel's flow cache")
	}
	if l.Overflow {
		lines = append(lines, "the rules do not limit sources that send more than --source-share")
	}
	if l.Sources {
		lines = append(lines, "the rules do not drop packets that claim to come from this node or from their receiver")
	}
	if l.Reject {
		lines = append(lines, "the rules drop denied packets instead of rejecting them")
	}
	return strings.Join(lines, ", ")
}

// due reports whether it is time to try to add the omitted parts.
func (t *keptTable) due() bool { return t.lacks != Less{} && !time.Now().Before(t.complete) }

// completeParts tries to add the omitted parts to a table whose other rules are right. If that
// fails, the rules stay as they are.
func (m *Manager) completeParts(ctx context.Context, t *keptTable) {
	if !t.due() {
		return
	}
	generation, right := t.generation, t.right
	_, err := t.put(ctx, m.opts)
	if err == nil {
		t.reduce(Less{}, nil, 0)
		m.log.Info("the rules have all their parts again", event.RulesComplete.Attr(), "table", t.String())
		return
	}
	// A failed transaction changes nothing, so the last check of the table still holds.
	t.generation, t.right = generation, right
	t.reduce(t.lacks, err, completeInterval)
}

// pause replaces the rules of a table by rules that use no queues.
func (m *Manager) pause(ctx context.Context, t *keptTable, packets Unqueued) error {
	_ = m.ensurePins() // if the rules need the names, Restore fails and reports it
	t.right = false
	owned := t.ownedChains(ctx)
	first := error(nil)
	for _, less := range []Less{t.lacks, {Pins: true, Sources: true, Reject: t.lacks.Reject}} {
		fill := m.opts.without(less).paused(t.Family(), packets)
		// If an earlier write has failed, the table has chains that these options lack, and their
		// rules may use queues.
		for _, name := range owned {
			if _, filled := fill[name]; !filled {
				fill[name] = nil
			}
		}
		err := t.Restore(ctx, change{fill: fill}.text(mangle))
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return fmt.Errorf("take the queues out of the rules: %w", first)
}

// ownedChains returns the chains of this version that the table has, none if it cannot be read.
func (t *keptTable) ownedChains(ctx context.Context) []string {
	names, _ := t.Chains(ctx)
	return slices.DeleteFunc(names, func(name string) bool { return !slices.Contains(t.layout().chains, name) })
}
