package manifests

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/filter/policy"
)

// The source passes the pod ranges of Nodes only if they are wanted. Labels and addresses
// are passed in any case.
func TestSourcePassesNodeRanges(t *testing.T) {
	dir := write(t, map[string]string{"n.yaml": nodeText})
	for _, want := range []bool{false, true} {
		ctx, stop := context.WithTimeout(t.Context(), waitTimeout)
		w := policy.NewStore()
		err := Source{Dirs: []string{dir}, NodeRanges: want}.Run(ctx, func(f func(*policy.Store)) { f(w); stop() })
		s, _ := w.Commit()
		nodes := 0
		for n := range s.Nodes() {
			if nodes++; len(n.Addrs) != 2 || n.Labels["rack"] != "1" {
				t.Errorf("node %+v", n)
			}
		}
		if got := len(s.PodRanges()) > 0; err != nil || got != want || nodes != 1 {
			t.Errorf("ranges %v, %d nodes, %v; want ranges: %t", s.PodRanges(), nodes, err, want)
		}
	}
}

// OnProblems gets all problems together, once for each change.
func TestSourceReportsItsProblems(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), waitTimeout)
	defer stop()
	reported, ended := make(chan []Problem), make(chan error, 1)
	source := Source{Dirs: []string{dir}, OnProblems: func(p []Problem) {
		select {
		case reported <- p:
		case <-ctx.Done():
		}
	}}
	await := func(want ...string) {
		t.Helper()
		for {
			select {
			case got := <-reported:
				if len(got) != len(want) {
					continue // an intermediate state
				}
				for i, p := range got {
					if !strings.Contains(p.Error(), want[i]) {
						t.Errorf("problem %q, want one with %q", p, want[i])
					}
				}
				return
			case <-ctx.Done():
				t.Fatalf("%d problems were never reported", len(want))
			}
		}
	}
	write("bad.yaml", "{apiVersion: v1, kind: Pod")
	go func() { ended <- source.Run(ctx, func(func(*policy.Store)) {}) }()
	await("bad.yaml")
	write("a.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: a}}")
	write("b.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: a}}")
	await("bad.yaml", "the same object")
	write("bad.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: b}}")
	await("the same object")
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	await()
	write("a.yaml", "")
	await("a.yaml: it is empty; its former objects stay in force: to remove its objects")
	write("a.yaml", "# nothing")
	await()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	await(dir)
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
