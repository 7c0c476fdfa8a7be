//go:build linux

package main

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/watch/manifests"
)

// Every context with a time limit has a cause that names what took too long, and every
// error from the end of a context includes that cause.
func TestContextsNameTheirCause(t *testing.T) {
	root := filepath.Join("..", "..")
	checked := 0
	for _, dir := range []string{"cache", "cmd", "filter", "watch"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			checked++
			for _, at := range missingCauses(file) {
				t.Errorf("%s: use context.WithTimeoutCause, or context.Cause", set.Position(at))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if checked < 50 {
		t.Errorf("only %d files were checked", checked)
	}
}

// missingCauses returns the positions in a file at which the cause of a context's end is lost:
// calls of context.WithTimeout and context.WithDeadline, which set no cause, and calls of
// ctx.Err() outside of comparisons, which return an error without the cause.
func missingCauses(file *ast.File) (found []token.Pos) {
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if of, is := n.X.(*ast.Ident); is && of.Name == "context" && (n.Sel.Name == "WithTimeout" || n.Sel.Name == "WithDeadline") {
				found = append(found, n.Pos())
			}
		case *ast.BinaryExpr:
			return false // a comparison such as ctx.Err() != nil is fine
		case *ast.CallExpr:
			if sel, is := n.Fun.(*ast.SelectorExpr); is && sel.Sel.Name == "Err" && len(n.Args) == 0 {
				if of, is := sel.X.(*ast.Ident); is && strings.Contains(strings.ToLower(of.Name), "ctx") {
					found = append(found, n.Pos())
				}
			}
		}
		return true
	})
	return found
}

func TestMissingCausesAreFound(t *testing.T) {
	const text = `package p
func f(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	if ctx.Err() != nil {
		return fmt.Errorf("x: %w", ctx.Err())
	}
	return ctx.Err()
}`
	file, err := parser.ParseFile(token.NewFileSet(), "p.go", text, 0)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(missingCauses(file)); n != 3 {
		t.Errorf("%d places found, want 3", n)
	}
}

// A log line has no attribute without a value.
func TestNoEmptyAttributes(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		var out strings.Builder
		log := newLogger(env{stderr: &out}, runOptions{logFormat: format})
		log.Info("said", "problem", manifests.Problem{File: "f.yaml", Detail: "d"}, "err", errors.New(""), "because", "", "n", 0, "cause", error(nil), "is", os.ErrNotExist)
		text := out.String()
		for _, bad := range []string{`=""`, `:""`, "because", "object", "= "} {
			if strings.Contains(text, bad) {
				t.Errorf("%s: %q in %s", format, bad, text)
			}
		}
		for _, want := range []string{"f.yaml", "without a text", "file does not exist"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %q in %s", format, want, text)
			}
		}
	}
}

// In JSON, keys of durations contain the unit.
func TestDurationsHaveUnits(t *testing.T) {
	for format, want := range map[string]string{"text": "wait=1.5ms", "json": `"wait_ms":1.5`} {
		var out strings.Builder
		newLogger(env{stderr: &out}, runOptions{logFormat: format}).Info("waited", "wait", 1500*time.Microsecond)
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: no %s in %s", format, want, out.String())
		}
	}
}
