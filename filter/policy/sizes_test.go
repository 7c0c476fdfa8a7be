package policy

import (
	"testing"
	"unsafe"
)

// cacheLine is how much memory a processor reads at once.
const cacheLine = 64

// What there are tens of thousands of keeps its size, and what a decision reads of it
// is in the lines of the processor's cache that are meant. Go begins an object with a
// line if its size is a multiple of one, as allocated.
func TestSizes(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the sizes are those of 64-bit processors")
	}
	for _, tt := range []struct {
		what      string
		size      uintptr
		allocated uintptr // the size class: the next one up is a tenth more, or a third
	}{
		{"an Endpoint", unsafe.Sizeof(Endpoint{}), cacheLine},
		{"a class", unsafe.Sizeof(class{}), 2 * cacheLine},
		{"a rule set", unsafe.Sizeof(ruleSet{}), 3 * cacheLine},
		{"a peer set", unsafe.Sizeof(peerSet{}), cacheLine},
		{"a pod", unsafe.Sizeof(pod{}), 2 * cacheLine},
	} {
		if tt.size > tt.allocated || tt.size <= tt.allocated-16 {
			t.Errorf("%s takes %d bytes, want %d, or up to 15 less", tt.what, tt.size, tt.allocated)
		}
	}
	var c class
	if end := unsafe.Offsetof(c.namespace) + unsafe.Sizeof(c.namespace); end > cacheLine {
		t.Errorf("what a decision reads of a class takes %d bytes, want %d at most", end, cacheLine)
	}
	var r ruleSet
	if end := unsafe.Offsetof(r.ports) + unsafe.Offsetof(r.ports[0].flat) + 2*unsafe.Sizeof(uintptr(0)); end > cacheLine {
		t.Errorf("what a decision about TCP reads of a rule set takes %d bytes, want %d at most", end, cacheLine)
	}
	var l link
	if end := unsafe.Offsetof(l.isolation) + unsafe.Sizeof(l.isolation); end > 16 {
		t.Errorf("what a decision reads of a link takes %d bytes, want 16 at most: links are allocated at multiples of 16", end)
	}
}
