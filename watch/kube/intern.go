package kube

import (
	"encoding/binary"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unique"
	"weak"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// interned returns the one copy of a text that many objects have. The copy goes
// when nobody refers to it any more.
func interned(s string) string { return unique.Make(s).Value() }

// shared are values that many objects have, each by a text that says what it is. A
// value is forgotten when nobody holds it any more, so that no user of one has to
// say so.
type shared[T any] struct {
	mu    sync.Mutex
	known map[string]weak.Pointer[T]
}

func newShared[T any]() *shared[T] { return &shared[T]{known: make(map[string]weak.Pointer[T])} }

// get returns the value of a text. Where it is known nothing is allocated;
// otherwise it is made, from the text alone.
func (s *shared[T]) get(text []byte, parse func(string) *T) *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.known[string(text)].Value(); v != nil {
		return v
	}
	key := string(text) // a copy, so that callers can keep text on their stack
	v := parse(key)
	s.known[key] = weak.Make(v)
	runtime.AddCleanup(v, s.forget, key)
	return v
}

// forget drops a value that nobody holds, unless an equal one has come since.
func (s *shared[T]) forget(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[text].Value() == nil {
		delete(s.known, text)
	}
}

// size is how many different values there are.
func (s *shared[T]) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known)
}

// pools are what pods share: those of a Deployment have the same labels, seven of
// which take 600 bytes, and the same ports.
type pools struct {
	labels *shared[labelSet]
	ports  *shared[portList]
	texts  sync.Pool // of *texts
}

func newPools() *pools {
	return &pools{labels: newShared[labelSet](), ports: newShared[portList](), texts: sync.Pool{New: func() any { return new(texts) }}}
}

// texts are those of the pod that is being read.
type texts struct {
	labels          labelText
	ports, sidecars portText
}

func (t *texts) reset() { t.labels, t.ports, t.sidecars = t.labels[:0], t.ports[:0], t.sidecars[:0] }

// labelSet is the labels of pods.
type labelSet struct{ labels map[string]string }

// of returns the labels, which must not be changed.
func (s *labelSet) of() map[string]string {
	if s == nil {
		return nil
	}
	return s.labels
}

// labelsOf returns the set that is equal to the given labels; nil for none.
func (p *pools) labelsOf(labels map[string]string) *labelSet {
	var text labelText
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		text.add([]byte(k), []byte(labels[k]))
	}
	return p.labelsIn(text)
}

// labelsIn returns the set with a text; nil for none. The API server writes labels
// in order, so that equal sets have equal texts.
func (p *pools) labelsIn(text labelText) *labelSet {
	if len(text) == 0 {
		return nil
	}
	return p.labels.get(text, parseLabels)
}

const zero = "\x00"

// labelText is labels in a row, key and value, each with a zero byte behind it: no
// key and no value can have one in it.
type labelText []byte

func (t *labelText) add(key, value []byte) {
	*t = append(append(append(append(*t, key...), 0), value...), 0)
}

// parseLabels reads a labelText. Of a key that is there twice the last counts.
func parseLabels(text string) *labelSet {
	labels := make(map[string]string, strings.Count(text, zero)/2)
	for len(text) > 0 {
		key, rest, _ := strings.Cut(text, zero)
		value, rest, _ := strings.Cut(rest, zero)
		labels[interned(key)] = interned(value)
		text = rest
	}
	return &labelSet{labels}
}

// portList is the ports of a pod that have a name, those of sidecars last.
type portList struct{ ports []policy.NamedPort }

// of returns the ports, which must not be changed.
func (l *portList) of() []policy.NamedPort {
	if l == nil {
		return nil
	}
	return l.ports
}

// portsIn returns the list with a text; nil for none.
func (p *pools) portsIn(text portText) *portList {
	if len(text) == 0 {
		return nil
	}
	return p.ports.get(text, parsePorts)
}

// portText is ports in a row: the number in four bytes, protocol and name, each of
// these with a zero byte behind it.
type portText []byte

// add appends a port. One without a name is nobody's business.
func (t *portText) add(name, protocol []byte, number int32) {
	if len(name) == 0 {
		return
	}
	text := binary.BigEndian.AppendUint32(*t, uint32(number))
	*t = append(append(append(append(text, protocol...), 0), name...), 0)
}

// parsePorts reads a portText.
func parsePorts(text string) *portList {
	list := new(portList)
	for len(text) >= 4 {
		number := int32(binary.BigEndian.Uint32([]byte(text[:4])))
		protocol, rest, _ := strings.Cut(text[4:], zero)
		name, rest, _ := strings.Cut(rest, zero)
		if p, ok := kubepod.Port(&corev1.ContainerPort{Name: interned(name), ContainerPort: number, Protocol: corev1.Protocol(protocol)}); ok {
			list.ports = append(list.ports, p)
		}
		text = rest
	}
	return list
}
