package flowfile

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// bufferSize is the size of the readers that Open returns, in bytes.
const bufferSize = 64 << 10

// Open returns a reader of the lines of a file. The file may be compressed with gzip. It may also have one
// JSON array, such as the output of "sluice denied -o json": then each element becomes a line.
func Open(in io.Reader) (*bufio.Reader, error) {
	b := bufio.NewReaderSize(in, bufferSize)
	if magic, _ := b.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) { // an error comes again when it is read
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, fmt.Errorf("decompress: %w", err)
		}
		b = bufio.NewReaderSize(z, bufferSize)
	}
	if first, _ := b.Peek(1); bytes.Equal(first, []byte("[")) {
		b = bufio.NewReaderSize(&elements{decoder: json.NewDecoder(b)}, bufferSize)
	}
	return b, nil
}

// elements is a reader of the elements of an array, each on a line.
type elements struct {
	decoder *json.Decoder
	begun   bool
	line    bytes.Buffer // what is left of the current line
}

// Read implements io.Reader.
func (e *elements) Read(into []byte) (int, error) {
	if e.line.Len() == 0 {
		if err := e.next(); err != nil {
			return 0, err
		}
	}
	return e.line.Read(into)
}

// next reads the next element. At the end of the array, it returns io.EOF.
func (e *elements) next() error {
	if !e.begun {
		if _, err := e.decoder.Token(); err != nil {
			return err
		}
		e.begun = true
	}
	if !e.decoder.More() {
		if _, err := e.decoder.Token(); err != nil {
			return broken(err)
		}
		return io.EOF
	}
	var element json.RawMessage
	if err := e.decoder.Decode(&element); err != nil {
		return broken(err)
	}
	e.line.Reset()
	if err := json.Compact(&e.line, element); err != nil {
		return err
	}
	return e.line.WriteByte('\n')
}

// broken returns the error about an array that breaks off or has a wrong element.
func broken(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
