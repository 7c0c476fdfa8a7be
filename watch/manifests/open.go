package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"syscall"
	"time"
)

const (
	// maxFollowed bounds the size of a followed file: no file may exhaust the agent's
	// memory.
	maxFollowed = 64 << 20
	// maxRead bounds the size of a file that is read once.
	maxRead = 256 << 20
	// maxTries bounds the attempts to read a file that changes while it is read.
	maxTries = 3
	// pipeTimeout bounds the wait for more data from a pipe.
	pipeTimeout = 30 * time.Second
)

// opener reads files without blocking: a pipe, a socket or a device in a directory must not
// keep the other files from being read.
type opener struct {
	limit int64
	pipes bool // also read pipes: the shell passes one for <(command)

	reading // how to parse the content
}

// read reads a file. If it fails, hint describes how to correct the cause.
func (o opener) read(path string) (data []byte, hint string, err error) {
	const readable = "make it a file that this process can read"
	info, err := os.Stat(path)
	if err != nil {
		return nil, readable, err
	}
	// Check before opening, because opening a device may have an effect.
	if err := o.check(info); err != nil {
		return nil, "replace it with a regular file, or remove it", err
	}
	for range maxTries {
		data, settled, err := o.try(path)
		switch {
		case errors.Is(err, errTooLarge):
			return nil, "split it into several files", err
		case errors.Is(err, errNotText):
			return nil, "save it as text, in UTF-8", err
		case errors.Is(err, errNotRegular):
			return nil, "replace it with a regular file, or remove it", err
		case err != nil:
			return nil, readable, err
		case settled:
			return data, "", nil
		}
	}
	return nil, "write to another file, and rename that one", errors.New("it changes while it is being read")
}

var (
	errTooLarge   = errors.New("it is too large")
	errNotText    = errors.New("it has NUL bytes and is not text")
	errNotRegular = errors.New("it is not a regular file")
)

// check refuses files that are too large or may be endless.
func (o opener) check(info fs.FileInfo) error {
	switch mode := info.Mode(); {
	case mode.IsRegular() && info.Size() > o.limit:
		return fmt.Errorf("%w: it has %d bytes, and the limit is %d", errTooLarge, info.Size(), o.limit)
	case mode.IsRegular(), mode&fs.ModeNamedPipe != 0 && o.pipes:
		return nil
	default:
		return fmt.Errorf("%w, but %s", errNotRegular, typeOf(mode))
	}
}

func typeOf(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	case mode&fs.ModeDevice != 0:
		return "a device"
	case mode.IsDir():
		return "a directory"
	}
	return "something else"
}

// try reads the file once. The second result is false if the file changed meanwhile.
func (o opener) try(path string) (data []byte, settled bool, err error) {
	// Use O_NONBLOCK: if the file has been replaced with a pipe, opening it must not block.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, false, err
	}
	defer f.Close() // an error does not matter: the file was only read
	before, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	if err := o.check(before); err != nil {
		return nil, false, err
	}
	pipe := !before.Mode().IsRegular()
	if data, err = o.readAll(f, pipe); err != nil || pipe {
		return data, true, err
	}
	after, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	return data, after.Size() == before.Size() && after.ModTime().Equal(before.ModTime()), nil
}

// readAll reads until the end of the file or the limit. It stops at the first NUL byte, so
// that it does not read all of a huge sparse file.
func (o opener) readAll(f *os.File, pipe bool) ([]byte, error) {
	var all bytes.Buffer
	part := make([]byte, 64<<10)
	for {
		if pipe {
			_ = f.SetReadDeadline(time.Now().Add(pipeTimeout)) // if the deadline cannot be set, the read has no timeout
		}
		n, err := f.Read(part)
		all.Write(part[:n])
		switch {
		case bytes.IndexByte(part[:n], 0) >= 0 && !isWide(all.Bytes()):
			return nil, fmt.Errorf("%w: line %d", errNotText, lineOf(all.Bytes(), bytes.IndexByte(all.Bytes(), 0)))
		case int64(all.Len()) > o.limit:
			return nil, fmt.Errorf("%w: it has more than %d bytes, which is the limit", errTooLarge, o.limit)
		case errors.Is(err, io.EOF) && pipe && all.Len() == 0:
			return nil, errors.New("the pipe is empty")
		case errors.Is(err, io.EOF):
			return all.Bytes(), nil
		case err != nil:
			return nil, err
		}
	}
}

// readFile reads and parses a file. Any failure becomes a problem.
func (o opener) readFile(path string, logger *slog.Logger) *content {
	data, hint, err := o.read(path)
	if err != nil {
		return &content{problems: []Problem{{File: path, Detail: err.Error(), Hint: hint}}}
	}
	return parse(path, data, o.reading, logger)
}
