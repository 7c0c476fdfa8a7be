package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// platform is an operating system and an architecture, named as Go names them.
type platform struct{ system, arch string }

func (p platform) String() string { return p.system + "/" + p.arch }

// platforms are the platforms of the programs. The image is for those with Linux.
var platforms = []platform{{"linux", "amd64"}, {"linux", "arm64"}, {"darwin", "amd64"}, {"darwin", "arm64"}, {"windows", "amd64"}}

// program is a program for a platform.
type program struct {
	platform
	path string
}

// build builds the program for a platform, without its symbols.
func (o options) build(ctx context.Context, p platform) (program, error) {
	name := "sluice"
	if p.system == "windows" {
		name += ".exe"
	}
	b := program{p, filepath.Join(o.work, p.system+"_"+p.arch, name)}
	// Do not stamp the commit: the bytes would depend on whether this directory is a clone.
	return b, run(ctx, []string{"CGO_ENABLED=0", "GOFLAGS=-buildvcs=false -trimpath", "GOOS=" + p.system, "GOARCH=" + p.arch},
		"go", "build", "-ldflags=-s -w -X main.release="+o.version, "-o", b.path, "./cmd/sluice")
}

// file is a file of an archive.
type file struct {
	name    string
	mode    int64
	content []byte
}

// pack writes the archive of a program, with the license.
func (o options) pack(b program) error {
	files := []file{{name: "LICENSE", mode: 0o644}, {name: filepath.Base(b.path), mode: 0o755}}
	for i, path := range []string{"LICENSE", b.path} {
		var err error
		if files[i].content, err = os.ReadFile(path); err != nil {
			return fmt.Errorf("pack sluice for %s: %w", b.platform, err)
		}
	}
	name, pack := fmt.Sprintf("sluice_%s_%s_%s", o.version, b.system, b.arch), tarGzip
	if b.system == "windows" {
		name, pack = name+".zip", zipped
	} else {
		name += ".tar.gz"
	}
	content, err := pack(files)
	if err != nil {
		return fmt.Errorf("pack sluice for %s: %w", b.platform, err)
	}
	if err := os.WriteFile(filepath.Join(o.out, name), content, 0o644); err != nil {
		return fmt.Errorf("pack sluice for %s: %w", b.platform, err)
	}
	return nil
}

// tarGzip returns files as a compressed tar archive. All files belong to root and have the same time,
// so that equal files give equal bytes.
func tarGzip(files []file) ([]byte, error) {
	var out bytes.Buffer
	zip, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(zip)
	for _, f := range files {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.content)), ModTime: earliest, Format: tar.FormatPAX}); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := zip.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// earliest is the time of all files in archives. Zip cannot store an earlier one.
var earliest = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)

// zipped returns files as a zip archive.
func zipped(files []file) ([]byte, error) {
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, f := range files {
		header := &zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: earliest}
		header.SetMode(os.FileMode(f.mode))
		content, err := w.CreateHeader(header)
		if err != nil {
			return nil, err
		}
		if _, err := content.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// image writes the image for all architectures of Linux. It returns the list of its packages, in the
// form of deploy/image.
func (o options) image(ctx context.Context, built []program) (packages string, err error) {
	list := filepath.Join(o.work, "packages")
	args := []string{"run", "./deploy/image", "-name", o.repository + ":" + o.version, "-version", o.version, "-source", o.source,
		"-packages", list, "-o", filepath.Join(o.out, "sluice-image_"+o.version+".tar")}
	for _, b := range built {
		if b.system != "linux" {
			continue
		}
		root := filepath.Join(o.work, "root_"+b.arch)
		if err := run(ctx, nil, "deploy/image/sysroot", b.arch, root); err != nil {
			return "", err
		}
		args = append(args, "-sluice", b.path+"="+root)
	}
	if err := run(ctx, nil, "go", args...); err != nil {
		return "", err
	}
	text, err := os.ReadFile(list)
	if err != nil {
		return "", fmt.Errorf("read the packages of the image: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}
