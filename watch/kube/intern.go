package kube

import (
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

// labelSets are the sets of labels in use. A set is forgotten when nobody holds it
// any more, so that no user of one has to say so.
type labelSets struct {
	mu    sync.Mutex
	known map[string]weak.Pointer[labelSet] // by text
	text  []byte                            // of the set that is looked up
	keys  []string
}

func newLabelSets() *labelSets {
	return &labelSets{known: make(map[string]weak.Pointer[labelSet])}
}

// intern returns the set that is equal to the given labels; nil for none.
func (s *labelSets) intern(labels map[string]string) *labelSet {
	if len(labels) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys = slices.AppendSeq(s.keys[:0], maps.Keys(labels))
	slices.Sort(s.keys)
	s.text = s.text[:0]
	for _, k := range s.keys {
		// Neither a key nor a value can have a zero byte in it.
		s.text = append(append(append(append(s.text, k...), 0), labels[k]...), 0)
	}
	if set := s.known[string(s.text)].Value(); set != nil {
		return set
	}
	set := &labelSet{make(map[string]string, len(labels))}
	for k, v := range labels {
		set.labels[interned(k)] = interned(v)
	}
	text := string(s.text)
	s.known[text] = weak.Make(set)
	runtime.AddCleanup(set, s.forget, text)
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
