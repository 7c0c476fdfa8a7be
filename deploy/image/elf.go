package main

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// architectures maps ELF machines to the names of architectures in images.
var architectures = map[elf.Machine]string{
	elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_386: "386",
	elf.EM_PPC64: "ppc64le", elf.EM_S390: "s390x", elf.EM_RISCV: "riscv64",
}

// root is a directory with the files of a machine. For this machine, it is "/".
type root string

// path returns the path on this machine of p, which is a path below the root.
func (r root) path(p string) string { return filepath.Join(string(r), p) }

// strip is the inverse of path: it returns the path below the root.
func (r root) strip(path string) string {
	return "/" + strings.TrimPrefix(strings.TrimPrefix(path, filepath.Clean(string(r))), "/")
}

// architecture returns the architecture for which a program was built. It returns an error if the
// program is not static.
func architecture(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("read the program %s: %w: build it for Linux", path, err)
	}
	defer f.Close()
	arch, ok := architectures[f.Machine]
	if !ok {
		return "", fmt.Errorf("read the program %s: unknown architecture %s", path, f.Machine)
	}
	if interpreter(f) != "" {
		return "", fmt.Errorf("read the program %s: it needs shared libraries: build it with CGO_ENABLED=0", path)
	}
	return arch, nil
}

// checkMachine returns an error if a program or library below root is not for the architecture arch.
func checkMachine(root root, path, arch string) error {
	f, err := elf.Open(root.path(path))
	if err != nil {
		return fmt.Errorf("read %s: %w", root.path(path), err)
	}
	defer f.Close()
	if got := architectures[f.Machine]; got != arch {
		return fmt.Errorf("%s is for %s, and sluice for %s: give the root of a machine for %s (deploy/image/sysroot makes one)", root.path(path), got, arch, arch)
	}
	return nil
}

// needed returns the paths of the libraries that a program or library below root needs directly, and
// the path of its loader (elf(5): PT_INTERP, DT_NEEDED, DT_RUNPATH). All paths are relative to root.
func needed(root root, path string) ([]string, error) {
	f, err := elf.Open(root.path(path))
	if err != nil {
		return nil, fmt.Errorf("read what %s loads: %w", path, err)
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read what %s loads: %w", path, err)
	}
	var dirs []string
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		paths, err := f.DynString(tag)
		if err != nil {
			continue // the library may be in a default directory
		}
		for _, list := range paths {
			for dir := range strings.SplitSeq(list, ":") {
				dirs = append(dirs, strings.NewReplacer("$ORIGIN", filepath.Dir(path), "${ORIGIN}", filepath.Dir(path)).Replace(dir))
			}
		}
	}
	dirs = append(dirs, systemDirs(root)...)
	var found []string
	for _, name := range names {
		lib, err := findLibrary(root, name, dirs, f)
		if err != nil {
			return nil, fmt.Errorf("find what %s loads: %w", path, err)
		}
		found = append(found, lib)
	}
	if loader := interpreter(f); loader != "" {
		found = append(found, loader)
	}
	return found, nil
}

// systemDirs returns the default directories of a loader. The image has no ld.so.cache, so the loader
// finds libraries only in these directories.
func systemDirs(root root) []string {
	var dirs []string
	for _, pattern := range []string{"/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*", "/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		matches, _ := filepath.Glob(root.path(pattern)) // fails only if the pattern is invalid
		for _, dir := range matches {
			dirs = append(dirs, root.strip(dir))
		}
	}
	return dirs
}

// findLibrary returns the path of a library that an ELF file needs. The library must have the same
// machine and class as that file.
func findLibrary(root root, name string, dirs []string, by *elf.File) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(root.path(path)); err != nil {
			continue
		}
		f, err := elf.Open(root.path(path))
		if err != nil {
			continue // not an ELF file, for example a linker script
		}
		same := f.Machine == by.Machine && f.Class == by.Class
		_ = f.Close()
		if same {
			return path, nil
		}
	}
	return "", fmt.Errorf("no library %s in %s", name, strings.Join(dirs, ", "))
}

// interpreter returns the loader of a program; "" for a library or a static program.
func interpreter(f *elf.File) string {
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return ""
		}
		return strings.TrimRight(string(b), "\x00")
	}
	return ""
}
