package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"sluice/bench/testbed/cluster"
)

// BenchmarkDiff runs sluice diff on two directories with 300 pods and 90 policies each; a tenth of the
// policies differ.
func BenchmarkDiff(b *testing.B) {
	old, now := clusterDir(b, 1, 90), clusterDir(b, 1, 81)
	var out, errs bytes.Buffer
	for b.Loop() {
		out.Reset()
		if status := run(b.Context(), env{stdout: &out, stderr: &errs, getenv: os.Getenv}, []string{"diff", old, now, "--fail-on", "none"}); status != 0 {
			b.Fatalf("status %d: %s", status, errs.String())
		}
	}
	b.ReportMetric(float64(bytes.Count(out.Bytes(), []byte("\n"))), "lines")
}

// clusterDir writes a cluster of 300 pods to a directory.
func clusterDir(tb testing.TB, seed uint64, policies int) string {
	tb.Helper()
	dir := tb.TempDir()
	c := cluster.New(seed, cluster.Options{Pods: 300, Policies: policies, Namespaces: 40})
	file, err := os.Create(filepath.Join(dir, "all.yaml"))
	if err != nil {
		tb.Fatal(err)
	}
	defer file.Close()
	for _, o := range c.Namespaces {
		o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}
		writeObject(tb, file, o)
	}
	for i, o := range c.Pods {
		o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		yes := true
		o.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: fmt.Sprint("app", i/10), Controller: &yes}}
		writeObject(tb, file, o)
	}
	for _, o := range c.Policies {
		o.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		writeObject(tb, file, o)
	}
	return dir
}

func writeObject(tb testing.TB, out io.Writer, o runtime.Object) {
	text, err := yaml.Marshal(o)
	if err == nil {
		_, err = fmt.Fprintf(out, "---\n%s", text)
	}
	if err != nil {
		tb.Fatal(err)
	}
}
