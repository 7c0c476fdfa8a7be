package hubble

import (
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"sluice/filter/flow"
	"sluice/filter/policy"
)

// block returns the first block of a language in README.md that contains a text.
func block(t *testing.T, language, with string) string {
	t.Helper()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, rest := range strings.Split(string(text), "```"+language+"\n")[1:] {
		if code, _, _ := strings.Cut(rest, "```"); strings.Contains(code, with) {
			return code
		}
	}
	t.Fatalf("README.md has no block of %s with %q", language, with)
	return ""
}

// secrets is a kubectl that writes each Secret to a directory with its name.
const secrets = `set -euo pipefail
kubectl() {
  mkdir "$6"
  for arg in "${@:7}"; do arg=${arg#--from-file=}; cp "${arg#*=}" "$6/${arg%%=*}"; done
}
`

// With the certificates that the commands of README.md make, a server answers a client, and knows it.
func TestCertificatesOfReadme(t *testing.T) {
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("needs openssl")
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", secrets+block(t, "sh", "openssl"))
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	agents, relay := filepath.Join(dir, "sluice-hubble"), filepath.Join(dir, "hubble-relay")
	listen := Listen{Address: "127.0.0.1:0", TLS: TLSFiles{Cert: filepath.Join(agents, "tls.crt"), Key: filepath.Join(agents, "tls.key"), ClientCA: filepath.Join(agents, "ca.crt")}}
	_, server := listen.Servers(Options{Log: flow.NewLog(1, nil), Snapshot: new(policy.Published).Snapshot, Logger: slog.New(slog.DiscardHandler)})
	defer server.Close()
	l, err := net.Listen("tcp", listen.Address)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	client := TLSFiles{Cert: filepath.Join(relay, "tls.crt"), Key: filepath.Join(relay, "tls.key")}
	for _, name := range []string{"n1.default.hubble-grpc.cilium.io", "hubble-peer.default.hubble-grpc.cilium.io"} {
		if err := callWith(t, filepath.Join(relay, "ca.crt"), client, l.Addr().String(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := callWith(t, filepath.Join(relay, "ca.crt"), TLSFiles{}, l.Addr().String(), name); err == nil {
			t.Errorf("%s: without a certificate, the client is answered", name)
		}
	}
}

// The manifest of hubble-relay in README.md is valid, and its Service selects its pods.
func TestRelayOfReadme(t *testing.T) {
	first, second, _ := strings.Cut(block(t, "yaml", "Deployment"), "---\n")
	var d appsv1.Deployment
	var s corev1.Service
	for text, into := range map[string]any{first: &d, second: &s} {
		if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	pod := d.Spec.Template
	if pod.Labels["k8s-app"] != d.Spec.Selector.MatchLabels["k8s-app"] || pod.Labels["k8s-app"] != s.Spec.Selector["k8s-app"] {
		t.Errorf("the pods have %v, the Deployment selects %v and the Service %v", pod.Labels, d.Spec.Selector, s.Spec.Selector)
	}
	if got, want := s.Spec.Ports[0].TargetPort.IntVal, pod.Spec.Containers[0].Ports[0].ContainerPort; got != want {
		t.Errorf("the Service leads to port %d, and the pod listens on %d", got, want)
	}
}
