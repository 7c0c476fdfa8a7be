package manifests

import (
	"fmt"
	"slices"

	"sluice/filter/policy/near"
)

// maxDoubles bounds the number of problems about objects that are in both of two files. If there are
// more such objects, the files are usually for two clusters, and one problem names both files.
const maxDoubles = 3

// double is a pair of objects with the same name. The first takes precedence.
type double struct{ first, second *item }

// files returns the names of the files that contain the two objects.
func (d double) files() [2]string { return [2]string{d.first.origin.File, d.second.origin.File} }

// addDoubles adds problems about pairs of objects with the same name, or notes if the objects do not
// affect decisions.
func (m *merged) addDoubles(all []double) {
	done := make(map[[2]string]bool)
	for _, d := range all {
		files := d.files()
		if done[files] {
			continue
		}
		done[files] = true
		same := slices.DeleteFunc(slices.Clone(all), func(o double) bool { return o.files() != files })
		if len(same) > maxDoubles && files[0] != files[1] {
			m.add(manyDoubles(same), slices.ContainsFunc(same, func(o double) bool { return o.second.decides() }))
			continue
		}
		for _, o := range same {
			m.add(o.problem(), o.second.decides())
		}
	}
}

func (m *merged) add(p Problem, decides bool) {
	if decides {
		m.problems = append(m.problems, p)
	} else {
		m.notes = append(m.notes, p)
	}
}

func (d double) problem() Problem {
	return Problem{
		File: d.second.origin.File, Document: d.second.origin.Document, Object: d.second.name, Field: "metadata.name",
		Detail: fmt.Sprintf("the same object is in %s, document %d, which takes precedence", d.first.origin.File, d.first.origin.Document),
		Hint:   "delete one of the two, or give it another name", InForce: "the object that takes precedence",
	}
}

// manyDoubles returns the problem about two files that have many objects in common.
func manyDoubles(all []double) Problem {
	var names []string
	for _, d := range all {
		names = append(names, d.second.name)
	}
	files := all[0].files()
	return Problem{
		File:   files[1],
		Detail: fmt.Sprintf("%d of its objects are also in %s, which takes precedence: %s", len(all), files[0], near.List(names, maxDoubles, ", ")),
		Hint:   "if the files are for two clusters, read only one of them; otherwise delete one of each two objects", InForce: "the objects that take precedence",
	}
}
