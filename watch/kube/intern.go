package kube

import (
	"bytes"
	"maps"
	"runtime"
	"slices"
	"sync"
	"unique"
	"weak"
)

// interned returns the one copy of a text that many objects have. The copy goes
// when nobody refers to it any more.
func interned(s string) string { return unique.Make(s).Value() }

// labelSet is labels that many pods have: all pods of a Deployment have the same,
// and a map of seven labels takes 600 bytes.
type labelSet struct{ labels map[string]string }

// of returns the labels, which must not be changed.
func (s *labelSet) of() map[string]string {
	if s == nil {
		return nil
	}
	return s.labels
}

// labelText is labels in a row, key and value, each with a zero byte behind it: no
// key and no value can have one in it.
type labelText []byte

func (t *labelText) add(key, value []byte) {
	*t = append(append(append(append(*t, key...), 0), value...), 0)
}

// parse returns the labels. Of a key that is there twice the last counts.
func (t labelText) parse() map[string]string {
	labels := make(map[string]string, bytes.Count(t, zero)/2)
	for len(t) > 0 {
		key, rest, _ := bytes.Cut(t, zero)
		value, rest, _ := bytes.Cut(rest, zero)
		labels[interned(string(key))] = interned(string(value))
		t = rest
	}
	return labels
}

var zero = []byte{0}

// labelSets are the sets of labels in use. A set is forgotten when nobody holds it
// any more, so that no user of one has to say so.
type labelSets struct {
	mu    sync.Mutex
	known map[string]weak.Pointer[labelSet] // by text
}

func newLabelSets() *labelSets {
	return &labelSets{known: make(map[string]weak.Pointer[labelSet])}
}

// intern returns the set that is equal to the given labels; nil for none.
func (s *labelSets) intern(labels map[string]string) *labelSet {
	var text labelText
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		text.add([]byte(k), []byte(labels[k]))
	}
	return s.internText(text)
}

// internText returns the set with a text; nil for none. Where the set is known it
// allocates nothing. The API server writes labels in order, so that equal sets have
// equal texts.
func (s *labelSets) internText(text labelText) *labelSet {
	if len(text) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if set := s.known[string(text)].Value(); set != nil {
		return set
	}
	set := &labelSet{text.parse()}
	key := string(text)
	s.known[key] = weak.Make(set)
	runtime.AddCleanup(set, s.forget, key)
	return set
}

// forget drops a set that nobody holds, unless an equal one has come since.
func (s *labelSets) forget(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[text].Value() == nil {
		delete(s.known, text)
	}
}

// size is how many different sets there are.
func (s *labelSets) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known)
}
