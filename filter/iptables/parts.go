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

// Less says what is left out of the rules, on a node that lacks something for it: the
// pinned programs their names or the match bpf, the crowd's queue the match hashlimit,
// forged sources the matches bpf and rpfilter. The policies are enforced without the
// first two, only at a higher cost.
type Less struct {
	Pins     bool // the pinned programs
	Overflow bool // the crowd's queue
	Sources  bool // the rules about forged sources
}

// lesser are all that the rules may have to do without, the least first.
var lesser = []Less{
	{}, {Overflow: true}, {Pins: true}, {Sources: true},
	{Overflow: true, Pins: true}, {Overflow: true, Sources: true}, {Pins: true, Sources: true},
	{Overflow: true, Pins: true, Sources: true},
}

// completeInterval is how often parts that are left out are tried again, after the first
// time, which comes with the next period. An attempt
// without success costs two runs of iptables and changes nothing.
const completeInterval = time.Minute

// without returns the options without the parts in less.
func (o Options) without(less Less) Options {
	if less.Pins {
		o.AllowPin, o.DenyPin = "", ""
	}
	if less.Overflow {
		o.SourceShare = 0
	}
	o.AnySource = o.AnySource || less.Sources
	return o
}

// fallbacks are what the rules can be tried without, in this order.
func (m *Manager) fallbacks() []Less {
	return slices.DeleteFunc(slices.Clone(lesser), func(l Less) bool {
		return l.Pins && (m.opts.AllowPin == "" || m.mustPin) || l.Overflow && m.opts.SourceShare == 0 || l.Sources && (m.opts.AnySource || m.opts.Guarded)
	})
}

// MustPin sets whether rules that do not call the pinned programs are an error.
func (m *Manager) MustPin(must bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mustPin = must
}

// Lacks says what had to be left out of the rules of some table, and why.
func (m *Manager) Lacks() (less Less, because string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range m.tables {
		less.Pins, less.Overflow, less.Sources = less.Pins || t.lacks.Pins, less.Overflow || t.lacks.Overflow, less.Sources || t.lacks.Sources
		if reduced := t.reduced.Load(); reduced != nil {
			because = *reduced
		}
	}
	return less, because
}

// ensure brings a table to the wanted rules. All that writes rules comes here, at the
// start, in a repair and at a take-over, so that each has the same fall-backs: if the
// whole cannot be written, it is tried without the parts that the node may lack.
func (m *Manager) ensure(ctx context.Context, t *keptTable) (wrong []string, err error) {
	pinsErr := m.ensurePins()
	wrong, err = t.ensure(ctx, m.opts.without(t.lacks).chains(t.Family()))
	if err == nil {
		m.completeParts(ctx, t)
		return wrong, nil
	}
	if pinsErr != nil {
		err = fmt.Errorf("%w (%w)", err, pinsErr)
	}
	if !errors.Is(err, errWrite) {
		return wrong, err // with less the rules could not be read either
	}
	for _, less := range m.fallbacks() {
		if ctx.Err() != nil {
			break
		}
		if less == t.lacks {
			continue
		}
		// An error of these says less than that of the whole.
		if _, second := t.ensure(ctx, m.opts.without(less).chains(t.Family())); second == nil {
			// What failed may have been over in between.
			t.reduce(less, err, checkInterval)
			return wrong, nil
		}
	}
	return wrong, err
}

// ensurePins has the programs' names put back, if rules call them.
func (m *Manager) ensurePins() error {
	if m.EnsurePins == nil || m.opts.AllowPin == "" {
		return nil
	}
	return m.EnsurePins()
}

// reduce records which parts a table lacks, and how long to wait before they are tried
// again.
func (t *keptTable) reduce(less Less, because error, wait time.Duration) {
	t.lacks, t.complete = less, time.Now().Add(wait)
	if less == (Less{}) {
		t.reduced.Store(nil)
		return
	}
	text := fmt.Sprintf("%s: %v", less, because)
	t.reduced.Store(&text)
}

// String says what a node does without these parts.
func (l Less) String() string {
	var lines []string
	if l.Pins {
		lines = append(lines, "the rules do not call the kernel's flow cache")
	}
	if l.Overflow {
		lines = append(lines, "the rules do not set sources apart that send more than --source-share")
	}
	if l.Sources {
		lines = append(lines, "the rules do not drop packets that claim to come from this node or from their receiver")
	}
	return strings.Join(lines, ", ")
}

// due reports whether the parts that a table lacks are to be tried again.
func (t *keptTable) due() bool { return t.lacks != Less{} && !time.Now().Before(t.complete) }

// completeParts tries whether a table whose rules are right can have the parts that it
// lacks. Without success its rules stay as they are.
func (m *Manager) completeParts(ctx context.Context, t *keptTable) {
	if !t.due() {
		return
	}
	generation, right := t.generation, t.right
	_, err := t.ensure(ctx, m.opts.chains(t.Family()))
	if err == nil {
		t.reduce(Less{}, nil, 0)
		m.log.Info("the rules have all their parts again", event.RulesComplete.Attr(), "table", t.String())
		return
	}
	// A transaction that fails changes nothing.
	t.generation, t.right = generation, right
	t.reduce(t.lacks, err, completeInterval)
}

// pause puts the rules in place that a table has without the queues.
func (m *Manager) pause(ctx context.Context, t *keptTable, packets Unqueued) error {
	_ = m.ensurePins() // if they are needed, the rules say so
	t.right = false
	first := error(nil)
	for _, less := range []Less{t.lacks, {Pins: true, Sources: true}} {
		err := t.Restore(ctx, change{fill: m.opts.without(less).paused(t.Family(), packets)}.text())
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return fmt.Errorf("take the queues out of the rules: %w", first)
}
