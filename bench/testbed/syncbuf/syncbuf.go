// Package syncbuf has the buffer in which tests and the harness collect what runs at the same time.
package syncbuf

import (
	"bytes"
	"sync"
)

// Buffer keeps what is written to it. Its methods may be called concurrently. The zero value is empty.
type Buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer. It returns no error.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// String returns what has been written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
