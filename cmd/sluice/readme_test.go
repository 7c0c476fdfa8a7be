package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	readmePath = "../../README.md"
	// asRoot is a line of the README. The commands in the block after this line change the
	// machine, so the test does not run them.
	asRoot = "<!-- as root -->"
	// showStatus ends each command whose exit status the README shows after the output.
	showStatus = "; echo $?"
)

// block is a part of the README between ```console and ```: commands that begin with a
// dollar, each followed by its output.
type block struct {
	first, end int // lines[first:end] of the file, without the fences
	root       bool
}

// command is a command of a block, with its output.
type command struct{ line, output string }

func readmeBlocks(lines []string) (blocks []block) {
	for i := 0; i < len(lines); i++ {
		if lines[i] != "```console" {
			continue
		}
		b := block{first: i + 1, root: i > 0 && lines[i-1] == asRoot}
		for i++; i < len(lines) && lines[i] != "```"; i++ {
		}
		b.end = i
		blocks = append(blocks, b)
	}
	return blocks
}

func readmeCommands(lines []string) (commands []command) {
	for _, line := range lines {
		if text, is := strings.CutPrefix(line, "$ "); is {
			commands = append(commands, command{line: text})
		} else if n := len(commands); n > 0 {
			commands[n-1].output += line + "\n"
		}
	}
	return commands
}

// The examples of the README, run in the directory examples, print what the README shows.
// With SLUICE_UPDATE_SCRIPTS set, the test writes their output to the README.
func TestReadme(t *testing.T) {
	text, err := os.ReadFile(readmePath)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	update := os.Getenv("SLUICE_UPDATE_SCRIPTS") != ""
	var updated []string
	ran, last := 0, 0
	for _, b := range readmeBlocks(lines) {
		updated = append(updated, lines[last:b.first]...)
		for _, c := range readmeCommands(lines[b.first:b.end]) {
			got := c.output
			t.Run(c.line, func(t *testing.T) {
				args := readmeArgs(t, c.line)
				if b.root || args == nil {
					return
				}
				ran++
				if got = runExample(t, args, strings.HasSuffix(c.line, showStatus)); got != c.output && !update {
					t.Errorf("the command prints\n%s\nand the README shows\n%s", got, c.output)
				}
			})
			updated = append(updated, "$ "+c.line)
			if got != "" {
				updated = append(updated, strings.Split(strings.TrimSuffix(got, "\n"), "\n")...)
			}
		}
		last = b.end
	}
	updated = append(updated, lines[last:]...)
	if ran < 6 {
		t.Errorf("only %d examples were found", ran)
	}
	if update {
		if err := os.WriteFile(readmePath, []byte(strings.Join(updated, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// readmeArgs returns the arguments of a sluice command, and checks that they are valid. For a
// make command, it checks that the Makefile has the target, and returns nil. Other commands
// fail the test.
func readmeArgs(t *testing.T, line string) []string {
	t.Helper()
	line = strings.TrimPrefix(line, "sudo ")
	if target, is := strings.CutPrefix(line, "make "); is {
		makefile, err := os.ReadFile("../../Makefile")
		if err != nil {
			t.Fatal(err)
		}
		target, _, _ = strings.Cut(target, " ")
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).Match(makefile) {
			t.Errorf("the Makefile has no target %s", target)
		}
		return nil
	}
	args, ok := exampleArgs(strings.TrimSuffix(line, showStatus))
	if !ok {
		t.Fatal("this is neither a sluice command nor a make command")
	}
	cmd, rest, err := rootCommand(env{}).Find(args)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.ParseFlags(rest); err != nil && !strings.Contains(err.Error(), "help") {
		t.Fatal(err)
	}
	return args
}

// runExample runs a command and returns its standard output and error in one text, as a
// terminal shows them. If status is set, the exit status follows.
func runExample(t *testing.T, args []string, status bool) string {
	t.Helper()
	t.Chdir("examples")
	var out bytes.Buffer
	e := env{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: func(string) string { return "" }}
	s := run(t.Context(), e, args)
	if status {
		fmt.Fprintln(&out, s)
	}
	return out.String()
}

var link = regexp.MustCompile(`\]\(([^)#:]+)\)`)

// The files to which the README links exist.
func TestReadmeLinks(t *testing.T) {
	text, err := os.ReadFile(readmePath)
	if err != nil {
		t.Fatal(err)
	}
	links := link.FindAllSubmatch(text, -1)
	for _, l := range links {
		if _, err := os.Stat(filepath.Join(filepath.Dir(readmePath), string(l[1]))); err != nil {
			t.Errorf("a link: %v", err)
		}
	}
	if len(links) == 0 {
		t.Error("no links were found")
	}
}
