// Command image builds the container image of Sluice as an OCI archive. It needs neither a
// container daemon nor a registry, so the image can be built, and loaded into containerd, on
// an offline machine.
//
//	go run ./deploy/image -sluice bin/sluice -o bin/sluice-image.tar
//	ctr -n k8s.io images import bin/sluice-image.tar
//
// The image contains the program sluice. It also contains iptables with both backends, and the
// libraries and extensions that iptables loads, copied from this machine. It has no shell and
// no package manager. From the same files, the command builds the same bytes.
//
// For other architectures, iptables comes from a root directory, which deploy/image/sysroot creates.
// Given several programs, the command writes an index, from which each node selects the image for its
// architecture:
//
//	go run ./deploy/image -sluice amd64/sluice=sysroot/amd64 -sluice arm64/sluice=sysroot/arm64
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
)

// programs lists the programs that the agent runs, all from the package iptables.
var programs = []string{
	"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore",
	"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore",
	"iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore",
}

func main() {
	var programs []string
	flag.Func("sluice", "the program, `FILE[=ROOT]`: with ROOT, iptables comes from that directory instead of this machine (repeatable, for several architectures; default bin/sluice)", func(text string) error {
		programs = append(programs, text)
		return nil
	})
	name := flag.String("name", "localhost/sluice:dev", "the name of the image, with a tag")
	version := flag.String("version", "dev", "the version that the image is labelled with")
	source := flag.String("source", "", "the URL of the source code that the image is labelled with; may be empty")
	packages := flag.String("packages", "", "a file to write, with the packages of the ROOTs that are in the image")
	dir := flag.String("dir", "", "a directory for the files of the image, instead of an archive")
	out := flag.String("o", "bin/sluice-image.tar", "the archive to write")
	flag.Parse()
	if len(programs) == 0 {
		programs = []string{"bin/sluice"}
	}
	if err := build(programs, image{name: *name, version: *version, source: *source}, target{*out, *dir, *packages}); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

// target has the paths to write to: an archive, or, if dir is not empty, a directory instead; and the
// list of packages, if packages is not empty.
type target struct{ archive, dir, packages string }

// build writes an image of programs. Each program is given as FILE or FILE=ROOT.
func build(programs []string, img image, to target) error {
	img.entrypoint = "/usr/bin/sluice"
	var packages []string
	for _, text := range programs {
		sluice, from, given := strings.Cut(text, "=")
		if !given {
			from = "/"
		}
		p, err := newPlatform(sluice, root(from))
		if err != nil {
			return err
		}
		if slices.ContainsFunc(img.platforms, func(o platform) bool { return o.arch == p.arch }) {
			return fmt.Errorf("two programs are for %s: give one for each architecture", p.arch)
		}
		img.platforms = append(img.platforms, p)
		if to.packages != "" {
			found, err := p.packages(from + ".packages")
			if err != nil {
				return err
			}
			packages = append(packages, found...)
		}
	}
	if to.packages != "" {
		if err := os.WriteFile(to.packages, []byte(strings.Join(packages, "")), 0o644); err != nil {
			return fmt.Errorf("write the packages of the image: %w", err)
		}
	}
	if to.dir != "" {
		return img.writeDir(to.dir)
	}
	return img.writeArchive(to.archive)
}

// newPlatform returns the image for the architecture of a program. iptables has a layer of its own,
// below the program's layer, because iptables is larger and seldom changes.
func newPlatform(sluice string, from root) (platform, error) {
	arch, err := architecture(sluice)
	if err != nil {
		return platform{}, err
	}
	base := newTree(from, arch)
	for _, p := range programs {
		if err := base.addProgram(p); err != nil {
			return platform{}, err
		}
	}
	if err := base.addExtensions(); err != nil {
		return platform{}, err
	}
	// iptables prints rules with the names of protocols from this file. The file is optional:
	// the names that Sluice's rules use are built in.
	if err := base.addIfThere("/etc/protocols"); err != nil {
		return platform{}, err
	}
	for _, dir := range []string{"/etc", "/run/sluice", "/tmp"} {
		base.addDir(dir)
	}
	top := newTree(from, arch)
	top.put("/usr/bin/sluice", sluice)
	return platform{arch, []*tree{base, top}}, nil
}

// packages returns the packages with files in the image, without duplicates. list is the path of the
// list that deploy/image/sysroot writes: its lines are a package and a file.
func (p platform) packages(list string) ([]string, error) {
	f, err := os.Open(list)
	if err != nil {
		return nil, fmt.Errorf("read the packages of the root: %w", err)
	}
	defer f.Close()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		at := strings.LastIndex(lines.Text(), "\t")
		if at < 0 {
			return nil, fmt.Errorf("read the packages of the root: %s has the line %q", list, lines.Text())
		}
		about := lines.Text()[:at] + "\n"
		if e, ok := p.layers[0].entries[lines.Text()[at+1:]]; ok && e.file != "" && !slices.Contains(found, about) {
			found = append(found, about)
		}
	}
	return found, nil
}

func (img image) writeArchive(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	defer f.Close()
	if err := writeImage(f, img); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	fmt.Println(path, "holds", img.name)
	return nil
}

// writeDir writes the files of the image to a directory, for builders that create the layers
// themselves.
func (img image) writeDir(dir string) error {
	if len(img.platforms) != 1 {
		return errors.New("-dir takes the files of one architecture: give one program")
	}
	for _, layer := range img.platforms[0].layers {
		if err := layer.writeDir(dir); err != nil {
			return err
		}
	}
	return nil
}
