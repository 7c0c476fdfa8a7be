package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// chart packs the chart in a directory, with the release's version and the name of its image.
func (o options) chart(dir string) error {
	version := strings.TrimPrefix(o.version, "v") // Helm's versions have no v
	var files []file
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		text := string(content)
		switch name {
		case "Chart.yaml":
			text, err = replaced(text, "\nversion: 0.1.0\n", "\nversion: "+version+"\n", "\nappVersion: dev\n", "\nappVersion: "+o.version+"\n")
			if o.source != "" {
				text += fmt.Sprintf("home: %q\nsources: [%q]\n", o.source, o.source)
			}
		case "values.yaml":
			text, err = replaced(text, "\n  repository: localhost/sluice\n", "\n  repository: "+o.repository+"\n")
		case "README.md":
			text = strings.NewReplacer("sluice-VERSION.tgz", "sluice-"+version+".tgz", `"localhost/sluice"`, fmt.Sprintf("%q", o.repository)).Replace(text)
		}
		files = append(files, file{"sluice/" + filepath.ToSlash(name), 0o644, []byte(text)})
		return err
	})
	if err != nil {
		return fmt.Errorf("pack the chart: %w", err)
	}
	content, err := tarGzip(files)
	if err != nil {
		return fmt.Errorf("pack the chart: %w", err)
	}
	if err := os.WriteFile(filepath.Join(o.out, "sluice-"+version+".tgz"), content, 0o644); err != nil {
		return fmt.Errorf("pack the chart: %w", err)
	}
	return nil
}

// replaced returns the text with the first string of each pair replaced by the second. The text must
// contain each first string exactly once.
func replaced(text string, pairs ...string) (string, error) {
	for i := 0; i < len(pairs); i += 2 {
		if n := strings.Count(text, pairs[i]); n != 1 {
			return "", fmt.Errorf("%q is there %d times, want once", pairs[i], n)
		}
		text = strings.Replace(text, pairs[i], pairs[i+1], 1)
	}
	return text, nil
}
