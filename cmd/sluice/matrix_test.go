package main

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/matrix"
	"sluice/watch/manifests"
)

// matrixCluster has the cases that are easy to get wrong in a matrix: ranges of ports,
// different ports for each protocol, a rule without ports, an ipBlock for only one family, a
// named port, a pod with one family, and a pod without an address of its own.
const matrixCluster = `
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {project: myproject}}}
---
apiVersion: v1
kind: Pod
metadata: {name: db, labels: {role: db}}
spec: {containers: [{name: c, ports: [{name: redis, containerPort: 6379}, {containerPort: 8050}, {containerPort: 53, protocol: UDP}]}]}
status: {podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, labels: {role: frontend}}, status: {podIPs: [{ip: 10.0.0.2}, {ip: "fd00::2"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: cart, namespace: shop}, status: {podIPs: [{ip: 10.0.0.3}, {ip: "fd00::3"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: old, namespace: shop}, status: {podIPs: [{ip: "fd00::4"}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: agent, namespace: shop}, spec: {hostNetwork: true}, status: {podIPs: [{ip: 192.0.2.1}]}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db}
spec:
  podSelector: {matchLabels: {role: db}}
  ingress:
  - {from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{port: redis}, {port: 8000, endPort: 8100}, {protocol: UDP, port: 60000, endPort: 65535}]}
  - {from: [{namespaceSelector: {matchLabels: {project: myproject}}}], ports: [{protocol: SCTP}]}
  - {from: [{ipBlock: {cidr: 10.0.0.3/32}}], ports: [{port: 6379}, {port: 7000, endPort: 7001}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web}
spec:
  podSelector: {matchLabels: {role: frontend}}
  policyTypes: [Ingress, Egress]
  ingress: [{from: [{podSelector: {}}]}]
  egress: [{ports: [{port: 1, endPort: 8049}, {protocol: UDP}]}]
`

// matrixTiers adds ordered rules: ranges of ports in both tiers, a rule that passes a part of
// another one's range, and a default for pods that no NetworkPolicy isolates.
const matrixTiers = `---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: platform}
spec:
  tier: Admin
  priority: 1
  subject: {namespaces: {}}
  ingress:
  - {action: Pass, from: [{namespaces: {matchLabels: {project: myproject}}}], protocols: [{tcp: {destinationPort: {range: {start: 6370, end: 7000}}}}, {destinationNamedPort: redis}]}
  - {action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 7000, end: 8060}}}}]}
  - {action: Accept, from: [{namespaces: {}}], protocols: [{udp: {destinationPort: {number: 60001}}}]}
  egress:
  - {action: Deny, to: [{networks: [10.0.0.1/32]}], protocols: [{tcp: {destinationPort: {range: {start: 8090, end: 8095}}}}]}
---
apiVersion: policy.networking.k8s.io/v1beta1
kind: ClusterNetworkPolicy
metadata: {name: closed}
spec:
  tier: Baseline
  priority: 1
  subject: {namespaces: {}}
  ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 100, end: 200}}}}]}]
`

func matrixDir(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sluice runs a sluice command in the process of the test.
func sluice(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	e := env{stdin: strings.NewReader(""), stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
	status = run(t.Context(), e, args)
	return status, out.String(), errs.String()
}

// For every port of every protocol, the matrix has the same verdict as Decide.
func TestMatrixMatchesDecideAtEveryPort(t *testing.T) {
	for name, text := range map[string]string{"NetworkPolicies": matrixCluster, "tiers": matrixCluster + matrixTiers} {
		t.Run(name, func(t *testing.T) { matchesDecide(t, matrixDir(t, text)) })
	}
}

func matchesDecide(t *testing.T, dir string) {
	objects, _, err := manifests.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	store := policy.NewStore()
	objects.Apply(store)
	snapshot, _ := store.Commit()
	status, stdout, stderr := sluice(t, "matrix", "-f", dir, "-o", "json", "--by", "pod")
	if status != 0 || stderr != "" {
		t.Fatalf("status %d, %s", status, stderr)
	}
	var m matrix.Matrix
	if err := json.Unmarshal([]byte(stdout), &m); err != nil {
		t.Fatal(err)
	}
	addrs := make(map[string][]netip.Addr)
	for _, p := range m.From {
		for _, a := range p.Addresses {
			addrs[p.Name] = append(addrs[p.Name], netip.MustParseAddr(a))
		}
	}
	checked := 0
	for _, c := range m.Flows {
		if addrs[c.From] == nil || addrs[c.To] == nil || c.State == matrix.Self {
			continue
		}
		checked++
		for _, proto := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
			for port := 1; port <= 65535; port++ {
				want := decideAll(snapshot, addrs[c.From], addrs[c.To], proto, uint16(port))
				if got := verdictAt(c, proto, port); got != want {
					t.Fatalf("%s to %s, %s %d: %s, want %s", c.From, c.To, proto, port, got, want)
				}
			}
		}
		if got, want := verdictAt(c, filter.ICMP, 0), decideAll(snapshot, addrs[c.From], addrs[c.To], filter.ICMP, 0); got != want {
			t.Errorf("%s to %s, ICMP: %s, want %s", c.From, c.To, got, want)
		}
	}
	// Five pods, one of them in the host network: each to the four others.
	if checked != 5*4 {
		t.Errorf("%d pairs of pods were checked", checked)
	}
}

// verdictAt returns the verdict about a port.
func verdictAt(c *matrix.Cell, proto filter.Protocol, port int) string {
	for _, a := range c.Answers {
		for _, text := range a.Ports {
			name, ports, some := strings.Cut(text, " ")
			var low, high int
			if n, _ := fmt.Sscanf(ports, "%d-%d", &low, &high); n == 1 {
				high = low
			}
			if name == proto.String() && (!some || low <= port && port <= high) {
				return a.Verdict
			}
		}
	}
	return "missing"
}

// decideAll returns the verdict for all pairs of addresses with the same family. If the
// verdicts differ, it returns mixed; if there are no pairs, it returns deny.
func decideAll(s *policy.Snapshot, from, to []netip.Addr, proto filter.Protocol, port uint16) string {
	var all []string
	for _, src := range from {
		for _, dst := range to {
			if src.Is4() == dst.Is4() {
				all = append(all, s.Decide(filter.NewKey(src, dst, proto, port)).Action.String())
			}
		}
	}
	slices.Sort(all)
	switch all = slices.Compact(all); len(all) {
	case 0:
		return "deny"
	case 1:
		return all[0]
	}
	return "mixed"
}

func TestMatrixText(t *testing.T) {
	_, stdout, _ := sluice(t, "matrix", "-f", matrixDir(t, matrixCluster))
	want := []string{
		"FROM \\ TO    default/db                      default/web  shop/agent  shop/cart   shop/old    world",
		"default/db   self                            all          all         all         all         all",
		"default/web  6379,8000-8049,60000-65535/UDP  self         1-8049,UDP  1-8049,UDP  1-8049,UDP  1-8049,UDP",
		"shop/cart    6379*,7000-7001*,SCTP           -            all         self        all         all",
		"world        -                               -                        all         all",
	}
	for _, line := range want {
		if !strings.Contains(stdout, line+"\n") {
			t.Errorf("there is no line %q in\n%s", line, stdout)
		}
	}
}

// If all ports have the same verdict, the cell shows it once. An asterisk means that only
// one family is allowed.
func TestMatrixOfOneFamily(t *testing.T) {
	dir := matrixDir(t, matrixCluster+`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: cart, namespace: shop}
spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}
`)
	status, stdout, stderr := sluice(t, "matrix", "-f", dir)
	if want := "default/db                     self                            all          all         all*          -         all         all\n"; status != 0 || !strings.Contains(stdout, want) {
		t.Errorf("status %d, there is no line %q in\n%s%s", status, want, stdout, stderr)
	}
}

func TestMatrixOfAskedPorts(t *testing.T) {
	_, stdout, _ := sluice(t, "matrix", "-f", matrixDir(t, matrixCluster), "--port", "6379,8050", "--port", "53/udp", "--namespace", "default")
	for _, line := range []string{
		"default/db   self        6379,8050,53/UDP",
		"default/web  6379        self",
		"shop/cart    6379*       -",
		"world        -           -",
	} {
		if !strings.Contains(stdout, line+"\n") {
			t.Errorf("there is no line %q in\n%s", line, stdout)
		}
	}
}

func TestMatrixNumbersTheColumnsOfWideTables(t *testing.T) {
	var text strings.Builder
	for i := range 30 {
		fmt.Fprintf(&text, "---\n{apiVersion: v1, kind: Pod, metadata: {name: pod-with-a-long-name-%d}, status: {podIPs: [{ip: 10.0.0.%d}]}}\n", i, i+1)
	}
	_, stdout, _ := sluice(t, "matrix", "-f", matrixDir(t, text.String()))
	first, _, _ := strings.Cut(stdout, "\n")
	if len(first) > 250 || !strings.Contains(stdout, "\n30 default/pod-with-a-long-name-9 ") {
		t.Errorf("the header is %q", first)
	}
}

// The page loads nothing from elsewhere, and contains all pods and verdicts.
func TestMatrixPageIsSelfContained(t *testing.T) {
	status, html, stderr := sluice(t, "matrix", "-f", matrixDir(t, matrixCluster), "-o", "html")
	if status != 0 {
		t.Fatal(stderr)
	}
	if found := regexp.MustCompile(`(?i)src\s*=|href\s*=\s*["'][^#]|https?://|@import|url\(|fetch\(`).FindString(html); found != "" {
		t.Errorf("the page refers to something else: %s", found)
	}
	var p struct {
		Parties []any    `json:"parties"`
		Ports   []string `json:"ports"`
		Kinds   []any    `json:"kinds"`
		Rows    [][]int  `json:"rows"`
		RowOf   []int    `json:"rowOf"`
	}
	raw := regexp.MustCompile(`id="data">([^<]*)</script>`).FindStringSubmatch(html)
	if raw == nil {
		t.Fatal("there is no data in the page")
	}
	data, err := gzip.NewReader(base64.NewDecoder(base64.StdEncoding, strings.NewReader(raw[1])))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(data).Decode(&p); err != nil {
		t.Fatal(err)
	}
	if len(p.Parties) != 6 || len(p.RowOf) != 6 || slices.Max(p.RowOf) >= len(p.Rows) || len(p.Kinds) == 0 {
		t.Errorf("%d parties, %d rows of %d, %d kinds", len(p.Parties), len(p.RowOf), len(p.Rows), len(p.Kinds))
	}
	if !strings.Contains(html, ">inputs <code>sha256:") {
		t.Error("the page has no digest of the inputs")
	}
	if want := []string{"UDP 53", "TCP 6379", "TCP 8050"}; !slices.Equal(p.Ports, want) {
		t.Errorf("ports %v, want %v", p.Ports, want)
	}
}

func TestMatrixUsageErrors(t *testing.T) {
	t.Setenv("KUBECONFIG", "none")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	dir := matrixDir(t, matrixCluster)
	tests := map[string]struct {
		args    []string
		status  int
		message string
	}{
		"port":         {[]string{"-f", dir, "--port", "http"}, exitFailed, "1 to 65535"},
		"port 0":       {[]string{"-f", dir, "--port", "0"}, exitFailed, "1 to 65535"},
		"protocol":     {[]string{"-f", dir, "--port", "80/icmp"}, exitFailed, "sctp"},
		"format":       {[]string{"-f", dir, "-o", "yaml"}, exitFailed, "give one of text, json, csv, dot, markdown, md, html"},
		"no directory": {[]string{"-f", filepath.Join(dir, "none")}, exitFailed, "no such file"},
		"no namespace": {[]string{"-f", dir, "--namespace", "none"}, exitFailed, "the namespaces here are default, shop"},
		"no flag":      {nil, exitFailed, "filename"},
		"broken":       {[]string{"-f", matrixDir(t, matrixCluster+"---\na: [\n")}, exitFailed, "correct the YAML"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			status, _, stderr := sluice(t, append([]string{"matrix"}, tt.args...)...)
			if status != tt.status || !strings.Contains(stderr, tt.message) {
				t.Errorf("status %d, %s; want %d with %q", status, stderr, tt.status, tt.message)
			}
		})
	}
}
