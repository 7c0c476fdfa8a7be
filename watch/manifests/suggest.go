package manifests

import (
	"reflect"
	"strings"

	"sluice/filter/policy/near"
)

func newLike(object any) any { return reflect.New(reflect.TypeOf(object).Elem()).Interface() }

// plainType describes a Go type for people who write YAML.
func plainType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "a list (lines that begin with \"- \")"
	case reflect.Struct, reflect.Map:
		return "an object (lines of \"key: value\")"
	}
	return "a number"
}

// suggest returns a hint for an unknown field. It names the most similar field of the same
// object. If no field is similar, it advises removing the unknown one, and lists the
// existing fields if they are few.
func suggest(object any, path string) string {
	parent, name := "", path
	if dot := strings.LastIndexByte(path, '.'); dot >= 0 {
		parent, name = path[:dot], path[dot+1:]
	}
	fields := fieldsAt(reflect.TypeOf(object), parent)
	best, found := near.Name(name, fields)
	switch {
	case found:
		return "write " + best
	case len(fields) == 0 || len(fields) > 8:
		return "remove it"
	}
	return "remove it; the fields here are " + strings.Join(fields, ", ")
}

// fieldsAt lists the JSON fields of the type at path, starting from t.
func fieldsAt(t reflect.Type, path string) []string {
	for part := range strings.SplitSeq(path, ".") {
		if t = element(t); t == nil || part == "" {
			break
		}
		name, _, _ := strings.Cut(part, "[")
		if t = fieldType(t, name); t == nil {
			return nil
		}
	}
	if t = element(t); t == nil {
		return nil
	}
	var names []string
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// element returns the struct type behind pointers and lists, or nil.
func element(t reflect.Type) reflect.Type {
	for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice) {
		t = t.Elem()
	}
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	return t
}

// fieldType returns the type of the field with the given JSON name, or nil.
func fieldType(t reflect.Type, json string) reflect.Type {
	if t == nil {
		return nil
	}
	for _, f := range reflect.VisibleFields(t) {
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name == json {
			return f.Type
		}
	}
	return nil
}
