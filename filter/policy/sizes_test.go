package policy

import (
	"testing"
	"unsafe"
)

// cacheLine is the size of a line of the processor's cache, in bytes.
const cacheLine = 64

// A Store has tens of thousands of values of some types. The test fails if one of these types
// leaves its size class, or if a field that a decision reads is outside the first cache line.
// Go aligns an object to a cache line if its size class is a multiple of the line's size.
func TestSizes(t *testing.T) {
	if unsafe.Sizeof(uintptr(0)) != 8 {
		t.Skip("the sizes are those of 64-bit processors")
	}
	for _, tt := range []struct {
		what      string
		size      uintptr
		allocated uintptr // bytes that Go allocates (the size class); the next class is 8 to 25% larger
	}{
		{"an Endpoint", unsafe.Sizeof(Endpoint{}), cacheLine},
		{"a class", unsafe.Sizeof(class{}), 2 * cacheLine},
		{"a rule set", unsafe.Sizeof(ruleSet{}), 3 * cacheLine},
		{"a peer set", unsafe.Sizeof(peerSet{}), cacheLine},
		{"a rank table", unsafe.Sizeof(rankTable{}), 5 * cacheLine},
		{"a pod", unsafe.Sizeof(pod{}), 2 * cacheLine},
	} {
		if tt.size > tt.allocated || tt.size <= tt.allocated-16 {
			t.Errorf("%s takes %d bytes, want %d to %d", tt.what, tt.size, tt.allocated-15, tt.allocated)
		}
	}
	var c class
	if end := unsafe.Offsetof(c.namespace) + unsafe.Sizeof(c.namespace); end > cacheLine {
		t.Errorf("a decision reads the first %d bytes of a class, want %d at most", end, cacheLine)
	}
	var r ruleSet
	if end := unsafe.Offsetof(r.ports) + unsafe.Offsetof(r.ports[0].flat) + 2*unsafe.Sizeof(uintptr(0)); end > cacheLine {
		t.Errorf("a decision about TCP reads the first %d bytes of a rule set, want %d at most", end, cacheLine)
	}
	var table rankTable
	if end := unsafe.Offsetof(table.flat) + 2*unsafe.Sizeof(uintptr(0)); end > 2*cacheLine {
		t.Errorf("a decision about TCP reads the first %d bytes of a rank table, want %d at most", end, 2*cacheLine)
	}
	if at := unsafe.Offsetof(table.near); at%cacheLine != 0 {
		t.Errorf("the bits of a rank table begin at byte %d of a cache line", at%cacheLine)
	}
	var l link
	if end := unsafe.Offsetof(l.isolation) + unsafe.Sizeof(l.isolation); end > 16 {
		t.Errorf("a decision reads the first %d bytes of a link, want 16 at most: links are aligned to 16 bytes only", end)
	}
}
