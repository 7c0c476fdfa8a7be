package deploy

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
	sigsyaml "sigs.k8s.io/yaml"
)

// components are the components of kustomize. Each has an overlay in testdata.
var components = []string{"startup-taint", "monitoring", "kernel-cache-off"}

// withTaint returns the base with the startup taint.
func withTaint(t *testing.T) []byte {
	t.Helper()
	return withComponent(t, "startup-taint")
}

// withComponent returns the base with the patches and resources of a component, as kustomize applies
// them.
func withComponent(t *testing.T, name string) []byte {
	t.Helper()
	dir := filepath.Join("kustomize", name)
	var component struct {
		metav1.TypeMeta `json:",inline"`
		Resources       []string `json:"resources"`
		Patches         []struct {
			Target struct{ Group, Version, Kind, Name string }
			Patch  string
		}
	}
	readYAML(t, filepath.Join(dir, "kustomization.yaml"), &component)
	used := make([]bool, len(component.Patches))
	var all []byte
	for reader := yaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(base(t)))); ; {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		var object metav1.PartialObjectMetadata
		if err := sigsyaml.Unmarshal(document, &object); err != nil {
			t.Fatal(err)
		}
		for i, p := range component.Patches {
			if strings.TrimPrefix(p.Target.Group+"/"+p.Target.Version, "/") == object.APIVersion && p.Target.Kind == object.Kind && p.Target.Name == object.Name {
				document, used[i] = apply(t, document, p.Patch), true
			}
		}
		all = append(append(all, "---\n"...), document...)
	}
	if i := slices.Index(used, false); i >= 0 {
		t.Errorf("%s: patch %d matches no object of the base", name, i)
	}
	for _, file := range component.Resources {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, "---\n"...), text...)
	}
	return all
}

// apply applies a JSON patch in YAML to a YAML document.
func apply(t *testing.T, document []byte, text string) []byte {
	t.Helper()
	steps, err := sigsyaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(steps)
	if err != nil {
		t.Fatal(err)
	}
	from, err := sigsyaml.YAMLToJSON(document)
	if err != nil {
		t.Fatal(err)
	}
	to, err := patch.Apply(from)
	if err != nil {
		t.Fatal(err)
	}
	return append(to, '\n')
}

// startupTaint returns the key of the taint that the manifests tell agents to remove, or an empty
// string.
func (o *objects) startupTaint() string {
	for _, a := range o.daemonSet.Spec.Template.Spec.Containers[0].Args {
		if key, ok := strings.CutPrefix(a, "--startup-taint="); ok {
			return key
		}
	}
	return ""
}

// The startup taint is optional. Agents must tolerate the taint that they remove: otherwise no agent
// could start and remove it.
func TestStartupTaintIsTolerated(t *testing.T) {
	for name, tt := range map[string]struct {
		text []byte
		key  string
	}{
		"base":              {base(t), ""},
		"component":         {withTaint(t), "sluice.dev/agent-not-ready"},
		"chart":             {render(t), ""},
		"chart, all values": {render(t, fullValues), "example.com/agent-not-ready"},
	} {
		t.Run(name, func(t *testing.T) {
			o := read(t, tt.text)
			if got := o.startupTaint(); got != tt.key {
				t.Fatalf("the taint is %q, want %q", got, tt.key)
			}
			for _, effect := range []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute} {
				taint := corev1.Taint{Key: tt.key, Value: "any", Effect: effect}
				if tt.key != "" && !slices.ContainsFunc(o.daemonSet.Spec.Template.Spec.Tolerations, func(tol corev1.Toleration) bool {
					return tol.Operator == corev1.TolerationOpExists && (tol.Key == "" || tol.Key == taint.Key) && (tol.Effect == "" || tol.Effect == effect)
				}) {
					t.Errorf("the agent's pod does not tolerate %v", taint)
				}
			}
		})
	}
}

// kustomize renders each component as the tests do, and all of them together.
func TestKustomizeBuildsTheComponents(t *testing.T) {
	for _, name := range components {
		t.Run(name, func(t *testing.T) {
			out, err := tool(t, "kustomize", "build", filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			if a, b := read(t, out), read(t, withComponent(t, name)); yamlOf(t, a) != yamlOf(t, b) {
				t.Errorf("kustomize builds\n%s\nand the test\n%s", yamlOf(t, a), yamlOf(t, b))
			}
		})
	}
}

// The component kernel-cache-off changes one argument of the agent, and keeps everything that the guard
// needs. The chart does the same if the value kernelCache is off.
func TestKernelCacheOffChangesOnlyTheCache(t *testing.T) {
	plain, off := read(t, base(t)), read(t, withComponent(t, "kernel-cache-off"))
	chart, err := renderWith(t, map[string]any{"kernelCache": "off"})
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]*objects{"component": off, "chart": read(t, chart)} {
		if args := o.daemonSet.Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--kernel-cache=off") || slices.Contains(args, "--guard=off") {
			t.Errorf("%s: the arguments are %q", name, args)
		}
		for i, v := range plain.daemonSet.Spec.Template.Spec.Volumes {
			if got := o.daemonSet.Spec.Template.Spec.Volumes; i >= len(got) || got[i].Name != v.Name {
				t.Errorf("%s: the volume %s is missing", name, v.Name)
			}
		}
	}
	args := off.daemonSet.Spec.Template.Spec.Containers[0].Args
	if i := slices.Index(args, "--kernel-cache=off"); i >= 0 {
		args[i] = "--kernel-cache=auto"
	}
	if got, want := yamlOf(t, off), yamlOf(t, plain); got != want {
		t.Errorf("without the argument, the component makes\n%s\nwant the base\n%s", got, want)
	}
}
