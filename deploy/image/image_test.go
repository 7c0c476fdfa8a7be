package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// program builds sluice as "make image" does.
func program(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("/usr/sbin/iptables-legacy"); err != nil {
		t.Skip("needs iptables: install the package iptables")
	}
	path := filepath.Join(t.TempDir(), "sluice")
	cmd := exec.Command("go", "build", "-trimpath", "-o", path, "sluice/cmd/sluice")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build sluice: %v\n%s", err, out)
	}
	return path
}

// The image contains all programs and libraries that the agent runs: in a chroot with only its files,
// both backends of iptables accept the rules that sluice prints. Building it again gives the same
// bytes.
func TestImage(t *testing.T) {
	sluice := program(t)
	archive := filepath.Join(t.TempDir(), "image.tar")
	if err := build([]string{sluice}, image{name: "localhost/sluice:test", version: "test"}, target{archive: archive}); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "again.tar")
	if err := build([]string{sluice}, image{name: "localhost/sluice:test", version: "test"}, target{archive: again}); err != nil {
		t.Fatal(err)
	}
	if sum(t, archive) != sum(t, again) {
		t.Error("a second build from the same files differs")
	}
	root := unpack(t, archive)
	if os.Geteuid() != 0 {
		t.Skip("needs root: it runs programs of the image in a chroot")
	}
	for _, tt := range []struct{ args, want string }{
		{"/usr/bin/sluice version", "sluice "},
		{"iptables --version", "iptables v"},
		{"ip6tables --version", "ip6tables v"},
		{"iptables-nft --version", "nf_tables"},
		{"iptables-legacy --version", "legacy"},
		{"ip6tables-legacy --version", "legacy"},
		{"iptables-nft-save --version", "nf_tables"},
	} {
		if out := inside(t, root, "", strings.Fields(tt.args)...); !strings.Contains(out, tt.want) {
			t.Errorf("%s prints %q, want %q", tt.args, out, tt.want)
		}
	}
	// sluice prints the rules of IPv4, a comment line, and the rules of IPv6.
	v4, v6, ok := strings.Cut(inside(t, root, "", "/usr/bin/sluice", "rules"), "# IPv6\n")
	if !ok {
		t.Fatalf("sluice rules prints no IPv6 rules:\n%s", v4)
	}
	for restore, rules := range map[string]string{
		"iptables-nft-restore": v4, "ip6tables-nft-restore": v6, "iptables-legacy-restore": v4, "ip6tables-legacy-restore": v6,
	} {
		inside(t, root, rules, restore, "--noflush", "--test")
	}
}

// inside runs a program of the image, with root as its root directory and in a new network
// namespace, and returns its output.
func inside(t *testing.T, root, stdin string, args ...string) string {
	t.Helper()
	path := args[0]
	if !filepath.IsAbs(path) {
		path = filepath.Join("/usr/sbin", path)
	}
	cmd := exec.Command(path, args[1:]...)
	// exec.Command has looked up the program outside of the image, where it may not exist.
	cmd.Path, cmd.Err = path, nil
	cmd.Env, cmd.Dir = []string{"PATH=/usr/sbin:/usr/bin"}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Cloneflags: syscall.CLONE_NEWNET}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s in the image: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func sum(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(data))
}

// unpack extracts the layers of an archive into a new directory, and checks the digests and sizes in
// the archive's documents.
func unpack(t *testing.T, archive string) (root string) {
	t.Helper()
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	blobs := map[string][]byte{}
	eachFile(t, bytes.NewReader(data), func(h *tar.Header, content []byte) { blobs[h.Name] = content })
	for name, content := range blobs {
		if want, is := strings.CutPrefix(name, "blobs/sha256/"); is && want != fmt.Sprintf("%x", sha256.Sum256(content)) {
			t.Errorf("the digest of %s differs from its name", name)
		}
	}
	read := func(name string, into any) {
		t.Helper()
		if err := json.Unmarshal(blobs[name], into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	follow := func(d descriptor) string {
		t.Helper()
		if got := len(blobs[blobPath(d)]); got != d.Size || got == 0 {
			t.Fatalf("%s has %d bytes, want %d", d.Digest, got, d.Size)
		}
		return blobPath(d)
	}
	var layout struct{ ImageLayoutVersion string }
	read("oci-layout", &layout)
	if layout.ImageLayoutVersion != "1.0.0" {
		t.Errorf("layout version %q", layout.ImageLayoutVersion)
	}
	var index struct{ Manifests []descriptor }
	read("index.json", &index)
	if len(index.Manifests) != 1 || index.Manifests[0].Annotations["io.containerd.image.name"] != "localhost/sluice:test" ||
		index.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "test" {
		t.Fatalf("the index is %s", blobs["index.json"])
	}
	var manifest struct {
		Config descriptor
		Layers []descriptor
	}
	read(follow(index.Manifests[0]), &manifest)
	var config struct {
		Architecture, OS string
		Config           struct{ Entrypoint []string }
		RootFS           struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	read(follow(manifest.Config), &config)
	if config.Architecture == "" || config.OS != "linux" || len(config.Config.Entrypoint) != 1 || config.Config.Entrypoint[0] != "/usr/bin/sluice" {
		t.Errorf("the config is %s", blobs[blobPath(manifest.Config)])
	}
	root = t.TempDir()
	for i, layer := range manifest.Layers {
		plain := gunzip(t, blobs[follow(layer)])
		if got := fmt.Sprintf("sha256:%x", sha256.Sum256(plain)); got != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d is %s, want %s", i, got, config.RootFS.DiffIDs[i])
		}
		eachFile(t, bytes.NewReader(plain), func(h *tar.Header, content []byte) { extract(t, root, h, content) })
	}
	return root
}

func gunzip(t *testing.T, packed []byte) []byte {
	t.Helper()
	zip, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

func eachFile(t *testing.T, in io.Reader, f func(*tar.Header, []byte)) {
	t.Helper()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s has owner %d:%d and time %v, want zero", h.Name, h.Uid, h.Gid, h.ModTime)
		}
		f(h, content)
	}
}

func extract(t *testing.T, root string, h *tar.Header, content []byte) {
	t.Helper()
	path := filepath.Join(root, h.Name)
	var err error
	switch h.Typeflag {
	case tar.TypeDir:
		err = os.MkdirAll(path, 0o755)
	case tar.TypeSymlink:
		err = os.Symlink(h.Linkname, path)
	case tar.TypeReg:
		err = os.WriteFile(path, content, os.FileMode(h.Mode).Perm())
	default:
		err = fmt.Errorf("unexpected entry of type %q", h.Typeflag)
	}
	if err != nil {
		t.Fatalf("%s: %v", h.Name, err)
	}
}

// Errors name what is missing or wrong, and how to correct it.
func TestBuildErrors(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.tar")
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := build([]string{script}, image{name: "localhost/sluice:test", version: "test"}, target{archive: out}); err == nil || !strings.Contains(err.Error(), "build it for Linux") {
		t.Errorf("with a script instead of a program: error %v", err)
	}
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := build([]string{shell}, image{name: "localhost/sluice:test", version: "test"}, target{archive: out}); err == nil || !strings.Contains(err.Error(), "CGO_ENABLED=0") {
		t.Errorf("with a program that needs libraries: error %v", err)
	}
	if err := newTree("/", "amd64").addProgram("no-such-program"); err == nil || !strings.Contains(err.Error(), "install it") {
		t.Errorf("with a program that does not exist: error %v", err)
	}
	err = writeImage(io.Discard, image{name: "localhost:5000/sluice"})
	if err == nil || !strings.Contains(err.Error(), "has no tag") {
		t.Errorf("with a name without a tag: error %v", err)
	}
}

// add keeps the symbolic links on a path, and adds the file to which they lead. It fails if they do
// not lead to a file.
func TestTreeKeepsLinks(t *testing.T) {
	dir := t.TempDir()
	for link, to := range map[string]string{"a": "b", "b": filepath.Join(dir, "sub", "c"), "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sub", "c")
	if err := os.WriteFile(file, []byte("x"), 0o640); err != nil {
		t.Fatal(err)
	}
	tr := newTree("/", "")
	got, known, err := tr.add(filepath.Join(dir, "a"))
	if err != nil || known || got != file {
		t.Errorf("add returns %q, %t, %v; want %q, false", got, known, err, file)
	}
	for path, want := range map[string]entry{
		filepath.Join(dir, "a"): {link: "b", mode: 0o777}, filepath.Join(dir, "b"): {link: file, mode: 0o777},
		file: {file: file, mode: 0o640}, filepath.Join(dir, "sub"): {mode: 0o755},
	} {
		if tr.entries[path] != want {
			t.Errorf("%s is %+v, want %+v", path, tr.entries[path], want)
		}
	}
	if _, known, err = tr.add(file); err != nil || !known {
		t.Errorf("add of the same file returns known %t, error %v", known, err)
	}
	for _, bad := range []string{"loop", "none", "sub"} {
		if _, _, err := tr.add(filepath.Join(dir, bad)); err == nil {
			t.Errorf("%s was added", bad)
		}
	}
}
