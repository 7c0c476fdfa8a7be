// Package flowfile reads files of flows with one JSON object on each line. These are the output of "sluice
// observe -o json" and of "hubble observe -o json", the elements of the array that "sluice denied -o json"
// writes, the log of Sluice's agent, and the files of Hubble's exporter. A file may have lines of
// different forms. It may be compressed with gzip, as the rotated files of the exporter are.
//
// Lines are read one by one, so that the size of a file does not matter.
package flowfile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"sluice/filter/flow"
	"sluice/filter/flow/hubbleflow"
)

// MaxLine bounds the length of a line, in bytes. For a longer line, Next returns a LineError.
const MaxLine = 1 << 20

// Forms names the forms of lines, for error messages.
const Forms = `the output of "sluice observe -o json" or "hubble observe -o json", files of Hubble's exporter, or the agent's log in JSON`

// Flow is the content of a line.
type Flow struct {
	// Record is the flow, or nil if Skip is set. Its event is allowed, denied, ended, left-out or
	// unrecorded.
	*flow.Record
	// Skip is the reason why the line is not an attempt to connect; empty if it is one.
	Skip flow.Skip
	// First is the time of the first packet if the record counts several packets; zero otherwise.
	First time.Time
}

// form reads lines of one form; ok is false if the line has another form.
type form func(line []byte) (f Flow, ok bool)

// Parser reads lines. It first tries the form of the last line.
type Parser struct{ forms []form }

// NewParser returns a parser.
func NewParser() *Parser { return &Parser{[]form{ours, logged, hubble}} }

// Parse reads a line. ok is false if the line has no known form.
func (p *Parser) Parse(line []byte) (f Flow, ok bool) {
	for i, read := range p.forms {
		if f, ok = read(line); ok {
			p.forms = slices.Insert(slices.Delete(p.forms, i, i+1), 0, read)
			return f, true
		}
	}
	return Flow{}, false
}

// ours reads a record of Sluice.
func ours(line []byte) (Flow, bool) {
	var r struct {
		flow.Record
		Msg   *string   `json:"msg"` // only lines of logs have this field; their field "event" has another meaning
		First time.Time `json:"first"`
	}
	if json.Unmarshal(line, &r) != nil || r.Msg != nil {
		return Flow{}, false
	}
	for _, k := range []flow.Kind{flow.Opened, flow.Denied, flow.Ended, flow.LeftOut, flow.Unrecorded} {
		if r.Event == k.String() && r.Revoked {
			return Flow{Skip: flow.SkipRevoked}, true
		}
		if r.Event == k.String() {
			return Flow{Record: &r.Record, First: r.First}, true
		}
	}
	return Flow{}, false
}

func hubble(line []byte) (Flow, bool) {
	r, skip, ok := hubbleflow.Parse(line)
	return Flow{Record: r, Skip: skip}, ok
}

// Reader reads the lines of a file.
type Reader struct {
	in     *bufio.Reader
	parser *Parser
	line   int
}

// NewReader returns a reader of a file, which may be as Open takes it.
func NewReader(in io.Reader) (*Reader, error) {
	b, err := Open(in)
	if err != nil {
		return nil, err
	}
	return &Reader{in: b, parser: NewParser()}, nil
}

// LineError is a line that is not a flow in a known form.
type LineError struct {
	Line int // number of the line, from 1
	Why  string
}

// Error names the line.
func (e *LineError) Error() string { return fmt.Sprintf("line %d %s", e.Line, e.Why) }

// Next returns the next flow, and skips empty lines. After the last flow it returns io.EOF. After a
// [LineError], which concerns one line, Next can be called again. Any other error is final.
func (r *Reader) Next() (Flow, error) {
	for {
		text, err := r.read()
		var wrong *LineError
		switch {
		case errors.As(err, &wrong):
			return Flow{}, err
		case err != nil && !errors.Is(err, io.EOF):
			return Flow{}, fmt.Errorf("line %d: %w", r.line, err)
		}
		if text = bytes.TrimSpace(text); len(text) == 0 {
			if err != nil {
				return Flow{}, io.EOF
			}
			continue
		}
		f, ok := r.parser.Parse(text)
		switch {
		case ok:
			return f, nil
		case !json.Valid(text):
			return Flow{}, &LineError{r.line, "is not JSON"}
		}
		return Flow{}, &LineError{r.line, "is not a flow in a known form"}
	}
}

// read returns the next line. With the last line, it returns io.EOF. The text is valid until the next
// call.
func (r *Reader) read() ([]byte, error) {
	r.line++
	text, err := r.in.ReadSlice('\n')
	if !errors.Is(err, bufio.ErrBufferFull) {
		return text, err
	}
	long := slices.Clone(text)
	for errors.Is(err, bufio.ErrBufferFull) {
		if text, err = r.in.ReadSlice('\n'); len(long) <= MaxLine {
			long = append(long, text...)
		}
	}
	if len(long) > MaxLine && (err == nil || errors.Is(err, io.EOF)) {
		return nil, &LineError{r.line, fmt.Sprintf("is longer than %d bytes", MaxLine)}
	}
	return long, err
}
