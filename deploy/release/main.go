// Command release makes the files of a release:
//
//	sluice_VERSION_OS_ARCH.tar.gz   the program, for Linux and macOS; .zip for Windows
//	sluice-image_VERSION.tar        the image for amd64 and arm64, as an OCI archive
//	sluice-VERSION.tgz              the Helm chart
//	sluice_VERSION.cdx.json         the bill of materials (CycloneDX) of programs and image
//	sluice_VERSION.krew.yaml        the manifest of the plugin of kubectl, for krew
//	SHA256SUMS                      the checksums of all others
//
// From the same commit, Go and Debian packages it makes the same bytes.
//
//	go run ./deploy/release -version v1.2.3
package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
)

// options has the values of the command's flags.
type options struct {
	version    string // begins with a "v"
	repository string // name of the image, without a tag
	source     string // the URL of the source code; may be empty
	out        string // the directory to write to
	work       string // a directory for intermediate files
}

// semver matches the versions that Helm accepts, after a "v". It excludes versions with a part after
// "+", because tags of images cannot contain it.
var semver = regexp.MustCompile(`^v(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)(\.(0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*))*)?$`)

func (o options) validate() error {
	if !semver.MatchString(o.version) {
		return fmt.Errorf("-version %q: give a semantic version with a v, such as v1.2.3", o.version)
	}
	if o.repository == "" || strings.ContainsAny(o.repository[strings.LastIndex(o.repository, "/")+1:], ":@") {
		return fmt.Errorf("-repository %q: give the name of the image without a tag, such as localhost/sluice", o.repository)
	}
	return nil
}

func main() {
	var o options
	flag.StringVar(&o.version, "version", "", "the version, such as v1.2.3")
	flag.StringVar(&o.repository, "repository", "localhost/sluice", "the name of the image, without a tag; the chart's default")
	flag.StringVar(&o.source, "source", "", "the URL of the source code, for the chart and the image; may be empty")
	flag.StringVar(&o.out, "o", "bin/release", "the directory to write to; what it contains is removed")
	flag.StringVar(&o.work, "work", "bin/release.work", "a directory for intermediate files")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := release(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func release(ctx context.Context, o options) error {
	if err := o.validate(); err != nil {
		return err
	}
	if err := os.RemoveAll(o.out); err != nil {
		return fmt.Errorf("remove the last release: %w", err)
	}
	for _, dir := range []string{o.out, o.work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the directories: %w", err)
		}
	}
	var built []program
	for _, p := range platforms {
		fmt.Println("build sluice for", p)
		b, err := o.build(ctx, p)
		if err != nil {
			return err
		}
		if err := o.pack(b); err != nil {
			return err
		}
		built = append(built, b)
	}
	fmt.Println("build the image")
	packages, err := o.image(ctx, built)
	if err != nil {
		return err
	}
	fmt.Println("pack the chart")
	if err := o.chart("deploy/helm/sluice"); err != nil {
		return err
	}
	if err := o.sbom(built, packages); err != nil {
		return err
	}
	if err := o.krew("deploy/krew/sluice.yaml"); err != nil {
		return err
	}
	return sums(o.out)
}

// run runs a program, with its output going to the output of this process.
func run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return nil
}

// sums writes the checksums of the files in a directory, in the format of sha256sum.
func sums(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("write the checksums: %w", err)
	}
	var out strings.Builder
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return fmt.Errorf("write the checksums: %w", err)
		}
		fmt.Fprintf(&out, "%x  %s\n", sha256.Sum256(content), e.Name())
	}
	if out.Len() == 0 {
		return errors.New("write the checksums: there are no files")
	}
	if err := os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(out.String()), 0o644); err != nil {
		return fmt.Errorf("write the checksums: %w", err)
	}
	return nil
}
