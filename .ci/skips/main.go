// Command skips reads the output of go test -json and prints what go test prints without
// -json: a line for each package, and the output of failing tests. It writes why tests were
// skipped, which go test does not print, to a file, a line for each.
//
//	go test -json ./... | skips FILE
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
)

// event is a line of go test -json, as cmd/test2json documents it.
type event struct {
	Action, Package, Test, Output string
}

// test names a test of a package.
type test struct{ pkg, name string }

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "skips: give the file for the reasons")
		os.Exit(2)
	}
	if err := run(os.Stdin, os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
		os.Exit(1)
	}
}

// run copies in to out. go test's own exit status reports failures.
func run(in io.Reader, out io.Writer, reasons string) error {
	f, err := os.OpenFile(reasons, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("record what was skipped: %w", err)
	}
	said := make(map[test]string) // by tests that have not ended yet
	events := json.NewDecoder(in)
	for {
		var e event
		if err = events.Decode(&e); err != nil {
			break
		}
		at := test{e.Package, e.Test}
		switch {
		case e.Output != "" && e.Test != "":
			said[at] += e.Output
		case e.Output != "PASS\n": // go test prints it only with details
			fmt.Fprint(out, e.Output)
		}
		switch e.Action {
		case "fail":
			fmt.Fprint(out, take(said, at))
		case "skip":
			if text := take(said, at); e.Test != "" {
				fmt.Fprintln(f, reason(text))
			}
		case "pass":
			delete(said, at)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	} else {
		err = fmt.Errorf("read the output of go test: %w", err)
	}
	return errors.Join(err, f.Close())
}

// take returns what a test has printed. For a package that failed, it is what those of its
// tests printed that never ended, as after a panic.
func take(said map[test]string, at test) string {
	text := said[at]
	delete(said, at)
	if at.name != "" {
		return text
	}
	for t, more := range said {
		if t.pkg == at.pkg {
			text += more
			delete(said, t)
		}
	}
	return text
}

// place is the file and line in front of a test's message.
var place = regexp.MustCompile(`(?m)^\s*\w+\.go:\d+: `)

// reason returns the last message of a skipped test.
func reason(text string) string {
	at := place.FindAllStringIndex(text, -1)
	if at == nil {
		return "no reason given"
	}
	text, _, _ = strings.Cut(text[at[len(at)-1][1]:], "--- SKIP")
	return strings.Join(strings.Fields(text), " ")
}
