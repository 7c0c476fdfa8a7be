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
	// module is the path of the module's directory, relative to this directory.
	module = "../.."
	// notRun begins a line before a block. The line gives the reason why the test does not run the
	// commands in the block: they change the machine, or need a particular one.
	notRun = "<!-- not run: "
	// outputOf begins a reason that names a file of the repository. The file contains all lines of
	// output in the block, except for "..." lines. A line in the block may end in "...".
	outputOf = "output of "
	// showStatus ends each command for which the page shows the exit status after the output.
	showStatus = "; echo $?"
)

// page is a document of the repository.
type page struct {
	path  string // path of the file, relative to the module's directory
	lines []string
}

// block is a part of a page between fences. In a block of the language "console", each command begins
// with a dollar sign, and its output follows.
type block struct {
	language   string
	first, end int // lines[first:end] of the file, without the fences
	notRun     bool
	outputFile string // the file that outputOf names; empty if there is none
}

// command is a command of a block, with its output.
type command struct{ line, output string }

// allPages reads all documents of the repository.
func allPages(t *testing.T) (pages []page) {
	t.Helper()
	err := filepath.WalkDir(module, func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != module && (strings.HasPrefix(d.Name(), ".") || d.Name() == "bin" || d.Name() == "testdata"):
			return filepath.SkipDir
		case filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		path, _ = filepath.Rel(module, path)
		pages = append(pages, page{path, strings.Split(string(text), "\n")})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return pages
}

// onePage reads a document.
func onePage(t *testing.T, path string) page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(module, path))
	if err != nil {
		t.Fatal(err)
	}
	return page{path, strings.Split(string(text), "\n")}
}

func (p page) blocks() (blocks []block) {
	for i := 0; i < len(p.lines); i++ {
		language, is := strings.CutPrefix(p.lines[i], "```")
		if !is {
			continue
		}
		b := block{language: language, first: i + 1}
		if i > 0 {
			b.notRun = strings.HasPrefix(p.lines[i-1], notRun)
			_, file, _ := strings.Cut(p.lines[i-1], outputOf)
			b.outputFile = strings.TrimSuffix(file, " -->")
		}
		for i++; i < len(p.lines) && p.lines[i] != "```"; i++ {
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

// The commands on all pages print what the pages show. They run in the directory examples; commands
// that begin with bin/ run in the module's directory. With SLUICE_UPDATE_SCRIPTS set, the test writes
// the output to the pages.
func TestReadme(t *testing.T) {
	ran := 0
	for _, p := range allPages(t) {
		t.Run(p.path, func(t *testing.T) { ran += runPage(t, p, os.Getenv("SLUICE_UPDATE_SCRIPTS") != "") })
	}
	if ran < 6 {
		t.Errorf("only %d examples were found", ran)
	}
}

// runPage runs the commands on a page, and returns their number.
func runPage(t *testing.T, p page, update bool) (ran int) {
	t.Helper()
	var updated []string
	last := 0
	for _, b := range p.blocks() {
		if b.language != "console" || b.notRun {
			continue
		}
		updated = append(updated, p.lines[last:b.first]...)
		for _, c := range readmeCommands(p.lines[b.first:b.end]) {
			got := c.output
			t.Run(c.line, func(t *testing.T) {
				args := readmeArgs(t, c.line)
				if args == nil {
					return
				}
				ran++
				dir := "examples"
				if strings.HasPrefix(c.line, "bin/") {
					dir = module
				}
				if got = runExample(t, dir, args, strings.HasSuffix(c.line, showStatus)); got != c.output && !update {
					t.Errorf("the command prints\n%s\nand %s shows\n%s", got, p.path, c.output)
				}
			})
			updated = append(updated, "$ "+c.line)
			if got != "" {
				updated = append(updated, strings.Split(strings.TrimSuffix(got, "\n"), "\n")...)
			}
		}
		last = b.end
	}
	if update && ran > 0 {
		updated = append(updated, p.lines[last:]...)
		if err := os.WriteFile(filepath.Join(module, p.path), []byte(strings.Join(updated, "\n")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return ran
}

// readmeArgs returns the arguments of a sluice command, and checks that they are valid. For a
// make command, it checks that the Makefile has the target, and returns nil. Other commands
// fail the test.
func readmeArgs(t *testing.T, line string) []string {
	t.Helper()
	line = strings.TrimPrefix(line, "sudo ")
	if target, is := strings.CutPrefix(line, "make "); is {
		checkTarget(t, target)
		return nil
	}
	args, ok := exampleArgs(strings.TrimPrefix(strings.TrimSuffix(line, showStatus), "bin/"))
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

// checkTarget checks that the Makefile has the target of a make command.
func checkTarget(t *testing.T, command string) {
	t.Helper()
	makefile, err := os.ReadFile(filepath.Join(module, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	target, _, _ := strings.Cut(command, " ")
	if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(target) + `:`).Match(makefile) {
		t.Errorf("the Makefile has no target %s", target)
	}
}

// runExample runs a command and returns its standard output and error in one text, as a
// terminal shows them. If status is set, the exit status follows.
func runExample(t *testing.T, dir string, args []string, status bool) string {
	t.Helper()
	t.Chdir(dir)
	var out bytes.Buffer
	e := env{stdin: strings.NewReader(""), stdout: &out, stderr: &out, getenv: func(string) string { return "" }}
	s := run(t.Context(), e, args)
	if status {
		fmt.Fprintln(&out, s)
	}
	return out.String()
}
