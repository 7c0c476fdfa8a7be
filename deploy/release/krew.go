package main

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// krew writes the manifest of the kubectl plugin from its template. The archives of the programs must
// exist already.
func (o options) krew(template string) error {
	text, err := os.ReadFile(template)
	if err != nil {
		return fmt.Errorf("write the manifest for krew: %w", err)
	}
	source := cmp.Or(o.source, "https://localhost/sluice") // krew demands a URL; with --archive, it does not use it
	names := strings.NewReplacer("DOWNLOADS", source+"/releases/download/"+o.version, "SOURCE", source, "VERSION", o.version)
	var out strings.Builder
	archive := "" // name of the archive in the last line with "uri:"
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "#") {
			line = names.Replace(line)
		}
		if uri, is := strings.CutPrefix(strings.TrimSpace(line), "uri: "); is {
			archive = path.Base(uri)
		}
		if strings.HasSuffix(line, "sha256: SHA256\n") {
			content, err := os.ReadFile(filepath.Join(o.out, archive))
			if err != nil {
				return fmt.Errorf("write the manifest for krew: %w", err)
			}
			line = strings.Replace(line, "SHA256", fmt.Sprintf("%x", sha256.Sum256(content)), 1)
		}
		out.WriteString(line)
	}
	if err := os.WriteFile(filepath.Join(o.out, "sluice_"+o.version+".krew.yaml"), []byte(out.String()), 0o644); err != nil {
		return fmt.Errorf("write the manifest for krew: %w", err)
	}
	return nil
}
