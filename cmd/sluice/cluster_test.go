//go:build linux

package main

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"sluice/bench/testbed/apiserver"
)

// setObjects stores the objects of a directory of manifests in an API server.
func setObjects(t *testing.T, api *apiserver.Server, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for reader := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text))); ; {
			document, err := reader.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(bytes.TrimSpace(document)) == 0 {
				continue
			}
			data, err := yaml.YAMLToJSON(document)
			if err != nil {
				t.Fatal(err)
			}
			object := decodeObject(t, data)
			switch object.(type) {
			case *corev1.Namespace, *corev1.Node, *v1beta1.ClusterNetworkPolicy:
			default:
				object.SetNamespace(cmp.Or(object.GetNamespace(), metav1.NamespaceDefault))
			}
			api.Set(object)
		}
	}
}

func decodeObject(t *testing.T, data []byte) apiserver.Object {
	t.Helper()
	policy := new(v1beta1.ClusterNetworkPolicy)
	if err := yaml.Unmarshal(data, policy); err == nil && policy.Kind == "ClusterNetworkPolicy" {
		return policy
	}
	o, _, err := scheme.Codecs.UniversalDeserializer().Decode(data, nil, nil)
	if err != nil {
		t.Fatalf("%v in\n%s", err, data)
	}
	return o.(apiserver.Object)
}

// liveCluster starts an API server with the objects of a directory, and returns the path of
// a kubeconfig for it. refuse, if not nil, may reject requests.
func liveCluster(t *testing.T, dir string, refuse func(*http.Request) *metav1.Status) (kubeconfig string) {
	t.Helper()
	api := apiserver.New(apiserver.Options{Refuse: refuse})
	api.Install("v1beta1")
	setObjects(t, api, dir)
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	kubeconfig = filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}, {name: shop, context: {cluster: c, user: u, namespace: shop}}],
 clusters: [{name: c, cluster: {server: "%s"}}], users: [{name: u, user: {token: t}}]}`, server.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

// The commands give the same answers for a live cluster as for a directory with the same
// objects.
func TestLiveClusterAnswersLikeADirectory(t *testing.T) {
	dir := matrixDir(t, matrixCluster)
	kubeconfig := liveCluster(t, dir, nil)
	for _, args := range [][]string{
		{"explain", "--from", "web", "--to", "db", "--port", "80"},
		{"explain", "--from", "shop/cart", "--to", "db", "--port", "redis", "-o", "json"},
		{"matrix"}, {"matrix", "-o", "json"}, {"lint", "-o", "json"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) { sameAnswers(t, dir, kubeconfig, args...) })
	}
}

// sameAnswers checks that a command gives the same answer for a directory and for a live
// cluster.
func sameAnswers(t *testing.T, dir, kubeconfig string, args ...string) {
	t.Helper()
	status, want, _ := sluice(t, append(slices.Clone(args), "-f", dir)...)
	args = append(slices.Clone(args), "--kubeconfig", kubeconfig)
	if args[0] != "explain" {
		args = append(args, "-A")
	}
	liveStatus, got, stderr := sluice(t, args...)
	if args[0] == "lint" { // for files, lint also prints their names
		want, got = withoutFiles(want), withoutFiles(got)
	}
	if liveStatus != status || got != want || want == "" {
		t.Errorf("status %d, want %d; %s\n%s\nwant\n%s", liveStatus, status, stderr, got, want)
	}
}

// A live cluster gives the same answers as a directory also with policies of the tiers Admin and
// Baseline, and with Nodes.
func TestLiveClusterHasTiersAndNodes(t *testing.T) {
	const dir = "examples/tiers"
	kubeconfig := liveCluster(t, dir, nil)
	for _, args := range [][]string{
		{"explain", "--from", "shop/web", "--to", "198.51.100.1", "--port", "22"}, {"matrix", "-o", "json"}, {"lint", "-o", "json"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) { sameAnswers(t, dir, kubeconfig, args...) })
	}
	t.Run("nodes refused", func(t *testing.T) {
		kubeconfig := liveCluster(t, dir, forbidding(func(path string) bool { return !strings.HasSuffix(path, "/nodes") }))
		if status, _, stderr := sluice(t, "matrix", "-A", "--kubeconfig", kubeconfig); status != 0 || !strings.Contains(stderr, "not read: Node of the core API (forbidden): rules about nodes match none of them") {
			t.Errorf("status %d, %s", status, stderr)
		}
	})
}

// forbidding returns a function that refuses requests to paths for which allowed is false.
func forbidding(allowed func(path string) bool) func(*http.Request) *metav1.Status {
	return func(r *http.Request) *metav1.Status {
		if allowed(r.URL.Path) {
			return nil
		}
		return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: r.URL.Path + " is forbidden"}
	}
}

func withoutFiles(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		if !strings.Contains(line, `"file":`) && !strings.Contains(line, `"document":`) && !strings.Contains(line, `"line":`) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestLiveClusterErrors(t *testing.T) {
	dir := matrixDir(t, matrixCluster)
	forbidden := liveCluster(t, dir, forbidding(func(path string) bool { return !strings.HasSuffix(path, "/pods") }))
	t.Setenv("KUBECONFIG", filepath.Join(dir, "none"))
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for name, tt := range map[string]struct {
		args    []string
		message string
	}{
		"neither":       {nil, "there is nothing to read: give manifests with -f DIR (--filename; - is the standard input), or a cluster with --kubeconfig FILE or --context NAME; there is no kubeconfig in " + filepath.Join(dir, "none")},
		"no file":       {[]string{"--kubeconfig", filepath.Join(dir, "none")}, "kubeconfig"},
		"no context":    {[]string{"--kubeconfig", forbidden, "--context", "x"}, "use one of: c, shop"},
		"no permission": {[]string{"--kubeconfig", forbidden}, "in the whole cluster (ClusterRole) or in namespace default (Role)"},
		"no namespace":  {[]string{"-f", dir, "-n", "shp"}, "there is no namespace shp: did you mean shop?"},
		"-A and -n":     {[]string{"-f", dir, "-A", "-n", "shop"}, "give one of them"},
		"no such range": {[]string{"-f", dir, "--pod-cidr", "10.0.0.0"}, "--pod-cidr 10.0.0.0: write a CIDR"},
	} {
		t.Run(name, func(t *testing.T) {
			if status, _, stderr := sluice(t, append([]string{"matrix"}, tt.args...)...); status != exitFailed || !strings.Contains(stderr, tt.message) {
				t.Errorf("status %d, %s; want %q", status, stderr, tt.message)
			}
		})
	}
}

// Without -f, commands read the cluster of the current context. The namespace of the context applies to
// names without a namespace, and limits the answer.
func TestCurrentContext(t *testing.T) {
	t.Setenv("KUBECONFIG", liveCluster(t, matrixDir(t, matrixCluster), nil))
	for name, tt := range map[string]struct {
		args           []string
		stdout, stderr string
	}{
		"explain":              {[]string{"explain", "--from", "web", "--to", "db", "--port", "6379"}, "default/web (", ""},
		"a namespace":          {[]string{"explain", "-n", "shop", "--from", "cart", "--to", "default/db", "--port", "6379"}, "shop/cart (", ""},
		"the context's":        {[]string{"explain", "--context", "shop", "--from", "cart", "--to", "default/db", "--port", "6379"}, "shop/cart (", ""},
		"matrix":               {[]string{"matrix"}, "default/db ", "note: context c: the answer is about namespace default: -A for all namespaces"},
		"matrix of a context":  {[]string{"matrix", "--context", "shop"}, "shop/cart ", "note: context shop: the answer is about namespace shop"},
		"matrix of everything": {[]string{"matrix", "-A"}, "shop/cart ", ""},
		"lint":                 {[]string{"lint", "-n", "shop"}, "0 findings in 0 policies, 3 pods, 1 namespace", ""},
		"flows":                {[]string{"explain", "-n", "shop", "--flows", flowsFile(t, `{"from": "cart", "to": "default/db", "port": 6379}`)}, "shop/cart", ""},
	} {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := sluice(t, tt.args...)
			if status != 0 || !strings.Contains(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) || tt.stderr == "" && stderr != "" {
				t.Errorf("status %d, %s%s; want %q, %q", status, stdout, stderr, tt.stdout, tt.stderr)
			}
		})
	}
	if _, stdout, _ := sluice(t, "matrix", "-o", "csv"); strings.Contains(stdout, "shop/cart,shop/") {
		t.Errorf("the matrix of namespace default has flows in shop:\n%s", stdout)
	}
}

func flowsFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "flows.jsonl")
	if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// With files and a cluster, the answer is as if the files were applied to the cluster: an object
// replaces the object of the same name, an object without a namespace goes to the context's, and a
// changed template of a workload replaces its pods.
func TestFilesOnTopOfACluster(t *testing.T) {
	const objects = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {containers: [{name: c}]}}}}
---
{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: web-5, namespace: shop, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: u, controller: true}]}, spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web, pod-template-hash: "5"}}, spec: {containers: [{name: c}]}}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-5-a, namespace: shop, labels: {app: web, pod-template-hash: "5"}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5, uid: u, controller: true}]}, spec: {containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.0.1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, spec: {containers: [{name: c}]}, status: {podIPs: [{ip: 10.0.0.2}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {selector: {app: db}, clusterIP: 10.96.0.9, ports: [{port: 6379}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: shop}, spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
`
	kubeconfig := liveCluster(t, matrixDir(t, objects), nil)
	ask := func(t *testing.T, files string, want string, notes ...string) {
		t.Helper()
		args := []string{"explain", "--kubeconfig", kubeconfig, "--context", "shop", "--from", "deploy/web", "--to", "svc/db", "--port", "6379"}
		if files != "" {
			args = append(args, "-f", matrixDir(t, files))
		}
		status, stdout, stderr := sluice(t, args...)
		if status != 0 || !strings.Contains(stdout, "\n"+want) {
			t.Errorf("status %d, %s%s; want %q", status, stdout, stderr, want)
		}
		for _, note := range notes {
			if !strings.Contains(stderr, note) {
				t.Errorf("%s; want %q", stderr, note)
			}
		}
	}
	ask(t, "", "allow")
	ask(t, `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db}, spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}}`, "deny",
		"context shop: as if the files were applied: 1 object of the cluster replaced, 0 added", "1 object has no namespace and would be created in namespace shop")
	ask(t, `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: db, namespace: default}, spec: {podSelector: {}, policyTypes: [Ingress]}}`, "allow",
		"as if the files were applied: 0 objects of the cluster replaced, 1 added")
	deployment := func(labels string) string {
		return `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web}, spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {` + labels + `}}, spec: {containers: [{name: c}]}}}}`
	}
	ask(t, deployment("app: web"), "allow (rule): shop/web-5-a")
	ask(t, deployment("app: front"), "deny", "1 pod left out, because a rollout of the new template replaces them: Deployment shop/web")
}

// A user with rights in only one namespace gets answers about this namespace. Text and JSON name what
// could not be read, and how this affects the answers.
func TestRightsInOneNamespace(t *testing.T) {
	kubeconfig := liveCluster(t, matrixDir(t, matrixCluster), forbidding(func(path string) bool {
		return strings.Contains(path, "/namespaces/default") || path == "/apis" || strings.HasPrefix(path, "/apis/policy.networking.k8s.io") && !strings.HasSuffix(path, "policies")
	}))
	args := []string{"explain", "--kubeconfig", kubeconfig, "--from", "web", "--to", "db", "--port", "6379"}
	status, stdout, stderr := sluice(t, args...)
	if status != 0 || !strings.HasPrefix(stdout, "allow") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
	for _, want := range []string{
		"sluice: not read: Pod of the core API (forbidden outside of namespace default): the pods there are not known, and their addresses count as addresses outside the cluster\n",
		"sluice: not read: ClusterNetworkPolicy of policy.networking.k8s.io (forbidden): answers lack what these policies deny and allow\n",
		"sluice: not read: Deployment of apps, StatefulSet of apps, DaemonSet of apps, ReplicaSet of apps, Job of batch, CronJob of batch, ReplicationController of the core API (forbidden outside of namespace default): those there without pods",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%s\nlacks %s", stderr, want)
		}
	}
	if _, stdout, _ := sluice(t, append(args, "-o", "json")...); !strings.Contains(stdout, `"reason": "forbidden outside of namespace default",`) {
		t.Errorf("%s lacks the reason", stdout)
	}
	if status, stdout, stderr := sluice(t, "lint", "--fail-on", "error", "--kubeconfig", kubeconfig); status != 0 {
		t.Errorf("lint: status %d, %s%s", status, stdout, stderr)
	}
}

// Where the user may not read a namespace, an error does not claim that the namespace or a name in it
// does not exist, but names the right that is missing.
func TestRightsThatNamesNeed(t *testing.T) {
	dir := matrixDir(t, matrixCluster)
	kubeconfig := liveCluster(t, dir, forbidding(func(path string) bool {
		return strings.Contains(path, "/namespaces/default") || path == "/apis" || path == "/api/v1" || path == "/apis/apps/v1"
	}))
	tests := filepath.Join(dir, "pci_test.yaml")
	if err := os.WriteFile(tests, []byte("tests: [{from: web, to: db.pci.svc, port: 80, expect: deny}]"), 0o644); err != nil {
		t.Fatal(err)
	}
	const pods = "this user may not list pods in namespace pci: allow it by a Role there, or by a ClusterRole"
	for _, tt := range []struct{ command, want string }{
		{"explain --from web --port 80 --to pci/vault", "to: pci/vault could not be looked up: " + pods},
		{"explain --from web --port 80 --to pci/deploy/vault", "to: Deployment pci/vault could not be looked up: this user may not list deployments in namespace pci"},
		{"explain --from web --port 80 --to ns/pci", "to: the pods of namespace pci could not be looked up: " + pods},
		{"explain --from web --port 80 --to pci/app=vault", "to: pci/app=vault could not be looked up: " + pods},
		{"explain --from web --port 80 --to */app=vault", "to: */app=vault could not be looked up: this user may list pods only in default: allow it in all namespaces by a ClusterRole"},
		{"explain --from web --port 80 --to db.pci.svc", "to: Service pci/db could not be looked up: this user may not list services in namespace pci"},
		{"explain --from web --port 80 --to svc/db.pci", "to: Service pci/db could not be looked up: this user may not list services in namespace pci"},
		{"explain --from node/n1 --port 80 --to web", "from: Node n1 could not be looked up: this user may not list nodes: allow it by a ClusterRole"},
		{"explain --from web --port 80 --to dbb", "to: there is no pod or workload default/dbb: did you mean default/db?"},
		{"matrix -n default,pci", "namespace pci could not be read: " + pods},
		{"matrix --from-namespace default --to-namespace pci", "namespace pci could not be read: " + pods},
		{"lint -n default,pci", "namespace pci could not be read: " + pods},
		{"report -n default,pci", "namespace pci could not be read: " + pods},
		{"diff -n default,pci " + dir, "namespace pci could not be read: " + pods},
		{"test " + tests, "to: Service pci/db could not be looked up: this user may not list services in namespace pci"},
	} {
		t.Run(tt.command, func(t *testing.T) {
			status, stdout, stderr := sluice(t, append(strings.Fields(tt.command), "--kubeconfig", kubeconfig)...)
			if status != exitFailed || !strings.Contains(stdout+stderr, tt.want) || strings.Contains(stdout+stderr, "there is no namespace") {
				t.Errorf("status %d, %s%s", status, stdout, stderr)
			}
		})
	}
}

// Shells complete the names of objects in a cluster, except for those that a workload created.
func TestCompletionOfACluster(t *testing.T) {
	const objects = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: shop}, spec: {template: {spec: {containers: [{name: c}]}}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web-5-a, namespace: shop, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-5, uid: u, controller: true}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: tool}}
`
	t.Setenv("KUBECONFIG", liveCluster(t, matrixDir(t, objects), forbidding(func(path string) bool { return !strings.HasSuffix(path, "/statefulsets") })))
	for want, args := range map[string][]string{
		"tool\nworld\nshop/\n":    {"explain", "--from", ""},
		"db\nweb\nworld\nshop/\n": {"explain", "--context", "shop", "--to", ""},
		"shop/db\nshop/web\n":     {"explain", "--to", "shop/"},
		"shop\n":                  {"matrix", "-n", ""},
		"c\nshop\n":               {"lint", "--context", ""},
	} {
		if status, stdout, _ := sluice(t, append([]string{"__complete"}, args...)...); status != 0 || !strings.HasPrefix(stdout, want+":") {
			t.Errorf("%q: status %d, %q; want %q", args, status, stdout, want)
		}
	}
}

// diff compares a cluster with the same cluster after manifests are applied. Given two directories, it
// compares the cluster after each of them is applied.
func TestDiffOfACluster(t *testing.T) {
	kubeconfig := liveCluster(t, "examples/cluster", nil)
	const want = "+ default/web → default/db  all ports but TCP 6379  by default/access-demo1 ingress rule 1 (changed)\n"
	for _, args := range [][]string{
		{"examples/change", "-A"}, {"examples/change"}, {"examples/cluster/access-demo1.yaml", "examples/change", "-A"},
	} {
		status, out, errs := sluice(t, append([]string{"diff", "--kubeconfig", kubeconfig}, args...)...)
		if status != exitFindings || !strings.Contains(out, want) || !strings.Contains(out, "2 pairs opened\n") {
			t.Errorf("%v: status %d: %s%s", args, status, out, errs)
		}
		if n := strings.Count(errs, "as if the files were applied"); n == 0 {
			t.Errorf("%v: no note about the files: %s", args, errs)
		}
	}
	if status, out, errs := sluice(t, "diff", "--kubeconfig", kubeconfig, "examples/cluster", "-A"); status != 0 || !strings.Contains(out, "no change") {
		t.Errorf("the same objects: status %d: %s%s", status, out, errs)
	}
}
