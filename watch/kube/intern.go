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

// interned returns the shared copy of s. The copy is freed when the last reference is gone.
func interned(s string) string { return unique.Make(s).Value() }

// shared keeps one copy of each value that many objects have in common, indexed by the text
// form of the value. A value is freed when nothing refers to it any more.
type shared[T any] struct {
	mu    sync.Mutex
	known map[string]weak.Pointer[T]
}

func newShared[T any]() *shared[T] { return &shared[T]{known: make(map[string]weak.Pointer[T])} }

// get returns the value with the given text form. If the value is known, get allocates
// nothing. Otherwise it parses text.
func (s *shared[T]) get(text []byte, parse func(string) *T) *T {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.known[string(text)].Value(); v != nil {
		return v
	}
	key := string(text) // a copy, so that callers can keep the argument on the stack
	v := parse(key)
	s.known[key] = weak.Make(v)
	runtime.AddCleanup(v, s.forget, key)
	return v
}

// forget removes the entry of a freed value, unless an equal value has been added since.
func (s *shared[T]) forget(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known[text].Value() == nil {
		delete(s.known, text)
	}
}

// size returns the number of different values.
func (s *shared[T]) size() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.known)
}

// pools hold the values that pods have in common. All pods of a Deployment have the same
// ports and the same labels; seven labels take 600 bytes.
type pools struct {
	labels *shared[labelSet]
	ports  *shared[portList]
	texts  sync.Pool // pool of *texts
}

func newPools() *pools {
	return &pools{labels: newShared[labelSet](), ports: newShared[portList](), texts: sync.Pool{New: func() any { return new(texts) }}}
}

// texts are the text forms of one pod's labels and ports, or of one Node, while it is
// decoded.
type texts struct {
	labels          labelText
	ports, sidecars portText
	node            nodeText
}

func (t *texts) reset() {
	t.labels, t.ports, t.sidecars = t.labels[:0], t.ports[:0], t.sidecars[:0]
	t.node.reset()
}

// labelSet is a set of labels that pods share.
type labelSet struct{ labels map[string]string }

// of returns the labels, which must not be modified.
func (s *labelSet) of() map[string]string {
	if s == nil {
		return nil
	}
	return s.labels
}

// labelsOf returns the shared set that equals labels, or nil if labels is empty.
func (p *pools) labelsOf(labels map[string]string) *labelSet {
	var text labelText
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		text.add([]byte(k), []byte(labels[k]))
	}
	return p.labelsIn(text)
}

// labelsIn returns the shared set with the given text form, or nil if text is empty. The
// API server writes labels in sorted order, so equal sets have equal texts.
func (p *pools) labelsIn(text labelText) *labelSet {
	if len(text) == 0 {
		return nil
	}
	return p.labels.get(text, parseLabels)
}

const zero = "\x00"

// labelText is the text form of labels: keys and values, each followed by a zero byte,
// which neither can contain.
type labelText []byte

func (t *labelText) add(key, value []byte) {
	*t = append(append(append(append(*t, key...), 0), value...), 0)
}

// parseLabels parses a labelText. If a key occurs twice, the last value counts.
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

// portList holds the named ports of a pod, with the ports of sidecars last.
type portList struct{ ports []policy.NamedPort }

// of returns the ports, which must not be modified.
func (l *portList) of() []policy.NamedPort {
	if l == nil {
		return nil
	}
	return l.ports
}

// portsIn returns the shared list with the given text form, or nil if text is empty.
func (p *pools) portsIn(text portText) *portList {
	if len(text) == 0 {
		return nil
	}
	return p.ports.get(text, parsePorts)
}

// portText is the text form of ports. A port is its number in four bytes, then its protocol
// and its name, each followed by a zero byte.
type portText []byte

// add appends a port. It skips ports without a name, to which no policy can refer.
func (t *portText) add(name, protocol []byte, number int32) {
	if len(name) == 0 {
		return
	}
	text := binary.BigEndian.AppendUint32(*t, uint32(number))
	*t = append(append(append(append(text, protocol...), 0), name...), 0)
}

// parsePorts parses a portText.
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
