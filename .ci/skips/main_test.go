package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// run prints the output of failed tests and of tests that never ended, and the output that belongs to
// a package and not to a test. It records why tests were skipped.
func TestRun(t *testing.T) {
	const events = `
{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestGood","Output":"    good_test.go:1: not printed\n"}
{"Action":"pass","Package":"p","Test":"TestGood"}
{"Action":"output","Package":"p","Test":"TestBad","Output":"    bad_test.go:1: what is wrong\n"}
{"Action":"fail","Package":"p","Test":"TestBad"}
{"Action":"output","Package":"p","Test":"TestSkipped/a","Output":"=== RUN   TestSkipped/a\n"}
{"Action":"output","Package":"p","Test":"TestSkipped/a","Output":"    a_test.go:1: a note\n"}
{"Action":"output","Package":"p","Test":"TestSkipped/a","Output":"    require.go:23: needs root:\n        it makes namespaces\n"}
{"Action":"output","Package":"p","Test":"TestSkipped/a","Output":"    --- SKIP: TestSkipped/a (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestSkipped/a"}
{"Action":"output","Package":"p","Test":"TestHangs","Output":"=== RUN   TestHangs\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}
{"ImportPath":"q","Action":"build-output","Output":"q.go:1: undefined: x\n"}
{"Action":"output","Package":"r","Output":"PASS\n"}
{"Action":"output","Package":"r","Output":"ok  \tr\t0.2s\n"}
{"Action":"pass","Package":"r"}
{"Action":"skip","Package":"s"}
`
	const want = "    bad_test.go:1: what is wrong\nFAIL\tp\t0.1s\n=== RUN   TestHangs\nq.go:1: undefined: x\nok  \tr\t0.2s\n"
	file := filepath.Join(t.TempDir(), "reasons")
	var out strings.Builder
	if err := run(strings.NewReader(events), &out, file); err != nil {
		t.Fatal(err)
	}
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != "needs root: it makes namespaces\n" {
		t.Errorf("reasons %q", got)
	}
}

// Input that is not JSON is an error.
func TestRunRejectsOtherInput(t *testing.T) {
	err := run(strings.NewReader("go: no such tool"), &strings.Builder{}, filepath.Join(t.TempDir(), "reasons"))
	if err == nil || !strings.Contains(err.Error(), "read the output of go test") {
		t.Errorf("error %v", err)
	}
}
