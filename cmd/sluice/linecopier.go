package main

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

const (
	// copyBuffer is the size of the buffer for lines. It grows if a line is longer.
	copyBuffer = 64 << 10
	// maxLine bounds a line. The longest records have some KiB.
	maxLine = 16 << 20
)

// lineCopier copies lines as they come.
type lineCopier struct {
	out    io.Writer
	copied bool // whether it has copied a line
}

// copy copies the lines of in until its end. It writes only complete lines, and those that are there at
// once.
func (c *lineCopier) copy(in io.Reader) error {
	buf := make([]byte, copyBuffer)
	for kept := 0; ; {
		if kept == len(buf) {
			if kept >= maxLine {
				return errors.New("a record does not end")
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
		n, err := in.Read(buf[kept:])
		kept += n
		if end := bytes.LastIndexByte(buf[:kept], '\n') + 1; end > 0 {
			c.copied = true
			if _, err := c.out.Write(buf[:end]); err != nil {
				return outputError{err}
			}
			kept = copy(buf, buf[end:kept])
		}
		switch {
		case errors.Is(err, io.EOF) && kept > 0:
			return io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// outputError means that the output cannot be written.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

// lockedWriter is a writer for several goroutines.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
