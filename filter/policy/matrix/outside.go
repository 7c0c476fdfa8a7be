package matrix

import (
	"slices"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// exposed sets Outside of each party: the ways on which its pods are reached from outside the cluster.
func exposed(v *inventory.Inventory, all []*Party) {
	of := make(map[*policy.Pod]*Party)
	for _, p := range all {
		for _, m := range p.members {
			for _, pod := range m.pods() {
				of[pod] = p
			}
		}
	}
	for _, x := range v.Exposures() {
		text := v.Describe(x)
		for _, b := range x.Backends {
			for _, pod := range b.Pods {
				if p := of[pod]; p != nil && !slices.Contains(p.Outside, text) {
					p.Outside = append(p.Outside, text)
				}
			}
		}
	}
}

// outside returns a line for each way on which a column's pods are reached from outside the cluster.
func (m *Matrix) outside() (lines []string) {
	for _, p := range m.To {
		if m.concerns("", p.Namespace) {
			for _, text := range p.Outside {
				lines = append(lines, p.Name+" is reached from outside by "+text)
			}
		}
	}
	return lines
}
