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

// needed returns the paths of the libraries that a program or library needs directly, and the path of
// its loader (elf(5): PT_INTERP, DT_NEEDED, DT_RUNPATH).
func needed(path string) ([]string, error) {
	f, err := elf.Open(path)
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
	dirs = append(dirs, systemDirs()...)
	var found []string
	for _, name := range names {
		lib, err := findLibrary(name, dirs, f)
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
func systemDirs() []string {
	var dirs []string
	for _, pattern := range []string{"/lib/*-linux-gnu*", "/usr/lib/*-linux-gnu*", "/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		matches, _ := filepath.Glob(pattern) // fails only for an invalid pattern
		dirs = append(dirs, matches...)
	}
	return dirs
}

// findLibrary returns the path of a library that an ELF file needs. The library must have the same
// machine and class as that file.
func findLibrary(name string, dirs []string, by *elf.File) (string, error) {
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err != nil {
			continue
		}
		f, err := elf.Open(path)
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
