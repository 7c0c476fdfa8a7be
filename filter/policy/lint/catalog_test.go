package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// The catalog describes each check exactly once, so that help, severities and SARIF have all checks.
func TestCatalogIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "lint.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, d := range file.Decls {
		g, is := d.(*ast.GenDecl)
		if !is || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			for _, v := range s.(*ast.ValueSpec).Values {
				if text, err := strconv.Unquote(v.(*ast.BasicLit).Value); err == nil {
					named = append(named, text)
				}
			}
		}
	}
	var described []string
	for _, a := range Checks() {
		described = append(described, a.ID)
		if a.Severity < Info || a.Severity > Error || a.Summary == "" {
			t.Errorf("%s has severity %v and summary %q", a.ID, a.Severity, a.Summary)
		}
	}
	slices.Sort(named)
	slices.Sort(described)
	if len(named) < 10 || !slices.Equal(named, described) {
		t.Errorf("the checks are %v, described are %v", named, described)
	}
}
