package policy

// Shapes are the forms that rule sets can have: as agents compile them, always
// trees, and trees that copy no rule of which they can do without a copy.
const Shapes = 3

// SetShape has what is compiled from now on take one of the forms. In the second and
// third, few selectors are kept as many are.
func (w *World) SetShape(n int) {
	if n > 0 {
		w.ids.few, w.peers.few, w.nsSelectors.few, w.subjects.few = 0, 0, 0, 0
		w.peers.wide.few = 0
	}
	switch n {
	case 1:
		w.shape = shape{floor: -1, flat: 0, tree: 1 << 20}
	case 2:
		w.shape = shape{floor: -1, flat: 0, tree: 0}
	default:
		w.shape = defaultShape()
	}
}

// Forms counts, in the rule sets in use, the port tables that are flat and trees,
// and the peer sets that refer to others.
func (w *World) Forms() (flat, trees, refer int) {
	for _, g := range w.groups {
		for _, t := range g.rules.ports {
			switch {
			case t.tree:
				trees++
			case t.sets != nil:
				flat++
			}
			for _, s := range t.sets {
				if s != nil && s.more != nil {
					refer++
				}
			}
		}
	}
	return flat, trees, refer
}
