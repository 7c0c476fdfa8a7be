package flow

import "encoding/json"

// maxKept bounds the ends, and likewise the sides, that a Describer keeps. The end of a pod with ten
// labels takes some KiB with its text, so a Describer takes a few MiB at most.
const maxKept = 1024

// kept keeps the values that a function has returned, by their keys.
type kept[K comparable, V any] struct{ values map[K]V }

// get returns the value for k. If no value is kept for k, get calls describe and keeps the result. If
// there is no room, it first forgets all other values.
func (o *kept[K, V]) get(k K, describe func(K) V) V {
	v, is := o.values[k]
	if !is {
		if o.values == nil || len(o.values) >= maxKept {
			o.values = make(map[K]V)
		}
		v = describe(k)
		o.values[k] = v
	}
	return v
}

func (o *kept[K, V]) clear() { o.values = nil }

// encode sets the JSON text of an end. This cannot fail.
func (e *End) encode() *End {
	e.encoded, _ = json.Marshal(e)
	return e
}

// encode sets the JSON text of a side. This cannot fail.
func (s *Side) encode() *Side {
	s.encoded, _ = json.Marshal(s)
	return s
}
