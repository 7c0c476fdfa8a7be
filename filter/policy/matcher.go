package policy

import (
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
	"k8s.io/apimachinery/pkg/util/sets"
)

// matcher is the form of a selector with many requirements. The requirements are indexed by
// key, so that matching takes time proportional to the labels of the object.
type matcher struct {
	asks   map[string]map[string]bool // allowed values by required key; a nil map of values allows any value
	labels map[label]bool             // labels that the object must not have
	keys   map[string]bool            // keys that the object must not have
}

// matcherOf returns a matcher for a selector, or nil if the selector has few requirements.
func matcherOf(sel labels.Selector) *matcher {
	reqs, _ := sel.Requirements()
	if len(reqs) <= mostAsked {
		return nil
	}
	m := &matcher{make(map[string]map[string]bool), make(map[label]bool), make(map[string]bool)}
	for _, r := range reqs {
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals:
			m.require(r.Key(), r.Values())
		case selection.Exists:
			if _, is := m.asks[r.Key()]; !is {
				m.asks[r.Key()] = nil
			}
		case selection.NotIn, selection.NotEquals:
			for v := range r.Values() {
				m.labels[label{r.Key(), v}] = true
			}
		case selection.DoesNotExist:
			m.keys[r.Key()] = true
		default:
			return nil // the API has no other operators for labels
		}
	}
	return m
}

// require restricts the allowed values of a key to the given ones.
func (m *matcher) require(key string, values map[string]sets.Empty) {
	old, both := m.asks[key], make(map[string]bool, len(values))
	for v := range values {
		if old == nil || old[v] {
			both[v] = true
		}
	}
	m.asks[key] = both
}

func (m *matcher) matches(set labels.Set) bool {
	asked := 0
	for k, v := range set {
		if m.keys[k] || m.labels[label{k, v}] {
			return false
		}
		if values, is := m.asks[k]; is {
			if asked++; values != nil && !values[v] {
				return false
			}
		}
	}
	return asked == len(m.asks)
}
