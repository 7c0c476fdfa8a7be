package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// forArch returns a program for an architecture, and a root directory with iptables for the same
// architecture.
func forArch(t *testing.T, arch string) (sluice, root string) {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	if err := os.WriteFile(source, []byte("package main\n\nfunc main() {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sluice, root = filepath.Join(dir, "sluice"), filepath.Join(dir, "root")
	cmd := exec.Command("go", "build", "-o", sluice, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	content, err := os.ReadFile(sluice)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "usr/sbin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "usr/sbin/multi"), content, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range programs {
		if err := os.Symlink("multi", filepath.Join(root, "usr/sbin", name)); err != nil {
			t.Fatal(err)
		}
	}
	list := "iptables\t1.8\t" + arch + "\t/usr/sbin/multi\niptables\t1.8\t" + arch + "\t/usr/sbin/iptables\nnetbase\t6.4\tall\t/etc/rpc\n"
	if err := os.WriteFile(root+".packages", []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	return sluice, root
}

// An image for two architectures has an index with a manifest for each. Each manifest has the program
// and iptables for its architecture. A second build gives the same bytes.
func TestImageForTwoArchitectures(t *testing.T) {
	amd64, amd64Root := forArch(t, "amd64")
	arm64, arm64Root := forArch(t, "arm64")
	dir := t.TempDir()
	archive, again, packages := filepath.Join(dir, "image.tar"), filepath.Join(dir, "again.tar"), filepath.Join(dir, "packages")
	for _, to := range []target{{archive: archive, packages: packages}, {archive: again}} {
		if err := build([]string{amd64 + "=" + amd64Root, arm64 + "=" + arm64Root}, image{name: "localhost/sluice:v1", version: "v1"}, to); err != nil {
			t.Fatal(err)
		}
	}
	if sum(t, archive) != sum(t, again) {
		t.Error("a second build from the same files differs")
	}
	if got, want := read(t, packages), "iptables\t1.8\tamd64\niptables\t1.8\tarm64\n"; got != want {
		t.Errorf("the packages are %q, want %q", got, want)
	}
	blobs := map[string][]byte{}
	eachFile(t, strings.NewReader(read(t, archive)), func(h *tar.Header, content []byte) { blobs[h.Name] = content })
	if blobs["manifest.json"] != nil {
		t.Error("manifest.json would give every node the same architecture")
	}
	top := index(t, blobs["index.json"])
	if len(top) != 1 || top[0].MediaType != indexType || top[0].Annotations["io.containerd.image.name"] != "localhost/sluice:v1" {
		t.Fatalf("the index is %s", blobs["index.json"])
	}
	var got []string
	for _, m := range index(t, blobs[blobPath(top[0])]) {
		got = append(got, m.Platform["os"]+"/"+m.Platform["architecture"]+" "+layersFor(t, blobs, blobs[blobPath(m)]))
	}
	if want := []string{"linux/amd64 amd64 amd64", "linux/arm64 arm64 arm64"}; !slices.Equal(got, want) {
		t.Errorf("the image holds %q, want %q", got, want)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func index(t *testing.T, text []byte) []descriptor {
	t.Helper()
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return index.Manifests
}

// layersFor returns the architectures of the ELF files in the layers of a manifest.
func layersFor(t *testing.T, blobs map[string][]byte, text []byte) string {
	t.Helper()
	var manifest struct{ Layers []descriptor }
	if err := json.Unmarshal(text, &manifest); err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, layer := range manifest.Layers {
		plain := gunzip(t, blobs[blobPath(layer)])
		eachFile(t, bytes.NewReader(plain), func(h *tar.Header, content []byte) {
			if h.Typeflag != tar.TypeReg {
				return
			}
			path := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(path, content, 0o644); err != nil {
				t.Fatal(err)
			}
			arch, err := architecture(path)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, arch)
		})
	}
	return strings.Join(found, " ")
}

// The command can write the files of an image to a directory.
func TestImageAsDirectory(t *testing.T) {
	sluice, from := forArch(t, "arm64")
	dir := filepath.Join(t.TempDir(), "files")
	if err := build([]string{sluice + "=" + from}, image{name: "localhost/sluice:v1", version: "v1"}, target{dir: dir}); err != nil {
		t.Fatal(err)
	}
	if read(t, filepath.Join(dir, "usr/bin/sluice")) != read(t, sluice) || read(t, filepath.Join(dir, "usr/sbin/ip6tables-nft")) != read(t, sluice) {
		t.Error("the files differ from those that were given")
	}
	if to, err := os.Readlink(filepath.Join(dir, "usr/sbin/iptables")); err != nil || to != "multi" {
		t.Errorf("iptables leads to %q, %v", to, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "run/sluice")); err != nil || !info.IsDir() {
		t.Errorf("/run/sluice: %v", err)
	}
}

// The command refuses to build an image from parts for different architectures.
func TestMixedArchitectures(t *testing.T) {
	amd64, amd64Root := forArch(t, "amd64")
	arm64, _ := forArch(t, "arm64")
	out := target{archive: filepath.Join(t.TempDir(), "image.tar")}
	if err := build([]string{arm64 + "=" + amd64Root}, image{name: "localhost/sluice:v1", version: "v1"}, out); err == nil || !strings.Contains(err.Error(), "is for amd64, and sluice for arm64") {
		t.Errorf("with the root of another architecture: error %v", err)
	}
	if err := build([]string{amd64 + "=" + amd64Root, amd64 + "=" + amd64Root}, image{name: "localhost/sluice:v1", version: "v1"}, out); err == nil || !strings.Contains(err.Error(), "one for each architecture") {
		t.Errorf("with the same architecture twice: error %v", err)
	}
	if err := build([]string{amd64 + "=" + t.TempDir()}, image{name: "localhost/sluice:v1", version: "v1"}, out); err == nil || !strings.Contains(err.Error(), "deploy/image/sysroot") {
		t.Errorf("with an empty root: error %v", err)
	}
}
