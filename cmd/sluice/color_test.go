package main

import (
	"strings"
	"testing"
)

// painter colors the words that carry the answer, however the text is split into writes.
func TestPainter(t *testing.T) {
	const text = "allow (rule): a to b\ndeny: c\n  allow\nallowed\nok    f: x\nFAIL  f: y\nERROR f: z\n2 passed, 1 failed\n2 passed, 0 failed\n" +
		"f.yaml: P\n  spec: bad  [no-match]\n      hint: x\n1 finding in 1 policy\n0 findings in 1 policy\n{\"verdict\": \"deny\"}\n+ a → b  TCP 1\n- a → b\n- item\n" +
		"10:37:07.644  deny    deny/allow → b\n10:37:07.644  node-1  allow   a → b\n10:37:07.644  n  reject  a → b\n10:37:07.644  end     a → allow\n10:37:07.644  (7 more are not shown)\n5.7s ago  17s ago  4  a  b\nnode-1  5.7s ago  1h2m ago  -  a  b\n"
	const want = "G(allow) (rule): a to b\nR(deny): c\n  allow\nallowed\nG(ok)    f: x\nR(FAIL)  f: y\nR(ERROR) f: z\n2 passed, R(1 failed)\n2 passed, 0 failed\n" +
		"f.yaml: P\n  spec: bad  Y([no-match])\n      hint: x\nR(1 finding) in 1 policy\nG(0 findings) in 1 policy\n{\"verdict\": \"deny\"}\nG(+ a → b  TCP 1)\nR(- a → b)\n- item\n" +
		"10:37:07.644  R(deny)    deny/allow → b\n10:37:07.644  node-1  G(allow)   a → b\n10:37:07.644  n  R(reject)  a → b\n10:37:07.644  end     a → allow\n10:37:07.644  Y((7 more are not shown))\n5.7s ago  17s ago  R(4)  a  b\nnode-1  5.7s ago  1h2m ago  R(-)  a  b\n"
	names := strings.NewReplacer("\x1b[31m", "R(", "\x1b[32m", "G(", "\x1b[33m", "Y(", "\x1b[0m", ")")
	var out strings.Builder
	p := painter{out: &out, on: true}
	for line := range strings.Lines(text) {
		if n, err := p.Write([]byte(line)); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if got := names.Replace(out.String()); got != want {
		t.Errorf("line by line: %s", got)
	}
	out.Reset()
	for _, part := range []string{"deny", " deny\nde", "ny\n"} {
		_, _ = p.Write([]byte(part))
	}
	if got := names.Replace(out.String()); got != "R(deny) deny\ndeny\n" {
		t.Errorf("in parts: %s", got)
	}
	out.Reset()
	p.on = false
	_, _ = p.Write([]byte(text))
	if out.String() != text {
		t.Errorf("without colors: %s", out.String())
	}
}

// Output that is not a terminal gets no colors, unless --color asks for them.
func TestColorFlag(t *testing.T) {
	dir := matrixDir(t, matrixCluster)
	ask := []string{"explain", "-f", dir, "--from", "web", "--to", "db", "--port", "6379"}
	for want, args := range map[string][]string{"": {}, "never": {"--color", "never"}, "\x1b[32mallow\x1b[0m": {"--color=always"}} {
		_, stdout, _ := sluice(t, append(args, ask...)...)
		if has := strings.Contains(stdout, "\x1b"); has != strings.Contains(want, "\x1b") || has && !strings.HasPrefix(stdout, want) {
			t.Errorf("%v: %q", args, stdout)
		}
	}
	if status, _, stderr := sluice(t, append(ask, "--color", "yes")...); status != exitFailed || !strings.Contains(stderr, "give one of auto, always, never") {
		t.Errorf("status %d, %s", status, stderr)
	}
}
