package manifests

import (
	"reflect"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy/near"
)

// step is an object on the way from a policy's spec to a field, and the name of its
// field that leads on; empty at the end.
type step struct {
	object reflect.Type
	field  string
}

// suggestInSpec returns what to do about an unknown field of a policy's spec. Each of
// them may be a restriction in the wrong place, as a label beside matchLabels is. A
// hint that is only "remove it" would then open what the policy was to close.
func suggestInSpec(path string) string {
	path, inSpec := strings.CutPrefix(path, "spec.")
	if !inSpec {
		return "write the spec of a NetworkPolicy"
	}
	steps, name := stepsTo(path)
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
	if best, found := near.Name(name, fields); found {
		return "write " + best
	}
	if here == reflect.TypeFor[metav1.LabelSelector]() && fieldType(steps[0].object, name) == nil {
		if name == "labels" {
			return "write matchLabels"
		}
		return "put it below matchLabels; without it, the selector would choose more"
	}
	return "correct its name or its place; remove it only if it is not to restrict anything, since the policy may allow more without it; the fields here are " +
		strings.Join(fields, ", ")
}

// stepsTo follows a path from a policy's spec as far as its fields are known, and
// returns the rest, which is the unknown name. It may have dots, as labels have.
func stepsTo(path string) (steps []step, name string) {
	t := reflect.TypeFor[networkingv1.NetworkPolicySpec]()
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

// homeOf says where an unknown field belongs: in an object around the one that it is
// in, or in one directly below any of those. It is empty if there is no such place.
func homeOf(name string, steps []step) string {
	for _, s := range slices.Backward(steps) {
		switch {
		case s.field == name:
			return "" // it is in itself
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
