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
	// maxFollowed bounds a file of a folder that is followed: an agent must not be
	// ended by the memory that a file takes.
	maxFollowed = 64 << 20
	// maxRead bounds a file that is read once.
	maxRead = 256 << 20
	// maxTries bounds how often a file is read that changes while it is read.
	maxTries = 3
	// pipeTimeout bounds the wait for more from a pipe.
	pipeTimeout = 30 * time.Second
)

// opener reads files without ever waiting for one: a pipe, a socket or a device in a
// folder must not stop all other files.
type opener struct {
	limit int64
	pipes bool // a pipe is read too: the shell gives one for <(command)
}

// read reads a file. The third result says what would be right, if there is an error.
func (o opener) read(path string) (data []byte, hint string, err error) {
	const readable = "make it a file that the process may read"
	info, err := os.Stat(path)
	if err != nil {
		return nil, readable, err
	}
	// Before it is opened, since to open a device may do something.
	if err := o.check(info); err != nil {
		return nil, "put a regular file there, or remove it", err
	}
	for range maxTries {
		data, settled, err := o.try(path)
		switch {
		case errors.Is(err, errTooLarge):
			return nil, "split it into several files", err
		case errors.Is(err, errNotText):
			return nil, "save it as text, in UTF-8", err
		case errors.Is(err, errNotRegular):
			return nil, "put a regular file there, or remove it", err
		case err != nil:
			return nil, readable, err
		case settled:
			return data, "", nil
		}
	}
	return nil, "write it to another file and rename that one", errors.New("it changes while it is read")
}

var (
	errTooLarge   = errors.New("it is too large")
	errNotText    = errors.New("it has NUL bytes, which no text has")
	errNotRegular = errors.New("it is not a regular file")
)

// check refuses what is not a file with an end.
func (o opener) check(info fs.FileInfo) error {
	switch mode := info.Mode(); {
	case mode.IsRegular() && info.Size() > o.limit:
		return fmt.Errorf("%w: it has %d bytes, and %d are the most that is read", errTooLarge, info.Size(), o.limit)
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
		return "a folder"
	}
	return "something else"
}

// try reads the file once, and reports whether it was the same all the while.
func (o opener) try(path string) (data []byte, settled bool, err error) {
	// O_NONBLOCK, since the file may have become a pipe by now.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, false, err
	}
	defer f.Close() // it was only read
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

// readAll reads to the end, and no further than the limit. It stops at the first NUL
// byte: a file that is all hole is not read whole to learn that.
func (o opener) readAll(f *os.File, pipe bool) ([]byte, error) {
	var all bytes.Buffer
	part := make([]byte, 64<<10)
	for {
		if pipe {
			_ = f.SetReadDeadline(time.Now().Add(pipeTimeout)) // without a deadline, the read waits
		}
		n, err := f.Read(part)
		all.Write(part[:n])
		switch {
		case bytes.IndexByte(part[:n], 0) >= 0 && !isWide(all.Bytes()):
			return nil, fmt.Errorf("%w: line %d", errNotText, lineOf(all.Bytes(), bytes.IndexByte(all.Bytes(), 0)))
		case int64(all.Len()) > o.limit:
			return nil, fmt.Errorf("%w: it has more than %d bytes, which is the most that is read", errTooLarge, o.limit)
		case errors.Is(err, io.EOF) && pipe && all.Len() == 0:
			return nil, errors.New("the pipe is empty")
		case errors.Is(err, io.EOF):
			return all.Bytes(), nil
		case err != nil:
			return nil, err
		}
	}
}

// readFile reads one file. Whatever is wrong with it becomes a problem.
func (o opener) readFile(path string, logger *slog.Logger) *content {
	data, hint, err := o.read(path)
	if err != nil {
		return &content{problems: []Problem{{File: path, Detail: err.Error(), Hint: hint}}}
	}
	return parse(path, data, logger)
}
