package manifests

import (
	"path/filepath"
	"strings"
	"testing"
)

const (
	chart    = "apiVersion: v2\nname: web\nversion: 1.0.0\n"
	template = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {{ .Values.name }}\n{{- if .Values.x }}\n  labels: {}\n{{- end }}\n"
	listing1 = "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [web.yaml, sub]\nimages: [{name: a, newTag: b}]\n"
	overlay  = "resources: [../base]\nnamespace: prod\npatches: [{path: patch.yaml}]\n"
)

// If the input has no objects on which decisions depend, Read returns an error that names the path and
// the remedy.
func TestReadNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		files map[string]string
		want  string // part of the error
	}{
		"no files":       {map[string]string{"README.md": "# hello"}, "DIR has no objects: give a directory with files *.yaml, *.yml or *.json"},
		"comments":       {map[string]string{"a.yaml": "# nothing\n"}, "DIR has no objects"},
		"no kind":        {map[string]string{"values.yaml": "replicas: 3\n"}, "DIR has no objects"},
		"an empty list":  {map[string]string{"a.yaml": "{apiVersion: v1, kind: List, items: []}"}, "DIR has only an empty list"},
		"other kinds":    {map[string]string{"a.yaml": "{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}"}, "DIR has no Pods, workloads, Namespaces or policies, only 1 object of another kind: add"},
		"others' policy": {map[string]string{"a.yaml": "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicyList, items: [{metadata: {name: a}}, {metadata: {name: b}}]}"}, "only 2 objects of other kinds (2 CiliumNetworkPolicy of cilium.io, which are not read)"},
		"a chart":        {map[string]string{"Chart.yaml": chart, "values.yaml": "a: 1\n", "templates/a.yaml": template}, "DIR: it is the source of a Helm chart, which is not read: render it first: helm template DIR | sluice lint -f -"},
		"a kustomization": {map[string]string{"kustomization.yaml": overlay, "patch.yaml": web},
			"DIR: it has a kustomization that changes what its files say (it uses ../base, namespace, patches); it is not read: render it first: kustomize build DIR | sluice lint -f -"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := write(t, tt.files)
			_, _, err := Input{Paths: []string{dir}, Command: "sluice lint"}.Read()
			if want := strings.ReplaceAll(tt.want, "DIR", dir); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v; want %q", err, want)
			}
		})
	}
}

// If a part of the input must be rendered first, Read reports a problem, because an answer from the
// other objects is not reliable. A kustomization that only lists files is not a problem.
func TestReadUnrendered(t *testing.T) {
	const chartProblem, changed = "it is the source of a Helm chart", "it has a kustomization"
	for name, tt := range map[string]struct {
		files map[string]string
		names string
		want  string // part of the only problem; empty if there is none
	}{
		"a chart":               {map[string]string{"chart/Chart.yaml": chart, "chart/templates/a.yaml": template, "web.yaml": web}, "Pod default/web", chartProblem},
		"a chart without parts": {map[string]string{"chart/Chart.yaml": chart, "web.yaml": web}, "Pod default/web", chartProblem},
		"a list of files":       {map[string]string{"kustomization.yaml": listing1, "web.yaml": web, "sub/shop.yaml": shop}, "Namespace shop, Pod default/web", ""},
		"base and overlay":      {map[string]string{"base/kustomization.yaml": listing1, "base/web.yaml": web, "prod/kustomization.yml": overlay, "prod/patch.yaml": closed}, "Pod default/web", changed},
		"labels":                {map[string]string{"a/Kustomization": "labels: [{pairs: {a: b}}]\nresources: [shop.yaml]\n", "a/shop.yaml": shop, "web.yaml": web}, "Pod default/web", changed + " that changes what its files say (labels)"},
		"a component":           {map[string]string{"a/kustomization.yaml": "apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\n", "web.yaml": web}, "Pod default/web", changed},
		"another Kustomization": {map[string]string{"kustomization.yaml": "{apiVersion: kustomize.toolkit.fluxcd.io/v1, kind: Kustomization, metadata: {name: a}, spec: {path: ./x}}", "web.yaml": web}, "Pod default/web", ""},
		"a template":            {map[string]string{"a.yaml": template + "---\n" + template, "web.yaml": web}, "Pod default/web", "this is a template: render it first: helm template CHART | sluice -f -"},
	} {
		t.Run(name, func(t *testing.T) {
			objects, problems, err := Read(write(t, tt.files))
			if err != nil || names(objects) != tt.names {
				t.Errorf("read %q, want %q; %v", names(objects), tt.names, err)
			}
			switch {
			case tt.want == "" && len(problems) == 0:
			case len(problems) != 1 || tt.want == "" || !strings.Contains(problems[0].Error(), tt.want):
				t.Errorf("problems %q, want one with %q", problems, tt.want)
			}
		})
	}
}

func TestReadStdin(t *testing.T) {
	file := filepath.Join(write(t, map[string]string{"shop.yaml": shop}), "shop.yaml")
	for name, tt := range map[string]struct {
		paths []string
		text  string
		want  string // names, or part of the error
	}{
		"alone":         {[]string{"-"}, web, "Pod default/web"},
		"with a file":   {[]string{file, "-", file}, web, "Namespace shop, Pod default/web"},
		"twice":         {[]string{"-", "-"}, web, "the standard input is given twice"},
		"empty":         {[]string{file, "-"}, " \n", "the standard input is empty"},
		"no objects":    {[]string{"-"}, "# none", "the standard input has no objects"},
		"one empty":     {[]string{"-", file}, "# none", "the standard input has no objects"},
		"an empty list": {[]string{"-", file}, "{apiVersion: v1, kind: List, items: []}", "Namespace shop"},
		"a URL":         {[]string{"https://example.org/a.yaml"}, "", "it is"},
	} {
		t.Run(name, func(t *testing.T) {
			objects, problems, err := Input{Paths: tt.paths, Stdin: strings.NewReader(tt.text)}.Read()
			switch {
			case err != nil && (name == "a URL" && strings.Contains(err.Error(), "curl -fsSL https://example.org/a.yaml | sluice -f -") || strings.Contains(err.Error(), tt.want)):
			case err != nil || len(problems) > 0 || names(objects) != tt.want:
				t.Errorf("read %q, %v, %v; want %q", names(objects), problems, err, tt.want)
			}
		})
	}
	if _, problems, err := (Input{Paths: []string{"-"}, Stdin: strings.NewReader(web + "---\nkind: [\n")}).Read(); err != nil || len(problems) != 1 || !strings.HasPrefix(problems[0].Error(), "standard input, document 2: ") {
		t.Errorf("problems %v, %v", problems, err)
	}
}

// Objects that state no namespace are in Input.Namespace, as with kubectl apply -n, and a note counts
// them.
func TestReadInNamespace(t *testing.T) {
	dir := write(t, map[string]string{"a.yaml": web + "---\n" + shop + "---\n" + closed + "---\n{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: other}}"})
	objects, problems, err := Input{Paths: []string{dir}, Namespace: "pci"}.Read()
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	if got := names(objects); got != "Namespace shop, NetworkPolicy pci/closed, Pod other/b, Pod pci/web" {
		t.Errorf("read %q", got)
	}
	if len(objects.Notes) != 1 || objects.Notes[0].Detail != "2 objects have no namespace and would be created in namespace pci" {
		t.Errorf("notes %v", objects.Notes)
	}
	// Without Input.Namespace, they are in default. A note counts them if the scope lacks default.
	for scope, want := range map[string]int{"": 0, "other": 1, "default": 0} {
		in := Input{Paths: []string{dir}}
		if scope != "" {
			in.Scope = []string{scope}
		}
		objects, _, err := in.Read()
		if err != nil || len(objects.Notes) != want {
			t.Errorf("about %q: notes %v, %v", scope, objects.Notes, err)
		}
		if want > 0 && !strings.Contains(objects.Notes[0].Error(), "a.yaml: 2 objects have no namespace and would be created in namespace default, which the answer is not about") {
			t.Errorf("about %q: %v", scope, objects.Notes)
		}
	}
}

// The problem about a label whose value is a number names the label.
func TestNumberInLabels(t *testing.T) {
	_, problems := read(t, map[string]string{"a.yaml": "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a, labels: {app: web, pod-template-hash: 5123}}}\n"})
	if len(problems) != 1 || !strings.Contains(problems[0].Error(), "items[0].metadata.labels[\"pod-template-hash\"]: it is a number: write a string, in quotes") {
		t.Errorf("problems %v", problems)
	}
}

// Restricting is true only for kinds of other projects that may change what is allowed.
func TestRestricting(t *testing.T) {
	for kind, want := range map[Kind]bool{
		{"cilium.io", "CiliumNetworkPolicy"}: true, {"cilium.io", "CiliumClusterwideNetworkPolicy"}: true, {"cilium.io", "CiliumIdentity"}: false,
		{"crd.projectcalico.org", "GlobalNetworkPolicy"}: true, {"projectcalico.org", "NetworkPolicy"}: true, {"projectcalico.org", "IPPool"}: false,
		{"crd.antrea.io", "ClusterNetworkPolicy"}: true, {"k8s.cni.cncf.io", "MultiNetworkPolicy"}: true, {"k8s.ovn.org", "EgressFirewall"}: true,
		{"network.openshift.io", "EgressNetworkPolicy"}: true, {"kubeovn.io", "SecurityGroup"}: true, {"vpcresources.k8s.aws", "SecurityGroupPolicy"}: true,
		{"security.istio.io", "AuthorizationPolicy"}: true, {"policy.linkerd.io", "ServerAuthorization"}: true, {"consul.hashicorp.com", "ServiceIntentions"}: true,
		{"kuma.io", "MeshTrafficPermission"}: true, {"policy.networking.k8s.io", "BaselineAdminNetworkPolicy"}: true,
		{"networking.k8s.io", "NetworkPolicy"}: false, {"policy.networking.k8s.io", "ClusterNetworkPolicy"}: false, {"networking.k8s.io", "Ingress"}: false,
		{"policy", "PodDisruptionBudget"}: false,
	} {
		if Restricting(kind) != want {
			t.Errorf("%v: %v", kind, !want)
		}
	}
}
