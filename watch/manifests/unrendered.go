package manifests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// chartFile is the file that makes a directory the source of a Helm chart.
const chartFile = "Chart.yaml"

// renderHint returns a hint to render the files first with a program, as in "helm template CHART".
func (h reading) renderHint(program string) string {
	if h.command == "" {
		return "render it first, as in: " + program + " > FILE"
	}
	return "render it first: " + program + " | " + h.command
}

// unrendered returns a problem if the files of a directory must be rendered before they are applied
// to a cluster: they are the source of a Helm chart, or a kustomization changes what they say.
// Otherwise it returns nil.
func unrendered(dir, command string) *Problem {
	detail, program := "", ""
	if info, err := os.Stat(filepath.Join(dir, chartFile)); err == nil && info.Mode().IsRegular() {
		detail, program = "it is the source of a Helm chart, which is not read", "helm template "+dir
	} else if changes := kustomized(dir); changes != "" {
		detail, program = "it has a kustomization that changes what its files say ("+changes+"); it is not read", "kustomize build "+dir
	}
	if detail == "" {
		return nil
	}
	return &Problem{File: dir, Detail: detail, Hint: reading{command: command}.renderHint(program), unrendered: true}
}

// kustomizationFiles are the names under which kustomize finds a kustomization.
var kustomizationFiles = []string{"kustomization.yaml", "kustomization.yml", "Kustomization"}

// kustomized names the fields by which the kustomization of a directory changes what its files say,
// as in "namespace, patches". It returns "" if there is no kustomization, or if it changes nothing on
// which answers depend, such as one that only lists files.
func kustomized(dir string) string {
	for _, name := range kustomizationFiles {
		if fields := kustomizationIn(filepath.Join(dir, name)); fields != nil {
			return strings.Join(changesOf(fields), ", ")
		}
	}
	return ""
}

// kustomizationIn returns the fields of a kustomization. It returns nil if the file is none: if there is
// no such file, or it has an object of another kind, such as Flux's. Reading the file as a manifest
// reports its errors.
func kustomizationIn(path string) (fields map[string]any) {
	data, err := os.ReadFile(path)
	if err != nil || yaml.Unmarshal(data, &fields) != nil {
		return nil
	}
	if version, _ := fields["apiVersion"].(string); version != "" && !strings.HasPrefix(version, "kustomize.config.k8s.io/") {
		return nil
	}
	return fields
}

// changesOf lists the fields of a kustomization that add objects from elsewhere, or that may change a
// part of an object on which policies depend.
func changesOf(kustomization map[string]any) (changes []string) {
	harmless := []string{
		"apiVersion", "kind", "metadata", "images", "replicas", "commonAnnotations", "configMapGenerator", "secretGenerator",
		"generatorOptions", "sortOptions", "buildMetadata", "crds", "openapi", "configurations",
	}
	for field, value := range kustomization {
		switch {
		case value == nil, slices.Contains(harmless, field):
		case field == "resources" || field == "bases":
			list, _ := value.([]any)
			for _, entry := range list {
				if path := fmt.Sprint(entry); !filepath.IsLocal(path) || strings.Contains(path, "://") || strings.HasPrefix(path, "github.com/") {
					changes = append(changes, "it uses "+path)
				}
			}
		default:
			changes = append(changes, field)
		}
	}
	if kustomization["kind"] == "Component" && len(changes) == 0 {
		changes = []string{"it is a Component of others"}
	}
	slices.Sort(changes)
	return changes
}
