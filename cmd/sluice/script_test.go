package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestMain makes sluice a command that scripts can run, also as a plugin of kubectl.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"sluice": main, "kubectl-sluice": main})
}

// The scripts in testdata/script run the real command as users do. If SLUICE_UPDATE_SCRIPTS is
// set, the test updates the expected output in the scripts.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       os.Getenv("SLUICE_UPDATE_SCRIPTS") != "",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// eachCommand calls f for c and for every command below it, including hidden commands.
func eachCommand(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		eachCommand(sub, f)
	}
}

func TestEveryCommandIsDocumented(t *testing.T) {
	eachCommand(rootCommand(env{}), func(c *cobra.Command) {
		t.Run(c.CommandPath(), func(t *testing.T) {
			if c.Short == "" || c.Long == "" || c.Example == "" {
				t.Errorf("short, long or example is missing: %q, %q, %q", c.Short, c.Long, c.Example)
			}
			if strings.HasSuffix(c.Short, ".") || len(c.Short) > 100 {
				t.Errorf("%q is not a short line without a full stop", c.Short)
			}
			c.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Usage == "" {
					t.Errorf("--%s is not explained", f.Name)
				}
			})
			for line := range strings.Lines(c.Long + "\n" + c.Example) {
				if len(strings.TrimRight(line, "\n")) > 100 {
					t.Errorf("longer than 100 bytes: %q", line)
				}
			}
		})
	})
}

// Every line of an example is a command with valid flags and arguments.
func TestExamplesParse(t *testing.T) {
	lines := 0
	eachCommand(rootCommand(env{}), func(documented *cobra.Command) {
		for line := range strings.Lines(documented.Example) {
			lines++
			t.Run(strings.TrimSpace(line), func(t *testing.T) {
				args, ok := exampleArgs(line)
				if !ok {
					t.Fatal("no command of the line is sluice")
				}
				root := rootCommand(env{})
				cmd, rest, err := root.Find(args)
				if err != nil {
					t.Fatal(err)
				}
				if documented.HasParent() && cmd.Name() != documented.Name() {
					t.Errorf("the line is an example of %s", cmd.Name())
				}
				if err := cmd.ParseFlags(rest); err != nil {
					t.Fatal(err)
				}
				if err := cmd.ValidateRequiredFlags(); err != nil {
					t.Error(err)
				}
				if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
					t.Error(err)
				}
			})
		}
	})
	if lines < 10 {
		t.Errorf("only %d lines of examples were found", lines)
	}
}

// exampleArgs returns the arguments of the first sluice in a line of an example, and whether there is
// one. It ignores other commands of a pipe, redirections and the explanation after two spaces.
func exampleArgs(line string) ([]string, bool) {
	line, _, _ = strings.Cut(strings.TrimSpace(line), "  ")
	for command := range strings.SplitSeq(line, " | ") {
		for _, end := range []string{" > ", " && "} {
			command, _, _ = strings.Cut(command, end)
		}
		fields := strings.Fields(strings.TrimPrefix(command, "sudo "))
		if fields[0] == "sluice" {
			return fields[1:], true
		}
	}
	return nil, false
}

// A program can write a flow and read its answer in turn: sluice explain answers each flow
// before it reads the next one.
func TestFlowsAreAnsweredAsTheyCome(t *testing.T) {
	dir := matrixDir(t, matrixCluster)
	in := &lockstepReader{t: t, flows: []string{
		`{"from": "web", "to": "db", "port": 6379}`, `{"from": "web", "to": "db", "port": 5}`, `{"from": "nobody", "to": "db", "port": 5}`,
	}}
	var errs bytes.Buffer
	e := env{stdin: in, stdout: &in.out, stderr: &errs}
	if status := run(t.Context(), e, []string{"explain", "-f", dir, "--flows", "-", "-o", "json"}); status != exitFailed {
		t.Errorf("status %d, want %d because of the last flow", status, exitFailed)
	}
	if in.asked != len(in.flows) {
		t.Errorf("%d flows were read", in.asked)
	}
}

// lockstepReader is an input of flows. It fails the test if a flow is read before the
// previous one was answered.
type lockstepReader struct {
	t     *testing.T
	flows []string
	asked int
	out   bytes.Buffer
}

func (x *lockstepReader) Read(p []byte) (int, error) {
	if answered := strings.Count(x.out.String(), "\n"); answered != x.asked {
		x.t.Errorf("%d answers after %d flows", answered, x.asked)
	}
	if x.asked == len(x.flows) {
		return 0, io.EOF
	}
	x.asked++
	return copy(p, x.flows[x.asked-1]+"\n"), nil
}

// The exit status distinguishes success, findings and failures.
func TestExitStatuses(t *testing.T) {
	dir := matrixDir(t, matrixCluster)
	expecting := func(tests string) []string {
		file := filepath.Join(t.TempDir(), "tests")
		if err := os.WriteFile(file, []byte("manifests: "+dir+"\ntests: ["+tests+"]"), 0o600); err != nil {
			t.Fatal(err)
		}
		return []string{"test", file}
	}
	asking := func(from, port string) []string {
		return []string{"explain", "-f", dir, "--to", "db", "--from", from, "--port", port}
	}
	for name, tt := range map[string]struct {
		args   []string
		status int
	}{
		"allow":          {asking("web", "6379"), 0},
		"deny":           {asking("web", "1"), 0}, // a denial is an answer, not a failure
		"no answer":      {asking("nobody", "1"), exitFailed},
		"test passes":    {expecting("{from: web, to: db, port: 6379, expect: allow}"), 0},
		"test fails":     {expecting("{from: web, to: db, port: 6379, expect: deny}"), exitFindings},
		"test cannot be": {expecting("{from: nobody, to: db, port: 1, expect: deny}, {from: web, to: db, port: 6379, expect: deny}"), exitFailed},
		"matrix":         {[]string{"matrix", "-f", dir}, 0},
		"no command":     {[]string{"frobnicate"}, exitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			if status, _, stderr := sluice(t, tt.args...); status != tt.status {
				t.Errorf("status %d, want %d: %s", status, tt.status, stderr)
			}
		})
	}
}

// Each message begins with the name by which the program was called, because env.say writes it.
func TestMessagesHaveTheProgramsName(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") || file == "rules_remove_linux.go" { // the commands in these files run on nodes only
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), `"sluice: `) || strings.Contains(string(text), `"sluice:"`) {
			t.Errorf("%s has messages that begin with sluice: use env.say", file)
		}
	}
}
