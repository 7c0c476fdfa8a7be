package manifests

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sluice/filter"
)

// write creates files in a new directory, and returns the directory. The keys of files are
// relative paths.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		put(t, filepath.Join(dir, name), text)
	}
	return dir
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, files map[string]string) (Objects, []Problem) {
	t.Helper()
	objects, problems, err := newReader(Input{Paths: []string{write(t, files)}}).read() // no error if there is nothing to read
	if err != nil {
		t.Fatal(err)
	}
	return objects, problems
}

// names returns the sorted names of the objects.
func names(o Objects) string {
	var all []string
	for name := range o.Origins {
		all = append(all, name)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

const (
	web = `
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  containers: [{name: c, image: i, ports: [{containerPort: 80, name: http}]}]
status: {podIPs: [{ip: 10.0.0.1}]}
`
	shop = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {team: a}}
`
	closed = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec: {podSelector: {}}
`
)

// Read finds the objects in all documents of all manifests of a directory.
func TestReadFindsManifests(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		want  string
	}{
		"documents of one file": {map[string]string{"all.yaml": web + "---" + shop + "---\n# nothing\n---" + closed}, "Namespace shop, NetworkPolicy default/closed, Pod default/web"},
		"document end marker":   {map[string]string{"all.yaml": "%YAML 1.1\n---" + web + "...\n---" + shop}, "Namespace shop, Pod default/web"},
		"text on marker line":   {map[string]string{"a.yaml": "--- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n"}, "Namespace a"},
		"windows line ends":     {map[string]string{"a.yml": "\ufeff" + strings.ReplaceAll(web+"---"+shop, "\n", "\r\n")}, "Namespace shop, Pod default/web"},
		"json stream":           {map[string]string{"a.json": `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}} {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}`}, "Namespace a, Namespace b"},
		"yaml in braces":        {map[string]string{"a.yaml": `{apiVersion: v1, kind: Namespace, metadata: {name: a}}`}, "Namespace a"},
		"list":                  {map[string]string{"a.yaml": "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n"}, "Namespace a, Service default/a"},
		"typed list":            {map[string]string{"a.yaml": "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems:\n- {metadata: {name: a}, spec: {podSelector: {}}}\n"}, "NetworkPolicy default/a"},
		"empty list":            {map[string]string{"a.yaml": "apiVersion: v1\nkind: List\nitems: []\n"}, ""},
		"subdirectories":        {map[string]string{"a/b/web.yaml": web, "shop.yml": shop}, "Namespace shop, Pod default/web"},
		"hidden and other files": {map[string]string{
			".web.yaml": web, "..data/web.yaml": web, "web.yaml~": web, "README.md": "# hello", "shop.yaml": shop,
		}, "Namespace shop"},
		"other kinds": {map[string]string{
			"a.yaml":      "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {unheardOf: 1}\n",
			"b.yaml":      "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: a}\n",
			"c.yaml":      "apiVersion: crd.projectcalico.org/v1\nkind: NetworkPolicy\nmetadata: {name: a}\n",
			"values.yaml": "replicas: 3\n",
			"text.yaml":   "- 1\n- 2\n",
			"web.yaml":    web,
		}, "Deployment default/a, Ingress default/a, Pod default/web"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, tt.files)
			if name != "other kinds" {
				for _, p := range problems {
					t.Error(p)
				}
			}
			if got := names(objects); got != tt.want {
				t.Errorf("read %q, want %q", got, tt.want)
			}
		})
	}
}

// A single file may have any name.
func TestReadOneFile(t *testing.T) {
	dir := write(t, map[string]string{"manifest.txt": web, "shop.yaml": shop})
	objects, _, err := Read(filepath.Join(dir, "manifest.txt"))
	if err != nil || names(objects) != "Pod default/web" {
		t.Errorf("read %q, %v", names(objects), err)
	}
	if _, _, err := Read(filepath.Join(dir, "none")); err == nil {
		t.Error("no error for a directory that does not exist")
	}
}

// Read follows symbolic links, even if they form a cycle, and reports broken ones.
func TestReadFollowsLinks(t *testing.T) {
	dir := write(t, map[string]string{"..1/web.yaml": web, "sub/shop.yaml": shop})
	for link, to := range map[string]string{"..data": "..1", "web.yaml": "..data/web.yaml", "sub/up": "..", "gone.yaml": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	objects, problems, err := Read(dir)
	if err != nil || names(objects) != "Namespace shop, Pod default/web" {
		t.Errorf("read %q, %v", names(objects), err)
	}
	if len(problems) != 1 || filepath.Base(problems[0].File) != "gone.yaml" {
		t.Errorf("problems %v, want one about the broken link", problems)
	}
}

// Read sets the fields for which the API server has defaults.
func TestReadDefaults(t *testing.T) {
	objects, problems := read(t, map[string]string{"a.yaml": web + "---" + shop + "---" + closed + `---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: both, namespace: shop}
spec:
  podSelector: {}
  ingress: []
  egress: [{ports: [{port: 53}]}]
`})
	for _, p := range problems {
		t.Error(p)
	}
	pod := objects.Pods[0]
	if pod.Namespace != "default" || pod.Addrs[0].String() != "10.0.0.1" || pod.Ports[0].Protocol != filter.TCP {
		t.Errorf("pod is %+v", pod)
	}
	if got := objects.Namespaces[0].Labels["kubernetes.io/metadata.name"]; got != "shop" {
		t.Errorf("the namespace's name label is %q", got)
	}
	if got := objects.Policies[0].Isolates; got != [2]bool{filter.Ingress: true} {
		t.Errorf("the policy without rules isolates %v", got)
	}
	both := objects.Policies[1]
	if both.Isolates != [2]bool{true, true} {
		t.Errorf("the policy with an egress rule isolates %v", both.Isolates)
	}
	if p := both.Rules[filter.Egress][0].Ports[0].Protocol; p != filter.TCP {
		t.Error("the protocol is not TCP by default")
	}
	if origin := objects.Origins["NetworkPolicy shop/both"]; origin.Document != 4 || filepath.Base(origin.File) != "a.yaml" {
		t.Errorf("origin %+v", origin)
	}
}

// Each mistake is one problem, with its object, field and a hint.
func TestReadReportsProblems(t *testing.T) {
	policy := func(rest string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n" + rest
	}
	tests := map[string]struct {
		text                 string
		object, field        string
		detail, hint, others string
	}{
		"broken YAML":             {text: web + "---\nkind: {\n---" + shop, detail: "line 9", hint: "correct the YAML", others: "Namespace shop, Pod default/web"},
		"a key twice":             {text: "kind: Pod\nkind: Pod\n", detail: "already set", hint: "YAML"},
		"unknown field":           {text: policy("  podSelector: {}\n  ingress: [{form: []}]\n"), object: "NetworkPolicy default/p", field: "spec.ingress[0].form", detail: "no such field", hint: "write from", others: "NetworkPolicy default/p"},
		"field in the wrong case": {text: policy("  podselector: {}\n"), object: "NetworkPolicy default/p", field: "spec.podselector", hint: "write podSelector", others: "NetworkPolicy default/p"},
		"unlike any field":        {text: policy("  podSelector: {}\n  ingress: [{sources: []}]\n"), field: "spec.ingress[0].sources", hint: "the fields here are", others: "NetworkPolicy default/p"},
		"wrong type":              {text: policy("  podSelector: {matchLabels: {a: 1}}\n"), object: "NetworkPolicy default/p", field: `spec.podSelector.matchLabels["a"]`, detail: "it is a number", hint: "write a string, in quotes", others: "NetworkPolicy default/p"},
		"object for list":         {text: policy("  podSelector: {}\n  ingress: {from: []}\n"), field: "spec.ingress", detail: "it is an object", hint: "a list", others: "NetworkPolicy default/p"},
		"no name":                 {text: "apiVersion: v1\nkind: Pod\nmetadata: {}\n", object: "Pod without a name", field: "metadata.name", detail: "missing", hint: "name"},
		"no name in a namespace":  {text: strings.Replace(closed, "{name: closed}", "{namespace: shop}", 1), object: "NetworkPolicy without a name in namespace shop", field: "metadata.name", detail: "missing", hint: "name"},
		"object for text":         {text: policy("  podSelector: {matchLabels: {a: {b: c}}}\n"), field: `spec.podSelector.matchLabels["a"]`, detail: "it is an object", hint: "write a string", others: "NetworkPolicy default/p"},
		"bad name":                {text: "apiVersion: v1\nkind: Namespace\nmetadata: {name: A_b}\n", object: "Namespace A_b", field: "metadata.name", detail: "A_b", hint: "alphanumeric", others: "Namespace A_b"},
		"bad namespace":           {text: "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: a.b}\n", field: "metadata.namespace", hint: "dots", others: "Pod a.b/a"},
		"name of wrong type":      {text: "apiVersion: v1\nkind: Pod\nmetadata: {name: 7}\n", field: "metadata.name", hint: "in quotes"},
		"bad label":               {text: "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {k: 'b c'}}\n", object: "Pod default/a", field: "metadata.labels", detail: "b c", others: "Pod default/a"},
		"wrong version":           {text: strings.Replace(closed, "networking.k8s.io/v1", "networking.k8s.io/v2", 1), object: "NetworkPolicy default/closed", field: "apiVersion", hint: "networking.k8s.io/v1", others: "NetworkPolicy default/closed"},
		"core version":            {text: strings.Replace(closed, "networking.k8s.io/v1", "v1", 1), field: "apiVersion", hint: "networking.k8s.io/v1", others: "NetworkPolicy default/closed"},
		"kind in wrong case":      {text: strings.Replace(closed, "NetworkPolicy", "Networkpolicy", 1), field: "kind", hint: "write NetworkPolicy", others: "NetworkPolicy default/closed"},
		"misspelled kind":         {text: strings.Replace(closed, "NetworkPolicy", "NetworkPolcy", 1), field: "kind", hint: "NetworkPolicy"},
		"no kind":                 {text: "metadata: {name: a}\n", field: "kind", detail: "missing", hint: "kind"},
		"bad pod address":         {text: "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIPs: [{ip: 10.0.0.01}]}\n", field: "status.podIPs[0].ip", detail: "10.0.0.01", hint: "leading zeros", others: "Pod default/a"},
		"bad container port":      {text: strings.Replace(web, "80", "80000", 1), field: "spec.containers[0].ports[0].containerPort", hint: "65535", others: "Pod default/web"},
		"in a list":               {text: "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {podSelectors: {}}}\n", object: "NetworkPolicy default/a", field: "items[0].spec.podSelectors", hint: "write podSelector", others: "NetworkPolicy default/a"},
		"not an object":           {text: "apiVersion: v1\nkind: List\nitems: [7]\n", field: "items[0]", hint: "apiVersion"},
		"twice":                   {text: closed + "---" + closed, object: "NetworkPolicy default/closed", field: "metadata.name", detail: "document 1", hint: "delete", others: "NetworkPolicy default/closed"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": tt.text})
			if len(problems) != 1 {
				t.Fatalf("problems: %v, want one", problems)
			}
			p := problems[0]
			if tt.object != "" && p.Object != tt.object {
				t.Errorf("object %q, want %q", p.Object, tt.object)
			}
			if p.Field != tt.field {
				t.Errorf("field %q, want %q", p.Field, tt.field)
			}
			if !strings.Contains(p.Detail, tt.detail) || !strings.Contains(p.Hint, tt.hint) {
				t.Errorf("problem %q, want one with %q and %q", p, tt.detail, tt.hint)
			}
			if p.Document == 0 || p.Detail == "" || p.Hint == "" {
				t.Errorf("incomplete: %+v", p)
			}
			if got := names(objects); got != tt.others {
				t.Errorf("read %q, want %q", got, tt.others)
			}
		})
	}
}

// Errors in YAML have line numbers of the file, not of the document.
func TestLineNumbers(t *testing.T) {
	_, problems := read(t, map[string]string{"a.yaml": shop + "---\na: 1\nb: [\n"})
	if len(problems) != 1 || problems[0].Document != 2 || !strings.Contains(problems[0].Detail, "line 8") && !strings.Contains(problems[0].Detail, "line 7") {
		t.Errorf("problems: %v", problems)
	}
}

// If several files contain the same object, Read uses the one in the first file by path, and
// reports the others.
func TestFirstOfTwoFilesCounts(t *testing.T) {
	objects, problems := read(t, map[string]string{
		"b.yaml": strings.Replace(web, "10.0.0.1", "10.0.0.2", 1), "a.yaml": web, "c/a.yaml": web,
	})
	if len(objects.Pods) != 1 || objects.Pods[0].Addrs[0].String() != "10.0.0.1" {
		t.Errorf("pods: %v", objects.Pods)
	}
	if len(problems) != 2 || filepath.Base(problems[0].File) != "b.yaml" || !strings.Contains(problems[0].Detail, "a.yaml") {
		t.Errorf("problems: %v", problems)
	}
}

// If a part of a policy is unreadable, all of its rules in this test allow nothing: the part may
// have been meant to restrict them.
func TestBrokenPolicyAllowsNothing(t *testing.T) {
	const head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n"
	ingress, both := [2]bool{filter.Ingress: true}, [2]bool{true, true}
	tests := map[string]struct {
		spec     string
		selector int // expected number of requirements in the policy's pod selector
		isolates [2]bool
	}{
		"in a rule":         {"  podSelector: {matchLabels: {a: b}}\n  ingress: [{form: []}]\n", 1, ingress},
		"in an exception":   {"  podSelector: {matchLabels: {a: b}}\n  ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, excepts: []}}]}]\n", 1, ingress},
		"in the selector":   {"  podSelector: {matchLabels: {a: b, c: 1}}\n", 0, both},
		"in the directions": {"  podSelector: {matchLabels: {a: b}}\n  policyType: [Egress]\n", 1, both},
		"in an egress rule": {"  podSelector: {matchLabels: {a: b}}\n  egress: [{too: []}]\n", 1, both},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": head + tt.spec})
			if len(problems) != 1 || len(objects.Policies) != 1 {
				t.Fatalf("problems %v, policies %v", problems, objects.Policies)
			}
			p := objects.Policies[0]
			for _, r := range slices.Concat(p.Rules[:]...) {
				if len(r.Peers) != 1 || r.Peers[0].Malformed == "" {
					t.Errorf("a rule may allow something: %+v", r)
				}
			}
			if labels, _ := p.Subject.Pods.Requirements(); len(labels) != tt.selector || p.Isolates != tt.isolates {
				t.Errorf("selects %v, isolates %v; want %d labels, isolates %v", labels, p.Isolates, tt.selector, tt.isolates)
			}
		})
	}
}

// Several directories are read as one. A file that is given twice is read once.
func TestReadSeveral(t *testing.T) {
	pod := func(name, label string) string {
		return "{apiVersion: v1, kind: Pod, metadata: {name: " + name + ", labels: {in: " + label + "}}}"
	}
	a := write(t, map[string]string{"one.yaml": pod("one", "a"), "two.yaml": pod("two", "a")})
	b := write(t, map[string]string{"two.yaml": pod("two", "b"), "six.yaml": pod("six", "b")})
	objects, problems, err := Read(b, filepath.Join(a, "one.yaml"), a)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range objects.Pods {
		got = append(got, p.Name+" "+p.Labels["in"])
	}
	if want := []string{"six b", "two b", "one a"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if len(problems) != 1 || problems[0].File != filepath.Join(a, "two.yaml") || !strings.Contains(problems[0].Detail, "the same object") {
		t.Errorf("%v", problems)
	}
}
