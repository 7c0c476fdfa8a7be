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
	// maxLine bounds the length of a line. The longest records take some KiB.
	maxLine = 16 << 20
)

// lineCopier copies lines as soon as they are complete.
type lineCopier struct {
	out    io.Writer
	copied bool // whether it has copied a line
}

// copy copies lines from in to the output, until in ends. It writes only complete lines, and writes all
// complete lines that it has read with one call of Write. If in ends within a line, it returns
// io.ErrUnexpectedEOF.
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

// outputError is an error of writing to the output.
type outputError struct{ error }

func (e outputError) Unwrap() error { return e.error }

// lockedWriter is a writer that several goroutines may use at the same time.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}
