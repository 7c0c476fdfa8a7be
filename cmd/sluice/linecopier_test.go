package main

import (
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// writes records the text of each call of Write.
type writes []string

func (w *writes) Write(b []byte) (int, error) { *w = append(*w, string(b)); return len(b), nil }

// The copier writes only complete lines, whatever parts of them a read returns. Complete lines that are
// read together are written together.
func TestLineCopier(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for name, tt := range map[string]struct {
		in   io.Reader
		want []string
		err  error
	}{
		"together":    {strings.NewReader("a\nb\n"), []string{"a\nb\n"}, nil},
		"in bytes":    {iotest.OneByteReader(strings.NewReader("ab\ncd\n")), []string{"ab\n", "cd\n"}, nil},
		"in parts":    {io.MultiReader(strings.NewReader("a\nb"), strings.NewReader("c\nd\n")), []string{"a\n", "bc\nd\n"}, nil},
		"with data":   {iotest.DataErrReader(strings.NewReader("a\n")), []string{"a\n"}, nil},
		"long":        {strings.NewReader("a\n" + long + "\nb\n"), []string{"a\n", long + "\nb\n"}, nil},
		"nothing":     {strings.NewReader(""), nil, nil},
		"broken off":  {strings.NewReader("a\nb"), []string{"a\n"}, io.ErrUnexpectedEOF},
		"other error": {iotest.ErrReader(io.ErrClosedPipe), nil, io.ErrClosedPipe},
	} {
		var got writes
		c := lineCopier{out: &got}
		if err := c.copy(tt.in); !errors.Is(err, tt.err) || strings.Join(got, "|") != strings.Join(tt.want, "|") || c.copied != (len(got) > 0) {
			t.Errorf("%s: %v, %.50q, want %v, %.50q", name, err, got, tt.err, tt.want)
		}
	}
	r, w := io.Pipe()
	_ = r.Close()
	if err := (&lineCopier{out: w}).copy(strings.NewReader("a\n")); breaksOff(err) || !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("%v, which would be tried again", err)
	}
	if err := (&lineCopier{out: io.Discard}).copy(io.LimitReader(zeros{}, 1<<30)); err == nil || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("%v for a line without an end", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
