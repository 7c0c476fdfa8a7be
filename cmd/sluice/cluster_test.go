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
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
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
	liveStatus, got, stderr := sluice(t, append(slices.Clone(args), "--kubeconfig", kubeconfig)...)
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
		forbidden := liveCluster(t, dir, func(r *http.Request) *metav1.Status {
			if !strings.HasSuffix(r.URL.Path, "/nodes") {
				return nil
			}
			return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "nodes is forbidden"}
		})
		if status, _, stderr := sluice(t, "matrix", "--kubeconfig", forbidden); status != exitFailed || !strings.Contains(stderr, "list and watch nodes") {
			t.Errorf("status %d, %s", status, stderr)
		}
	})
}

func withoutFiles(text string) string {
	var kept []string
	for line := range strings.Lines(text) {
		if !strings.Contains(line, `"file":`) && !strings.Contains(line, `"document":`) {
			kept = append(kept, line)
		}
	}
	return strings.Join(kept, "")
}

func TestLiveClusterErrors(t *testing.T) {
	dir := matrixDir(t, matrixCluster)
	forbidden := liveCluster(t, dir, func(r *http.Request) *metav1.Status {
		if !strings.HasSuffix(r.URL.Path, "/pods") {
			return nil
		}
		return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "pods is forbidden"}
	})
	for name, tt := range map[string]struct {
		args    []string
		message string
	}{
		"both":          {[]string{"-f", dir, "--kubeconfig", forbidden}, "give only one source"},
		"neither":       {nil, "--kubeconfig FILE"},
		"no file":       {[]string{"--kubeconfig", filepath.Join(dir, "none")}, "kubeconfig"},
		"no context":    {[]string{"--kubeconfig", forbidden, "--context", "x"}, "use one of: c"},
		"no permission": {[]string{"--kubeconfig", forbidden}, "ClusterRole"},
	} {
		t.Run(name, func(t *testing.T) {
			if status, _, stderr := sluice(t, append([]string{"matrix"}, tt.args...)...); status != exitFailed || !strings.Contains(stderr, tt.message) {
				t.Errorf("status %d, %s; want %q", status, stderr, tt.message)
			}
		})
	}
}
