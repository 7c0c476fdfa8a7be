package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"sigs.k8s.io/yaml"
)

const chartDir = "helm/sluice"

// release has the values that Helm provides as .Release.
var release = map[string]any{"Name": "sluice", "Namespace": "kube-system", "Service": "Helm"}

// fullValues sets every value to something other than its default.
const fullValues = "testdata/full-values.yaml"

// files provides the files of the chart, as Helm's .Files does.
type files struct{}

// Get returns the content of a file.
func (files) Get(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(chartDir, name))
	return string(text), err
}

// render renders the chart's manifests as Helm does: all templates in the order of their names, with
// the values of the given files merged over the defaults.
func render(t *testing.T, valueFiles ...string) []byte {
	t.Helper()
	var over []map[string]any
	for _, path := range valueFiles {
		var values map[string]any
		readYAML(t, path, &values)
		over = append(over, values)
	}
	text, err := renderWith(t, over...)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// renderWith is like render, with values that are given as maps.
func renderWith(t *testing.T, over ...map[string]any) ([]byte, error) {
	t.Helper()
	all, data := templates(t, over...)
	var out bytes.Buffer
	for _, path := range templatePaths(t) {
		if filepath.Ext(path) != ".yaml" {
			continue
		}
		fmt.Fprintf(&out, "---\n")
		if err := all.ExecuteTemplate(&out, path, data); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// templates returns the chart's templates by path, and the data to execute them with.
func templates(t *testing.T, over ...map[string]any) (*template.Template, map[string]any) {
	t.Helper()
	var values map[string]any
	readYAML(t, filepath.Join(chartDir, "values.yaml"), &values)
	for _, o := range over {
		merge(values, o)
	}
	var chart map[string]any
	readYAML(t, filepath.Join(chartDir, "Chart.yaml"), &chart)
	all := template.New("chart").Option("missingkey=error")
	all.Funcs(functions(all))
	for _, path := range templatePaths(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := all.New(path).Parse(string(text)); err != nil {
			t.Fatal(err)
		}
	}
	return all, map[string]any{
		"Values": values, "Release": release, "Files": files{},
		"Chart": map[string]any{"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
	}
}

func templatePaths(t *testing.T) []string {
	t.Helper()
	var paths []string
	for _, pattern := range []string{"*.*", "tests/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(chartDir, "templates", pattern))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	return paths
}

// functions returns those template functions of Helm that the chart uses.
func functions(all *template.Template) template.FuncMap {
	return template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var out strings.Builder
			err := all.ExecuteTemplate(&out, name, data)
			return out.String(), err
		},
		"toYaml": func(v any) (string, error) {
			text, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(text), "\n"), err
		},
		"fromYaml": func(text string) (v map[string]any, err error) { return v, yaml.Unmarshal([]byte(text), &v) },
		"nindent": func(n int, text string) string {
			indent := "\n" + strings.Repeat(" ", n)
			return indent + strings.ReplaceAll(text, "\n", indent)
		},
		"quote": func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
		"default": func(fallback, v any) any {
			if truth, _ := template.IsTrue(v); truth {
				return v
			}
			return fallback
		},
		"join": func(by string, list []any) string {
			var texts []string
			for _, v := range list {
				texts = append(texts, fmt.Sprint(v))
			}
			return strings.Join(texts, by)
		},
		"list":       func(v ...any) []any { return v },
		"dict":       func() map[string]any { return map[string]any{} },
		"has":        func(v any, list []any) bool { return slices.Contains(list, v) },
		"contains":   func(part, text string) bool { return strings.Contains(text, part) },
		"replace":    func(old, now, text string) string { return strings.ReplaceAll(text, old, now) },
		"trunc":      func(n int, text string) string { return text[:min(n, len(text))] },
		"trimAll":    func(cut, text string) string { return strings.Trim(text, cut) },
		"trimSuffix": func(suffix, text string) string { return strings.TrimSuffix(text, suffix) },
		"fail":       func(text string) (string, error) { return "", errors.New(text) },
		"deepCopy":   func(m map[string]any) map[string]any { return overwrite(map[string]any{}, m) },
		"merge": func(into, from map[string]any) map[string]any {
			return overwrite(into, overwrite(overwrite(map[string]any{}, from), into))
		},
		"mergeOverwrite": overwrite,
		"concat":         func(a, b []any) []any { return slices.Concat(a, b) },
		"uniq": func(list []any) (all []any) {
			for _, v := range list {
				if !slices.Contains(all, v) {
					all = append(all, v)
				}
			}
			return all
		},
		"set": func(m map[string]any, key string, v any) map[string]any {
			m[key] = v
			return m
		},
		"regexMatch":      func(pattern, text string) bool { return regexp.MustCompile(pattern).MatchString(text) },
		"regexFind":       func(pattern, text string) string { return regexp.MustCompile(pattern).FindString(text) },
		"regexReplaceAll": func(pattern, text, by string) string { return regexp.MustCompile(pattern).ReplaceAllString(text, by) },
	}
}

// overwrite merges the map over into the map into, and returns into.
func overwrite(into, over map[string]any) map[string]any {
	merge(into, over)
	return into
}

// merge merges the values of its second argument into the map in its first, as Helm does: maps
// are merged, and other values are replaced.
func merge(into, over map[string]any) {
	for key, v := range over {
		nested, isMap := v.(map[string]any)
		if existing, both := into[key].(map[string]any); isMap && both {
			merge(existing, nested)
			continue
		}
		into[key] = v
	}
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// The pod has the node's BPF file system and the capability BPF if the kernel's flow cache or the guard
// is on: both load programs and pin them.
func TestChartGivesAccessToBPF(t *testing.T) {
	for _, tt := range []struct {
		values string
		bpf    bool
	}{
		{`{kernelCache: "off", guard: auto}`, true}, {`{kernelCache: auto, guard: "off"}`, true}, {`{kernelCache: "off", guard: "off"}`, false},
	} {
		file := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(file, []byte(tt.values), 0o600); err != nil {
			t.Fatal(err)
		}
		text := string(render(t, file))
		for _, part := range []string{"--bpffs=/bpf", "- BPF\n", "mountPath: /bpf", "path: /sys/fs/bpf"} {
			if strings.Contains(text, part) != tt.bpf {
				t.Errorf("with %s, the chart has %s: %v", tt.values, part, !tt.bpf)
			}
		}
	}
}

// Every value has a schema, every schema has a value, and testdata/full-values.yaml sets every
// value.
func TestSchemaMatchesValues(t *testing.T) {
	var schema, values, full map[string]any
	text, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	readYAML(t, filepath.Join(chartDir, "values.yaml"), &values)
	readYAML(t, fullValues, &full)
	sameKeys(t, "", schema, values, full)
}

// sameKeys compares the keys of the schema, the default values and the full values below path.
func sameKeys(t *testing.T, path string, schema, values, full map[string]any) {
	t.Helper()
	properties, ok := schema["properties"].(map[string]any)
	if !ok {
		return // the schema allows any keys here
	}
	if schema["additionalProperties"] != false {
		t.Errorf("the schema of %q accepts misspelt values", path)
	}
	for key := range values {
		if properties[key] == nil {
			t.Errorf("%s.%s has no schema", path, key)
		}
	}
	for key, p := range properties {
		if path == "" && key == "global" {
			continue // the key belongs to Helm
		}
		if _, ok := values[key]; !ok {
			t.Errorf("%s.%s has a schema but no value", path, key)
		}
		if _, ok := full[key]; !ok {
			t.Errorf("%s does not set %s.%s", fullValues, path, key)
		}
		nested, _ := values[key].(map[string]any)
		fullNested, _ := full[key].(map[string]any)
		sameKeys(t, path+"."+key, p.(map[string]any), nested, fullNested)
	}
}

// The rendered chart equals the golden files. So a review shows every change of the rendered chart.
func TestChartGolden(t *testing.T) {
	golden(t, "testdata/chart-default.yaml", render(t))
	golden(t, "testdata/chart-full.yaml", withoutDashboard(t, render(t, fullValues)))
}

// withoutDashboard replaces the dashboard in manifests by its name, because it has a thousand lines.
func withoutDashboard(t *testing.T, text []byte) []byte {
	t.Helper()
	content, err := files{}.Get("files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	indented := strings.ReplaceAll(content, "\n", "\n    ")
	if !strings.Contains(string(text), indented) {
		t.Fatal("the dashboard is not in the manifests")
	}
	return []byte(strings.Replace(string(text), indented, "(files/dashboard.json)", 1))
}
