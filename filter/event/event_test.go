package event_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root    = "../.."
	page    = "cmd/sluice/agent/telemetry/README.md"
	imports = "sluice/filter/event"
)

// source is a parsed file of the module.
type source struct {
	path string // path of the file, relative to the module's root
	file *ast.File
}

func sources(t *testing.T) (all []source) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "bin" || name == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		path, _ = filepath.Rel(root, path)
		all = append(all, source{path, file})
		return err
	})
	if err != nil {
		t.Fatalf("reading the module: %v", err)
	}
	return all
}

// declared returns the events of event.go: the name of each constant and its value.
func declared(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	events := make(map[string]string)
	for _, d := range file.Decls {
		if d, is := d.(*ast.GenDecl); is && d.Tok == token.CONST {
			for _, spec := range d.Specs {
				v := spec.(*ast.ValueSpec)
				if v.Type != nil {
					events[v.Names[0].Name], _ = strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
				}
			}
		}
	}
	return events
}

// used returns the names of the event constants that a file uses.
func (s source) used() (names []string) {
	if !slices.ContainsFunc(s.file.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == strconv.Quote(imports) }) {
		return nil
	}
	ast.Inspect(s.file, func(n ast.Node) bool {
		if sel, is := n.(*ast.SelectorExpr); is {
			if x, is := sel.X.(*ast.Ident); is && x.Name == "event" && sel.Sel.Name != "Key" && sel.Sel.Name != "Name" {
				names = append(names, sel.Sel.Name)
			}
		}
		return true
	})
	return names
}

// Each event is logged by the agent, is documented, and has a value of its own.
func TestEventsAreLoggedAndDocumented(t *testing.T) {
	events := declared(t)
	logged, values := make(map[string]bool), make(map[string]bool)
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, "_test.go") || strings.HasPrefix(s.path, "bench/") {
			continue
		}
		for _, name := range s.used() {
			logged[name] = true
		}
	}
	documents := documented(t)
	for name, value := range events {
		if !logged[name] {
			t.Errorf("the agent does not log event.%s", name)
		}
		if !slices.Contains(documents, value) {
			t.Errorf("%s does not list event %s", page, value)
		}
		if values[value] {
			t.Errorf("two events are %q", value)
		}
		values[value] = true
	}
	for _, value := range documents {
		if !values[value] {
			t.Errorf("%s lists %s, which is not an event", page, value)
		}
	}
	if len(events) == 0 {
		t.Error("no events were found in event.go")
	}
}

var row = regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|")

// documented returns the events in the table of the page.
func documented(t *testing.T) (values []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(text), "## Events in the log\n")
	if !found {
		t.Fatalf("%s has no section about events in the log", page)
	}
	section, _, _ = strings.Cut(section, "\n#")
	for _, m := range row.FindAllStringSubmatch(section, -1) {
		values = append(values, m[1])
	}
	return values
}

// Tests, the demo and the benchmarks do not depend on the messages of the agent's log,
// which may be reworded. Two files are excepted: the test that compares the log on
// a page with the agent's, and the test of the log reader itself.
func TestMessagesAreNotRead(t *testing.T) {
	may := []string{"readme_packets_test.go", "agent_test.go"}
	for _, s := range sources(t) {
		if slices.Contains(may, filepath.Base(s.path)) {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if isMessage(n) {
				t.Errorf("%s reads the message of a log line: use its event", s.path)
			}
			return true
		})
	}
}

// isMessage reports whether a node is the message of a log line: l.Text("msg"), or a comparison
// of a slog.Record's Message.
func isMessage(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.CallExpr:
		sel, is := n.Fun.(*ast.SelectorExpr)
		if !is || sel.Sel.Name != "Text" || len(n.Args) != 1 {
			return false
		}
		arg, is := n.Args[0].(*ast.BasicLit)
		return is && arg.Value == `"msg"`
	case *ast.BinaryExpr:
		return isRecordMessage(n.X) || isRecordMessage(n.Y)
	}
	return false
}

func isRecordMessage(e ast.Expr) bool {
	sel, is := e.(*ast.SelectorExpr)
	if !is || sel.Sel.Name != "Message" {
		return false
	}
	x, is := sel.X.(*ast.Ident)
	return is && (x.Name == "rec" || x.Name == "record")
}
