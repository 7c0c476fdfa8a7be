package manifests

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"sluice/filter/policy/near"
)

// isList reports whether an object is a list: its kind ends in "List" and it has items, or
// it is a list of a supported kind, with or without items.
func isList(kind string, items any) bool {
	if _, are := items.([]any); are && strings.HasSuffix(strings.ToLower(kind), "list") {
		return true
	}
	switch kind {
	case "List", "NamespaceList", "PodList", "NodeList":
		return true
	}
	name, is := strings.CutSuffix(kind, "List")
	return is && (items != nil || policyKindOf(name) != nil && policyKindOf(name).name == name)
}

// list parses the items of a list, such as List or PodList.
func (p *parser) list(text []byte, at, apiVersion, kind string, depth int) {
	if depth > maxLists {
		p.problem(strings.TrimSuffix(at, "."), fmt.Sprintf("it is nested in more than %d lists", maxLists), "write the objects one by one")
		return
	}
	var l struct {
		APIVersion any               `json:"apiVersion"`
		Kind       any               `json:"kind"`
		Metadata   any               `json:"metadata"`
		Items      []json.RawMessage `json:"items"`
	}
	unknown, err := kjson.UnmarshalStrict(text, &l)
	if err != nil {
		p.problem(at+"items", "it is not a list of objects", "write each object as an item")
		return
	}
	for _, e := range unknown {
		p.unlisted(e, at, kind)
	}
	typed := metav1.TypeMeta{APIVersion: apiVersion, Kind: kind[:len(kind)-len("List")]}
	if typed.Kind == "" {
		typed = metav1.TypeMeta{}
	}
	for i, raw := range l.Items {
		p.object(raw, fmt.Sprintf("%sitems[%d].", at, i), typed, depth)
	}
}

// unlisted reports an unknown field of a list. A misspelled "items" is a problem, because
// the items have not been parsed.
func (p *parser) unlisted(err error, at, kind string) {
	var field kjson.FieldError
	if !errors.As(err, &field) {
		p.problem(at+"items", err.Error(), "write apiVersion, kind and items")
		return
	}
	if _, like := near.Name(field.FieldPath(), []string{"items"}); like {
		p.problem(at+field.FieldPath(), "there is no such field", "write items")
		return
	}
	p.note("", at+field.FieldPath(), "a "+kind+" has no such field; it is ignored", "remove it")
}
