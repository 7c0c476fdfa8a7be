package manifests

import (
	"reflect"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy/near"
)

// step is one step of the path from a policy's spec to a field. It consists of the type of the
// object at this step, and of the name of the object's field that holds the object of the next
// step. In the last step, the name is empty.
type step struct {
	object reflect.Type
	field  string
}

// suggest returns a hint for an unknown field of a policy's spec. The field may be a misplaced
// restriction, such as a label beside matchLabels. Therefore the hint is never just "remove
// it", which could allow what the policy was meant to deny.
func (k *policyKind) suggest(path string) string {
	path, inSpec := strings.CutPrefix(path, "spec.")
	if !inSpec {
		return "write the spec of a " + k.name
	}
	steps, name := stepsTo(k.spec, path)
	here := steps[len(steps)-1].object
	fields := fieldsAt(here, "")
	if move := homeOf(name, steps); move != "" {
		for _, other := range []string{"from", "to"} {
			if (name == "from" || name == "to") && slices.Contains(fields, other) {
				return "write " + other + ", or " + move
			}
		}
		return move
	}
	if hint := k.instead[name]; hint != "" {
		return hint
	}
	if best, found := near.Name(name, fields); found {
		return "write " + best
	}
	if here == reflect.TypeFor[metav1.LabelSelector]() && fieldType(steps[0].object, name) == nil {
		if name == "labels" {
			return "write matchLabels"
		}
		return "put it under matchLabels; removing it would select more"
	}
	return "correct its name or its place; remove it only if it is not a restriction, since the policy may allow more without it; the fields here are " +
		strings.Join(fields, ", ")
}

// stepsTo follows the path from t until it meets a name that is not a field of the API. It returns
// the steps so far, and the rest of the path as name. name may contain dots, because it may be the
// key of a label.
func stepsTo(t reflect.Type, path string) (steps []step, name string) {
	for {
		part, rest, more := strings.Cut(path, ".")
		field, _, _ := strings.Cut(part, "[")
		next := element(fieldType(t, field))
		if !more || next == nil {
			return append(steps, step{object: t}), path
		}
		steps = append(steps, step{t, field})
		t, path = next, rest
	}
}

// homeOf returns a hint that names a place to which an unknown field can be moved, or "" if it
// finds none. name is the name of the field. homeOf walks from the last step to the first. At
// each step, it looks for a field with this name in the step's object and in the objects that
// are values of this object's fields.
func homeOf(name string, steps []step) string {
	for _, s := range slices.Backward(steps) {
		switch {
		case s.field == name:
			return "" // the path already contains a field with this name
		case s.field != "" && fieldType(s.object, name) != nil:
			return "move it beside " + s.field
		}
		var homes []string
		for _, field := range fieldsAt(s.object, "") {
			t := fieldType(s.object, field)
			if field == s.field || fieldType(element(t), name) == nil {
				continue
			}
			if t.Kind() == reflect.Slice {
				field = "an item of " + field
			}
			homes = append(homes, field)
		}
		if len(homes) > 0 {
			return "move it into " + strings.Join(homes, " or ")
		}
	}
	return ""
}
