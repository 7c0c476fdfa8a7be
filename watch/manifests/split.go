package manifests

import "bytes"

// document is one document of a YAML file.
type document struct {
	text []byte
	line int // number of lines before the document
}

// split splits a file at YAML document markers: lines that begin with "---" or "...", and may have
// further text. It drops documents that contain only comments and directives.
func split(data []byte) []document {
	var found []document
	var current document
	line := 0
	flush := func(next int) {
		if !blank(current.text) {
			found = append(found, current)
		}
		current = document{line: next}
	}
	for len(data) > 0 {
		end := bytes.IndexByte(data, '\n') + 1
		if end == 0 {
			end = len(data)
		}
		text := data[:end]
		data = data[end:]
		if marker(text, "---") || marker(text, "...") {
			flush(line)
			text = append([]byte("   "), text[3:]...) // keeps the column numbers in errors right
			if len(bytes.TrimSpace(text)) == 0 {
				text = []byte("\n") // the parser would read a tab as indentation
			}
		}
		current.text = append(current.text, text...)
		line++
	}
	flush(line)
	return found
}

func marker(line []byte, mark string) bool {
	return bytes.HasPrefix(line, []byte(mark)) && (len(line) == 3 || bytes.IndexByte([]byte(" \t\r\n"), line[3]) >= 0)
}

// blank reports whether text contains only white space, comments and directives.
func blank(text []byte) bool {
	for line := range bytes.Lines(text) {
		if line[0] == '%' {
			continue
		}
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			return false
		}
	}
	return true
}
