package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// size is the size of a generated cluster: the number of namespaces, of workloads per namespace, and of
// pods per workload.
type size struct{ namespaces, workloads, replicas int }

// manifests returns the cluster as YAML. All pods are isolated. The port that a workload declares is
// open to a third of the workloads in its namespace, and to the pods "mail" of the first namespace.
// Each workload has a policy of its own, so that few cells have equal reasons.
func (s size) manifests() string {
	var b strings.Builder
	for n := range s.namespaces {
		ns := fmt.Sprintf("team-%02d", n)
		fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s}}\n", ns)
		fmt.Fprintf(&b, "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: default-deny, namespace: %s}, spec: {podSelector: {}, policyTypes: [Ingress, Egress]}}\n", ns)
		for w := range s.workloads {
			app := [...]string{"api", "cart", "db", "mail", "search", "web"}[w%6] + strings.Repeat("x", w/6)
			s.workload(&b, n, w, ns, app)
		}
	}
	return b.String()
}

func (s size) workload(b *strings.Builder, n, w int, ns, app string) {
	port := 8000 + w
	for r := range s.replicas {
		pod := (n*s.workloads+w)*s.replicas + r
		fmt.Fprintf(b, `---
{apiVersion: v1, kind: Pod, metadata: {name: %[1]s-%[2]d, namespace: %[3]s, labels: {app: %[1]s, tier: "%[4]d"}, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: %[1]s, uid: %[3]s-%[1]s, controller: true}]},
  spec: {nodeName: node-%[5]d, containers: [{name: main, image: example.org/%[1]s:1, ports: [{name: http, containerPort: %[6]d}]}]},
  status: {phase: Running, hostIP: 192.0.2.%[5]d, podIPs: [{ip: 10.%[7]d.%[8]d.%[9]d}]}}
`, app, r, ns, w%3, pod%20+1, port, 1+pod/65536, pod/256%256, pod%256)
	}
	fmt.Fprintf(b, `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: %[1]s, namespace: %[2]s}
spec:
  podSelector: {matchLabels: {app: %[1]s}}
  policyTypes: [Ingress, Egress]
  ingress:
  - {from: [{podSelector: {matchLabels: {tier: "%[3]d"}}}], ports: [{port: %[4]d}]}
  - {from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: team-00}}, podSelector: {matchLabels: {app: mail}}}], ports: [{port: %[5]d}]}
  egress:
  - {to: [{podSelector: {}}]}
  - {to: [{namespaceSelector: {}}], ports: [{port: %[5]d}]}
`, app, ns, (w+2)%3, port, 8000+w)
}

// write writes the manifests into a directory.
func (s size) write(dir string) error {
	return os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(s.manifests()), 0o644)
}
