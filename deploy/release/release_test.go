package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// testOptions returns options of a release that is written to a temporary directory.
func testOptions(t *testing.T) options {
	t.Helper()
	return options{version: "v1.2.3-rc.1", repository: "example/sluice", source: "https://example.org/sluice", out: t.TempDir(), work: t.TempDir()}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// untar returns the contents of the files in a compressed archive, by name.
func untar(t *testing.T, packed []byte) map[string]string {
	t.Helper()
	plain, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for r := tar.NewReader(plain); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(content)
	}
}

func TestOptions(t *testing.T) {
	for version, good := range map[string]bool{
		"v1.2.3": true, "v0.0.0-g0233147-dirty": true, "v1.2.3-rc.1": true, "v1.2.3-4-gabc": true, "v0.0.0-dev": true,
		"1.2.3": false, "v1.2": false, "v1.2.3+x": false, "v01.2.3": false, "dev": false, "": false, "v1.2.3-01": false, "v1.2.3-": false,
	} {
		if err := (options{version: version, repository: "localhost/sluice"}).validate(); (err == nil) != good {
			t.Errorf("version %q: error %v, want one: %v", version, err, !good)
		}
	}
	for repository, good := range map[string]bool{"localhost:5000/a/sluice": true, "sluice": true, "": false, "sluice:v1": false, "localhost/sluice@sha256": false} {
		if err := (options{version: "v1.2.3", repository: repository}).validate(); (err == nil) != good {
			t.Errorf("repository %q: error %v, want one: %v", repository, err, !good)
		}
	}
}

// The packed chart has the version, the image and the source of the release, and otherwise equals the
// chart. Packing it a second time gives the same bytes.
func TestChartHasTheVersion(t *testing.T) {
	o := testOptions(t)
	if err := o.chart("../helm/sluice"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.out, "sluice-1.2.3-rc.1.tgz")
	files := untar(t, read(t, path))
	for name, wants := range map[string][]string{
		"sluice/Chart.yaml":  {"\nversion: 1.2.3-rc.1\n", "\nappVersion: v1.2.3-rc.1\n", `home: "https://example.org/sluice"`, `sources: ["https://example.org/sluice"]`},
		"sluice/values.yaml": {"repository: example/sluice\n"},
		"sluice/README.md":   {"sluice-1.2.3-rc.1.tgz", "`\"example/sluice\"`"},
		// files of the chart, rather than links to files outside of it
		"sluice/files/alerts.yaml": {"SluiceAgentDown"}, "sluice/files/dashboard.json": {"panels"},
		"sluice/templates/_helpers.tpl": {"sluice.fullname"}, "sluice/templates/tests/status.yaml": {"helm.sh/hook: test"}, "sluice/values.schema.json": {"draft-07"},
	} {
		for _, want := range wants {
			if !strings.Contains(files[name], want) {
				t.Errorf("%s lacks %q:\n%.300s", name, want, files[name])
			}
		}
	}
	if files["sluice/templates/daemonset.yaml"] != string(read(t, "../helm/sluice/templates/daemonset.yaml")) {
		t.Error("the DaemonSet differs from that of the chart")
	}
	first := read(t, path)
	if err := o.chart("../helm/sluice"); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, read(t, path)) {
		t.Error("packing the chart again gives other bytes")
	}
}

// Helm accepts the packed chart, which uses the image of the release.
func TestHelmTakesThePackedChart(t *testing.T) {
	helm, err := exec.LookPath("helm")
	if err != nil {
		t.Skip("needs helm: run make check-deploy")
	}
	o := testOptions(t)
	if err := o.chart("../helm/sluice"); err != nil {
		t.Fatal(err)
	}
	chart := filepath.Join(o.out, "sluice-1.2.3-rc.1.tgz")
	for _, args := range [][]string{{"lint", "--strict", chart}, {"template", "x", chart, "--kube-version", "1.33.0"}} {
		out, err := exec.Command(helm, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if args[0] == "template" && !strings.Contains(string(out), `image: "example/sluice:v1.2.3-rc.1"`) {
			t.Errorf("the chart does not take the image of the release:\n%s", out)
		}
	}
}

// Each archive has the program, as an executable file, and the license. The archive for Windows is a
// zip file.
func TestArchives(t *testing.T) {
	o := testOptions(t)
	t.Chdir("../..") // the license is there
	for system, name := range map[string]string{"linux": "sluice", "windows": "sluice.exe"} {
		b := program{platform{system, "amd64"}, filepath.Join(o.work, name)}
		if err := os.WriteFile(b.path, []byte("the program"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := o.pack(b); err != nil {
			t.Fatal(err)
		}
	}
	files := untar(t, read(t, filepath.Join(o.out, "sluice_v1.2.3-rc.1_linux_amd64.tar.gz")))
	if files["sluice"] != "the program" || files["LICENSE"] != string(read(t, "LICENSE")) || len(files) != 2 {
		t.Errorf("the archive for Linux has %d files", len(files))
	}
	packed := read(t, filepath.Join(o.out, "sluice_v1.2.3-rc.1_windows_amd64.zip"))
	z, err := zip.NewReader(bytes.NewReader(packed), int64(len(packed)))
	if err != nil {
		t.Fatal(err)
	}
	if len(z.File) != 2 || z.File[1].Name != "sluice.exe" || z.File[1].Mode().Perm() != 0o755 {
		t.Errorf("the archive for Windows has %+v", z.File)
	}
}

// The bill of materials lists the modules of the programs, Go, and the packages of the image, without
// duplicates.
func TestBillOfMaterials(t *testing.T) {
	o := testOptions(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	packages := "libc6\t2.36-9+deb12u14\tarm64\nlibc6\t2.36-9+deb12u14\tamd64\niptables\t1.8.9-2\tamd64"
	linux := program{platform{"linux", "amd64"}, self}
	if err := o.sbom([]program{linux, linux}, packages); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(o.out, "sluice_v1.2.3-rc.1.cdx.json")
	var bom struct {
		BOMFormat  string
		Metadata   struct{ Component struct{ Version string } }
		Components []struct {
			Name, Version, Purl string
			Properties          []struct{ Value string }
		}
	}
	first := read(t, path)
	if err := json.Unmarshal(first, &bom); err != nil {
		t.Fatal(err)
	}
	if bom.BOMFormat != "CycloneDX" || bom.Metadata.Component.Version != "v1.2.3-rc.1" {
		t.Errorf("the bill is %+v", bom)
	}
	found := map[string]int{}
	for _, c := range bom.Components {
		found[c.Purl]++
		if found[c.Purl] > 1 || c.Version == "" {
			t.Errorf("a component repeats or has no version: %+v", c)
		}
		if c.Name == "github.com/CycloneDX/cyclonedx-go" && (len(c.Properties) != 1 || !strings.HasPrefix(c.Properties[0].Value, "h1:")) {
			t.Errorf("the component has no checksum: %+v", c)
		}
	}
	for _, want := range []string{"pkg:golang/std@1.", "pkg:golang/github.com/CycloneDX/cyclonedx-go@v0.", "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=arm64", "pkg:deb/debian/iptables@1.8.9-2?arch=amd64"} {
		if !strings.Contains(string(first), `"purl": "`+want) {
			t.Errorf("there is no %s", want)
		}
	}
	if err := o.sbom([]program{linux}, packages); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, read(t, path)) {
		t.Error("writing the bill again gives other bytes")
	}
}

func TestSums(t *testing.T) {
	dir := t.TempDir()
	if err := sums(dir); err == nil {
		t.Error("no error for a directory without files")
	}
	for _, name := range []string{"b", "a"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := sums(dir); err != nil {
		t.Fatal(err)
	}
	const x = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
	if got, want := string(read(t, filepath.Join(dir, "SHA256SUMS"))), x+"  a\n"+x+"  b\n"; got != want {
		t.Errorf("the checksums are\n%s, want\n%s", got, want)
	}
}
