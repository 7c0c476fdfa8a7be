package guard

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// attach attaches the programs to interfaces that lack them.
func (g *Guard) attach() error {
	var errs []error
	there := make(map[int]bool)
	put := func(p port, both bool, attach func() error) {
		there[p.index] = true
		if !g.has(p.index) || g.tentative[p.index] || !present(p.index, both) {
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
		if g.open == "" && !first(p.index) && present(p.index, both) { // present excludes interfaces that are gone
			g.open = fmt.Sprintf("the guard is not the first of the programs that TCX attaches to %s", p.name)
		}
	}
	for _, p := range g.found.ports {
		put(p, !p.tunnel, func() error { return g.objs.attach(p) })
	}
	if g.open == "" {
		for _, p := range g.found.outside {
			put(p, false, func() error { return g.objs.attachOutside(p.index) })
		}
	} else if g.followed {
		// Do not detach yet: the rules drop forged sources only after the function OnCovers has
		// updated them.
		return errors.Join(errs...)
	}
	return errors.Join(append(errs, g.detach(there))...)
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
		for _, s := range []side{fromPod, toPod} {
			if _, err := s.remove(index); err != nil && !gone(err) {
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
