package flow

import (
	"testing"
	"unsafe"
)

// The sizes are as bench/README.md and the comments say.
func TestSizes(t *testing.T) {
	if size := DefaultBuffer * int(unsafe.Sizeof(Entry{})); size > 4<<20 || size < 3<<20 {
		t.Errorf("a log of the default size takes %d bytes", size)
	}
	// A map of Go needs up to twice the room of its keys and values.
	if size := MaxDenials * (int(unsafe.Sizeof(Denial{})) + 2*int(unsafe.Sizeof(denialKey{})+unsafe.Sizeof(&Denial{}))); size > 300<<10 {
		t.Errorf("the last denials take %d bytes", size)
	}
}
