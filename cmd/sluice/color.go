package main

import (
	"bytes"
	"io"
	"os"
	"regexp"

	"golang.org/x/term"
)

// colorMode is a value of the flag --color: it decides when the output has colors.
type colorMode string

const (
	colorAuto   colorMode = "auto" // on a terminal, unless $NO_COLOR is set
	colorAlways colorMode = "always"
	colorNever  colorMode = "never"
)

// wanted reports whether output to the writer gets colors.
func (m colorMode) wanted(e env, out io.Writer) bool {
	if m != colorAuto {
		return m == colorAlways
	}
	if e.getenv == nil || e.getenv("NO_COLOR") != "" || e.getenv("TERM") == "dumb" {
		return false
	}
	f, is := out.(*os.File)
	return is && term.IsTerminal(int(f.Fd()))
}

// painter colors those words of a command's text that carry the answer: verdicts at the beginning of
// lines, results of tests, and findings. Other output, such as JSON and pages, passes unchanged,
// because its lines do not match paints.
type painter struct {
	out  io.Writer
	on   bool
	rest bool // the next byte continues a line that is partly written
}

// The codes of colors in ECMA-48.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

// paints are the parts of lines to color: the first group of each expression.
var paints = []struct {
	part  *regexp.Regexp
	color string
}{
	{regexp.MustCompile(`^(allow|ok|0 findings)\b`), green},
	{regexp.MustCompile(`^(deny|FAIL|ERROR|error)\b`), red},
	{regexp.MustCompile(`^(depends|warning)\b`), yellow},
	{regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}  (?:\S+ +)??(allow)\b`), green}, // lines of observe about flows, with or without the name of a node
	{regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}  (?:\S+ +)??(deny|reject)\b`), red},
	{regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d{3}  (?:\S+ +)??(\(.*\))$`), yellow}, // lines of observe about missing flows
	{regexp.MustCompile(`^(?:\S+ +)??\S+ ago +\S+ ago +(\d+|-) `), red},          // the number of packets in the table of denied
	{regexp.MustCompile(`^([1-9]\d* findings?)\b`), red},
	{regexp.MustCompile(`^(\+ .* → .*)`), green}, // a flow that a diff opens
	{regexp.MustCompile(`^(- .* → .*)`), red},    // a flow that a diff closes
	{regexp.MustCompile(`^(\+) .* → `), green},
	{regexp.MustCompile(`^(-) .* → `), red},
	{regexp.MustCompile(`(\[[a-z]+(?:-[a-z]+)*\])$`), yellow}, // the check of a finding
	{regexp.MustCompile(`^(NOT COMPLETE)$`), red},
	{regexp.MustCompile(`^(?:- )?(WARNING: .*)`), yellow},
	{regexp.MustCompile(`^\d+ passed.* ([1-9]\d* (?:failed|errors?))\b`), red},
}

func (p *painter) Write(text []byte) (int, error) {
	if !p.on {
		return p.out.Write(text)
	}
	var painted bytes.Buffer
	for line := range bytes.Lines(text) {
		if p.rest {
			painted.Write(line)
		} else {
			paintLine(&painted, line)
		}
		p.rest = line[len(line)-1] != '\n'
	}
	if _, err := p.out.Write(painted.Bytes()); err != nil {
		return 0, err
	}
	return len(text), nil
}

// paintLine writes a line with its colors.
func paintLine(out *bytes.Buffer, line []byte) {
	content := bytes.TrimSuffix(line, []byte("\n"))
	for _, p := range paints {
		if at := p.part.FindSubmatchIndex(content); at != nil {
			out.Write(content[:at[2]])
			out.WriteString("\x1b[" + p.color + "m")
			out.Write(content[at[2]:at[3]])
			out.WriteString("\x1b[0m")
			out.Write(line[at[3]:])
			return
		}
	}
	out.Write(line)
}
