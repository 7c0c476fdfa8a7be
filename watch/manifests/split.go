package manifests

import "bytes"

// document is one document of a YAML file.
type document struct {
	text []byte
	line int // the number of lines before it
}

// split cuts a file at the lines that begin or end a document ("---", "..."). Text
// may follow the marker on its line. Documents that hold only comments, and the
// directives before a document, are no documents.
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
			text = append([]byte("   "), text[3:]...) // so that columns stay right
			if len(bytes.TrimSpace(text)) == 0 {
				text = []byte("\n") // a tab there would be indentation
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

// blank says whether text has nothing but white space, comments and directives.
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
