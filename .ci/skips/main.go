// Command skips reads the output of go test -json and prints what go test prints without
// -json: a line for each package, and the output of failing tests. For each skipped test, it
// appends a line with the reason to FILE, because go test does not print the reason.
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

// event is a line of go test -json (see go doc test2json).
type event struct {
	Action, Package, Test, Output string
}

// test identifies a test or, if the name is empty, a package.
type test struct{ pkg, name string }

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: go test -json ... | skips FILE")
		os.Exit(2)
	}
	if err := run(os.Stdin, os.Stdout, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "skips:", err)
		os.Exit(1)
	}
}

// run reads events from "in", writes them as text to "out", and appends the reasons of skips to
// a file. A failed test is not an error of run(): the exit status of go test reports it.
func run(in io.Reader, out io.Writer, reasons string) error {
	f, err := os.OpenFile(reasons, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("record the skipped tests: %w", err)
	}
	output := make(map[test]string) // output of the tests that have not ended yet
	events := json.NewDecoder(in)
	for {
		var e event
		if err = events.Decode(&e); err != nil {
			break
		}
		at := test{e.Package, e.Test}
		switch {
		case e.Output != "" && e.Test != "":
			output[at] += e.Output
		case e.Output != "PASS\n": // go test prints this only with -v
			fmt.Fprint(out, e.Output)
		}
		switch e.Action {
		case "fail":
			fmt.Fprint(out, take(output, at))
		case "skip":
			if text := take(output, at); e.Test != "" {
				fmt.Fprintln(f, reason(text))
			}
		case "pass":
			delete(output, at)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	} else {
		err = fmt.Errorf("read the output of go test: %w", err)
	}
	return errors.Join(err, f.Close())
}

// take removes and returns the output of a test. For a package, it removes and returns the output of
// all tests of the package that have not ended, as after a panic.
func take(output map[test]string, at test) string {
	text := output[at]
	delete(output, at)
	if at.name != "" {
		return text
	}
	for t, more := range output {
		if t.pkg == at.pkg {
			text += more
			delete(output, t)
		}
	}
	return text
}

// place matches the file and line before a test's message.
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
