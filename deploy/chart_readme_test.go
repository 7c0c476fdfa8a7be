package deploy

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// The README of the chart lists every value, with its default and its comment in values.yaml.
func TestChartReadme(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(chartDir, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	out.WriteString("| value | default | meaning |\n|---|---|---|\n")
	describe(t, &out, "", document.Content[0])
	section(t, filepath.Join(chartDir, "README.md"), "values", out.String())
}

// describe writes a row for each value that has a comment. If a map has no comment, describe writes
// rows for the values in it.
func describe(t *testing.T, out *strings.Builder, path string, values *yaml.Node) {
	t.Helper()
	for i := 0; i < len(values.Content); i += 2 {
		key, value := values.Content[i], values.Content[i+1]
		name := path + key.Value
		if key.LineComment != "" || value.LineComment != "" {
			t.Errorf("%s: put the comment above the value", name)
		}
		if key.HeadComment == "" {
			if value.Kind != yaml.MappingNode || len(value.Content) == 0 {
				t.Errorf("values.yaml: %s has no comment", name)
			}
			describe(t, out, name+".", value)
			continue
		}
		var plain any
		if err := value.Decode(&plain); err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(plain)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(out, "| `%s` | `%s` | %s |\n", name, text, strings.ReplaceAll(commentText(key.HeadComment), "|", "\\|"))
	}
}

// commentText returns the text of the last of several comments that empty lines separate. The comments
// before it are about a group of values.
func commentText(comment string) string {
	paragraphs := strings.Split(comment, "\n\n")
	var words []string
	for line := range strings.Lines(paragraphs[len(paragraphs)-1]) {
		words = append(words, strings.Fields(strings.TrimPrefix(line, "#"))...)
	}
	return strings.Join(words, " ")
}
