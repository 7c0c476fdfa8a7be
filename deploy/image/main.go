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
package main

import (
	"flag"
	"fmt"
	"os"
)

// programs lists the programs that the agent runs, all from the package iptables.
var programs = []string{
	"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore",
	"iptables-nft", "iptables-nft-save", "iptables-nft-restore", "ip6tables-nft", "ip6tables-nft-save", "ip6tables-nft-restore",
	"iptables-legacy", "iptables-legacy-save", "iptables-legacy-restore", "ip6tables-legacy", "ip6tables-legacy-save", "ip6tables-legacy-restore",
}

func main() {
	sluice := flag.String("sluice", "bin/sluice", "the program, for the architecture of this machine")
	name := flag.String("name", "localhost/sluice:dev", "the name of the image, with a tag")
	version := flag.String("version", "dev", "the version that the image is labelled with")
	out := flag.String("o", "bin/sluice-image.tar", "the archive to write")
	flag.Parse()
	if err := build(*sluice, *name, *version, *out); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
	fmt.Println(*out, "holds", *name)
}

// build writes the image. iptables has a layer of its own, below the layer of the program sluice,
// because iptables is larger and seldom changes.
func build(sluice, name, version, out string) error {
	arch, err := architecture(sluice)
	if err != nil {
		return err
	}
	base := newTree()
	for _, p := range programs {
		if err := base.addProgram(p); err != nil {
			return err
		}
	}
	if err := base.addExtensions(); err != nil {
		return err
	}
	// iptables prints rules with the names of protocols from this file. The file is optional:
	// the names that Sluice's rules use are built in.
	if err := base.addIfThere("/etc/protocols"); err != nil {
		return err
	}
	for _, dir := range []string{"/etc", "/run/sluice", "/tmp"} {
		base.addDir(dir)
	}
	top := newTree()
	top.put("/usr/bin/sluice", sluice)
	f, err := os.Create(out)
	if err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	defer f.Close()
	err = writeImage(f, image{
		name: name, version: version, arch: arch, entrypoint: "/usr/bin/sluice",
		layers: []*tree{base, top},
	})
	if err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	return nil
}
