package manifests

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"
)

// Byte order marks, which identify encodings. Test for UTF-32 before UTF-16: the
// little-endian mark of UTF-32 begins with the little-endian mark of UTF-16.
var (
	bomUTF8    = []byte("\ufeff")
	bomUTF16LE = []byte{0xff, 0xfe}
	bomUTF16BE = []byte{0xfe, 0xff}
	bomUTF32LE = []byte{0xff, 0xfe, 0, 0}
	bomUTF32BE = []byte{0, 0, 0xfe, 0xff}
)

// isWide reports whether data begins with a byte order mark of UTF-16 or UTF-32. Such text
// contains NUL bytes.
func isWide(data []byte) bool {
	return bytes.HasPrefix(data, bomUTF16LE) || bytes.HasPrefix(data, bomUTF16BE) || bytes.HasPrefix(data, bomUTF32BE)
}

// plainText converts data to UTF-8 with \n line ends, and removes byte order marks at the
// start of lines. The YAML parser also accepts other line ends. The function split must see the
// same lines as the parser, or it would lose documents. If data is not text, plainText returns a
// description of the problem.
func plainText(data []byte) ([]byte, string) {
	if isWide(data) {
		var ok bool
		if data, ok = fromWide(data); !ok {
			return nil, "it begins as UTF-16 or UTF-32, but is not valid"
		}
	}
	if at := bytes.IndexByte(data, 0); at >= 0 {
		return nil, fmt.Sprintf("line %d has a NUL byte and is not text", lineOf(data, at))
	}
	if !utf8.Valid(data) {
		at := 0
		for at < len(data) {
			r, n := utf8.DecodeRune(data[at:])
			if r == utf8.RuneError && n == 1 {
				break
			}
			at += n
		}
		return nil, fmt.Sprintf("line %d is not UTF-8", lineOf(data, at))
	}
	data = bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n"))
	data = bytes.ReplaceAll(data, []byte("\r"), []byte("\n"))
	for bytes.HasPrefix(data, bomUTF8) {
		data = data[len(bomUTF8):]
	}
	return bytes.ReplaceAll(data, []byte("\n\ufeff"), []byte("\n")), ""
}

// lineOf returns the number of the line, from 1, that contains the byte at the given offset.
func lineOf(data []byte, at int) int { return 1 + bytes.Count(data[:at], []byte("\n")) }

// fromWide decodes UTF-16 or UTF-32 with a byte order mark.
func fromWide(data []byte) ([]byte, bool) {
	var order binary.ByteOrder = binary.LittleEndian
	if bytes.HasPrefix(data, bomUTF16BE) || bytes.HasPrefix(data, bomUTF32BE) {
		order = binary.BigEndian
	}
	if bytes.HasPrefix(data, bomUTF32LE) || bytes.HasPrefix(data, bomUTF32BE) {
		return fromUTF32(data[4:], order)
	}
	data = data[2:]
	if len(data)%2 != 0 {
		return nil, false
	}
	out := make([]byte, 0, len(data))
	for i := 0; i < len(data); i += 2 {
		r := rune(order.Uint16(data[i:]))
		if utf16.IsSurrogate(r) {
			if i += 2; i >= len(data) {
				return nil, false
			}
			if r = utf16.DecodeRune(r, rune(order.Uint16(data[i:]))); r == utf8.RuneError {
				return nil, false
			}
		}
		out = utf8.AppendRune(out, r)
	}
	return out, true
}

func fromUTF32(data []byte, order binary.ByteOrder) ([]byte, bool) {
	if len(data)%4 != 0 {
		return nil, false
	}
	out := make([]byte, 0, len(data)/2)
	for ; len(data) > 0; data = data[4:] {
		n := order.Uint32(data)
		if n > utf8.MaxRune || !utf8.ValidRune(rune(n)) {
			return nil, false
		}
		out = utf8.AppendRune(out, rune(n))
	}
	return out, true
}
