package guard

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/cilium/ebpf"

	"sluice/filter/event"
)

// attach attaches the programs to interfaces that lack them.
func (g *Guard) attach() error {
	var errs []error
	there := make(map[int]bool)
	put := func(p port, both bool, attach func() error) {
		there[p.index] = true
		if !g.has(p.index) || g.tentative[p.index] || !g.programs.present(p.index, both) {
			err := attach()
			switch {
			case errors.Is(err, errNoTCX):
				g.open = err.Error()
				return
			case err != nil && gone(err):
				return
			case err != nil:
				errs = append(errs, fmt.Errorf("guard interface %s: %w", p.name, err))
				return
			}
			g.attached[p.index] = both
			delete(g.tentative, p.index)
		}
		if g.open == "" && !g.programs.first(p.index) && g.programs.present(p.index, both) { // present excludes interfaces that are gone
			g.open = fmt.Sprintf("the guard is not the first of the programs that TCX attaches to %s", p.name)
		}
	}
	for _, p := range g.found.ports {
		put(p, !p.tunnel, func() error { return g.attachPort(p) })
	}
	if g.open == "" {
		for _, p := range g.found.outside {
			put(p, false, func() error { return g.attachOutside(p.index) })
		}
	} else if g.followed {
		// Do not detach yet: the rules drop forged sources only after the function OnCovers has
		// updated them.
		return errors.Join(errs...)
	}
	err := errors.Join(append(errs, g.detach(there))...)
	if err == nil && !g.settled {
		g.settle()
	}
	return err
}

// pin pins this agent's programs. If it fails, the guard works, but the next agent may not be able
// to replace these programs.
func (g *Guard) pin() {
	text := ""
	if err := g.programs.pin(); err != nil {
		text = err.Error()
	}
	if text != "" && text != g.unpinned {
		g.log.Warn("other agents recognise the guard of this one only with the capability SYS_ADMIN", event.GuardNotPinned.Attr(), "err", text)
	}
	g.unpinned = text
}

// settle is called when all programs are attached. It removes the pins of earlier agents, whose
// programs have been replaced, and logs which programs may remain.
func (g *Guard) settle() {
	g.settled = true
	used, unknown := make(map[ebpf.ProgramID]bool), &unrecognized{}
	for _, index := range slices.Concat(indexes(g.found.ports), indexes(g.found.outside), g.found.others) {
		for _, s := range sides {
			there, err := g.programs.at(s, index)
			if err != nil && !gone(err) && !noTCX(err) {
				g.log.Warn("pinned programs of earlier agents may remain", "err", err)
				return
			}
			for _, id := range there.all {
				used[id] = true
			}
			unknown.add(s, index, there.unknown)
		}
	}
	unknown.warn(g.log)
	if err := g.programs.prune(used); err != nil {
		g.log.Warn("pinned programs of earlier agents may remain", "err", err)
	}
}

// detach removes this agent's programs from all interfaces that are not in wanted. Until a call
// of detach() has succeeded after Begin(), it also removes the programs that earlier agents
// have left on such interfaces.
func (g *Guard) detach(wanted map[int]bool) error {
	var errs []error
	unwanted := slices.Collect(maps.Keys(g.attached))
	if !g.swept {
		unwanted = slices.Concat(unwanted, g.found.others, indexes(g.found.outside))
	}
	for _, index := range unwanted {
		if wanted[index] {
			continue
		}
		for _, s := range sides {
			if _, _, err := g.programs.remove(s, index); err != nil && !gone(err) {
				errs = append(errs, fmt.Errorf("detach the guard from interface %d: %w", index, err))
			}
		}
		delete(g.attached, index)
		delete(g.tentative, index)
	}
	g.swept = len(errs) == 0
	return errors.Join(errs...)
}

func indexes(ports []port) (all []int) {
	for _, p := range ports {
		all = append(all, p.index)
	}
	return all
}
