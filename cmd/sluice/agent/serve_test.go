package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sluice/bench/testbed/authority"
	"sluice/cmd/sluice/agent/hubble"
	"sluice/filter/policy"
	"sluice/filter/policy/netpol"
	"sluice/watch/manifests"
)

// A problem in a policy of a manifest is reported once, with its file.
func TestProblemsAreReportedOnce(t *testing.T) {
	const head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: default, name: bad}\nspec: "
	for name, spec := range map[string]string{
		"a value":             `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.01/8}}]}]}`,
		"an unreadable rule":  `{podSelector: {}, ingress: [{fromm: []}]}`,
		"several in one spec": `{podSelector: {}, ingress: [{ports: [{port: 99999}]}], egress: [{ports: [{port: 0}]}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "a.yaml"), []byte(head+spec), 0o600); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			w := policy.NewStore()
			var reported []manifests.Problem
			source := manifests.Source{Dirs: []string{dir}, OnProblems: func(p []manifests.Problem) { reported = p }}
			if err := source.Run(ctx, func(apply func(*policy.Store)) { apply(w); stop() }); err != nil {
				t.Fatal(err)
			}
			found := w.Problems()
			if len(reported) == 0 || len(found) == 0 {
				t.Fatalf("problems of the manifests: %v; of the policies: %v; want both", reported, found)
			}
			for _, p := range reported {
				if p.InForce == "" {
					t.Errorf("%v: what is in force is missing", p)
				}
			}
			kept := slices.Clone(found)
			if again := beyondManifests(found, reported); len(again) > 0 {
				t.Errorf("%v is reported again, in addition to %v", again, reported)
			}
			if !slices.Equal(found, kept) {
				t.Errorf("beyondManifests changed its argument: %v", found)
			}
			if all := beyondManifests(found, nil); len(all) != len(found) {
				t.Errorf("without problems of manifests: %v, want %v", all, found)
			}
			large := policy.Problem{Policy: netpol.Ref("default", "bad"), Field: "spec", Detail: "too much", TooLarge: true}
			if other := beyondManifests([]policy.Problem{large}, reported); len(other) != 1 {
				t.Error("a problem that is not in the manifests is missing")
			}
		})
	}
}

// While the certificates of Hubble's API cannot be read, the service has a problem that names the file and
// the flags.
func TestHubbleCertificateIsAProblem(t *testing.T) {
	f := newFixture(t)
	a := authority.New(t)
	f.opts.Hubble = hubble.Listen{Address: ":4244", TLS: hubble.TLSFiles{Cert: a.Path("s.crt"), Key: a.Path("s.key"), ClientCA: a.Path("ca.crt")}}
	all := f.hubbleServices()
	if len(all) != 1 {
		t.Fatalf("%d services, want one", len(all))
	}
	found := all[0].Problems()
	if len(found) != 1 {
		t.Fatalf("problems %v, want one", found)
	}
	for _, part := range []string{"hubble :4244: ", "s.crt: no such file or directory; all clients are refused", "--hubble-tls-cert", "hubble.tlsSecret"} {
		if !strings.Contains(found[0].String(), part) {
			t.Errorf("%q lacks %q", found[0], part)
		}
	}
	a.Server("s", "n1")
	if found := all[0].Problems(); len(found) > 0 {
		t.Errorf("with the files: %v", found)
	}
	f.opts.Hubble = hubble.Listen{Address: "127.0.0.1:0", DisableTLS: true}
	if found := f.hubbleServices()[0].Problems(); len(found) > 0 {
		t.Errorf("without TLS: %v", found)
	}
}

// The status names the namespace of a wrong annotation, and what a broken manifest leaves in
// force, in the text and in JSON.
func TestProblemsInTheStatus(t *testing.T) {
	_, wrong := policy.NamespaceDenial("shop", map[string]string{policy.DenyWithAnnotation: "refuse"})
	if p := problemOf(*wrong); !strings.HasPrefix(p.String(), `namespace shop, metadata.annotations["sluice/deny-with"]: "refuse" is not`) {
		t.Errorf("the problem of a namespace: %s", p)
	}
	p := manifestProblem(manifests.Problem{File: "a.yaml", Detail: "d", Effect: "e", Hint: "h", InForce: "the last good state of the file"})
	if want := "manifest a.yaml: d; e: h (in force: the last good state of the file)"; p.String() != want {
		t.Errorf("%s, want %s", p, want)
	}
	if text, err := json.Marshal(p); err != nil || !strings.Contains(string(text), `"inForce":"the last good state of the file"`) {
		t.Errorf("%s, %v", text, err)
	}
}
