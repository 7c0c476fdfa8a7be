//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Tests run against a cluster, and against a cluster as if manifests were applied to it.
func TestTestsOfACluster(t *testing.T) {
	kubeconfig := liveCluster(t, matrixDir(t, matrixCluster), nil)
	dir := t.TempDir()
	file := filepath.Join(dir, "t.yaml")
	closed := filepath.Join(dir, "closed.yaml")
	for path, text := range map[string]string{
		file: "tests:\n- {from: web, to: shop/cart, port: 80, expect: allow}\n",
		closed: "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: closed, namespace: shop}, " +
			"spec: {podSelector: {}, policyTypes: [Ingress]}}\n",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	status, stdout, stderr := sluice(t, "test", "--kubeconfig", kubeconfig, file)
	if status != 0 || stdout != "1 passed, 0 failed\n" || stderr != "" {
		t.Errorf("of the cluster: status %d\n%s%s", status, stdout, stderr)
	}
	status, stdout, stderr = sluice(t, "test", "--kubeconfig", kubeconfig, "-f", closed, file)
	if status != exitFindings || !strings.Contains(stdout, "ingress: shop/cart is isolated by shop/closed; no rule allows it") {
		t.Errorf("with manifests: status %d\n%s%s", status, stdout, stderr)
	}
}
