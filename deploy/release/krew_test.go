package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// The manifest for krew has each archive of the release exactly once, with its checksum and program.
func TestKrew(t *testing.T) {
	t.Chdir("../..")
	o := testOptions(t)
	programs := make(map[platform]string)
	for _, p := range platforms {
		programs[p] = "sluice"
		if p.system == "windows" {
			programs[p] = "sluice.exe"
		}
		path := filepath.Join(o.work, p.system+"_"+p.arch, programs[p])
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(p.String()), 0o755), o.pack(program{p, path})); err != nil {
			t.Fatal(err)
		}
	}
	if err := o.krew("deploy/krew/sluice.yaml"); err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Kind     string
		Metadata struct{ Name string }
		Spec     struct {
			Version, Homepage, ShortDescription string
			Platforms                           []struct {
				Selector         struct{ MatchLabels map[string]string }
				URI, SHA256, Bin string
			}
		}
	}
	text := read(t, filepath.Join(o.out, "sluice_v1.2.3-rc.1.krew.yaml"))
	if err := yaml.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	if s := manifest.Spec; manifest.Kind != "Plugin" || manifest.Metadata.Name != "sluice" || s.Version != o.version || s.Homepage != o.source || len(s.Platforms) != len(platforms) {
		t.Errorf("%+v", manifest)
	}
	for i, p := range manifest.Spec.Platforms {
		labels := p.Selector.MatchLabels
		of := platform{labels["os"], labels["arch"]}
		name, found := strings.CutPrefix(p.URI, "https://example.org/sluice/releases/download/v1.2.3-rc.1/")
		content := read(t, filepath.Join(o.out, name))
		if of != platforms[i] || !found || !strings.Contains(name, "_"+of.system+"_"+of.arch+".") || p.SHA256 != fmt.Sprintf("%x", sha256.Sum256(content)) || p.Bin != programs[of] {
			t.Errorf("%+v", p)
		}
	}
}
