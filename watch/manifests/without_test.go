package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Without deletes an object that only the old files have, and the pods of a deleted workload. Objects
// that only the cluster has stay.
func TestWithout(t *testing.T) {
	read := func(text string) Objects {
		path := filepath.Join(t.TempDir(), "a.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		o, problems, err := Read(path)
		if err != nil || len(problems) > 0 {
			t.Fatal(err, problems)
		}
		return o
	}
	const (
		web    = "{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: web, namespace: a}, spec: {serviceName: s, selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c, image: i}]}}}}\n---\n"
		webPod = "{apiVersion: v1, kind: Pod, metadata: {name: web-0, namespace: a, labels: {app: web}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: web, uid: u, controller: true}]}, status: {podIPs: [{ip: 10.0.0.1}]}}\n---\n"
		pod    = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: a}, status: {podIPs: [{ip: 10.0.0.2}]}}\n---\n"
		x      = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: one, namespace: a}, spec: {podSelector: {}}}\n---\n"
		y      = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: two, namespace: a}, spec: {podSelector: {}}}\n---\n"
	)
	for name, tt := range map[string]struct {
		before, after string
		want          []string
	}{
		"a policy":     {x + y, y, []string{"NetworkPolicy a/two", "Pod a/p", "Pod a/web-0", "StatefulSet a/web"}},
		"a workload":   {web + x, x, []string{"NetworkPolicy a/one", "NetworkPolicy a/two", "Pod a/p"}},
		"nothing":      {web + x, web + x, []string{"NetworkPolicy a/one", "NetworkPolicy a/two", "Pod a/p", "Pod a/web-0", "StatefulSet a/web"}},
		"only the new": {x, x + y, []string{"NetworkPolicy a/one", "NetworkPolicy a/two", "Pod a/p", "Pod a/web-0", "StatefulSet a/web"}},
	} {
		t.Run(name, func(t *testing.T) {
			out := Without(read(web+webPod+pod+x+y), read(tt.before), read(tt.after))
			got := out.keys()
			slices.Sort(got)
			if fmt.Sprint(got) != fmt.Sprint(tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
			for key := range out.Origins {
				if !slices.Contains(got, key) {
					t.Errorf("%s is gone and has an origin", key)
				}
			}
		})
	}
}
