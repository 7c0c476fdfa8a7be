package guard

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sluice/filter/bpffs"
)

// pins are the pinned programs of all agents in this network namespace. They are in one directory,
// so that each agent finds those of the others. The kernel's flow cache (cache/bpf) removes
// directories of dead agents whose names begin with "sluice-", so this name begins differently.
type pins struct {
	bpffs string // mount point of the BPF file system; empty means bpffs.Default
}

// pinned is a pinned program.
type pinned struct {
	path string
	id   ebpf.ProgramID
}

// open opens the program. If the file is gone, or is another program by now, it returns an error.
func (p pinned) open() (*ebpf.Program, error) {
	program, err := ebpf.LoadPinnedProgram(p.path, nil)
	if err != nil {
		return nil, err
	}
	id, _, err := identify(program)
	if err == nil && id != p.id {
		err = fmt.Errorf("%s is another program: %w", p.path, fs.ErrNotExist)
	}
	if err != nil {
		return nil, errors.Join(err, program.Close())
	}
	return program, nil
}

// dir returns the directory of the pins.
func (p pins) dir() (string, error) {
	namespace, err := bpffs.Namespace()
	return filepath.Join(cmp.Or(p.bpffs, bpffs.Default), fmt.Sprintf("sluice_guard-%d", namespace)), err
}

// list returns the pinned programs by ID.
func (p pins) list() (map[ebpf.ProgramID]pinned, error) {
	found := make(map[ebpf.ProgramID]pinned)
	dir, err := p.dir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return found, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the pinned programs of the guard: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		program, err := ebpf.LoadPinnedProgram(path, nil)
		if err != nil {
			continue // it has just been removed, or it is no program: then no interface runs it
		}
		if id, _, err := identify(program); err == nil {
			found[id] = pinned{path, id}
		}
		_ = program.Close()
	}
	return found, nil
}

// add pins a program, unless it is pinned already. It mounts the BPF file system if necessary.
func (p pins) add(program *ebpf.Program) error {
	id, name, err := identify(program)
	if err != nil {
		return err
	}
	dir, err := p.dir()
	if err != nil {
		return err
	}
	path := filepath.Join(dir, fmt.Sprintf("%s-%d", name, id))
	if there, err := (pinned{path, id}).open(); err == nil {
		return there.Close()
	}
	if err := bpffs.Mount(filepath.Dir(dir)); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return bpffs.Replace(path, program)
}

// removeAll removes the directory with all pins, and returns its path, or an empty string if there
// was none.
func (p pins) removeAll() (string, error) {
	dir, err := p.dir()
	if err != nil || !bpffs.Mounted(dir) {
		return "", err
	}
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("remove the pinned programs of the guard: %w", err)
	}
	return dir, nil
}

// pin pins the programs of this process, so that other agents recognise them. Pin programs before
// they are attached: then no program is without a pin, whenever the process ends.
func (r *recognizer) pin() error {
	if _, err := link.QueryPrograms(link.QueryOptions{Target: 1, Attach: fromPod.tcx}); noTCX(err) {
		return nil // filters are recognised by their names
	}
	for _, program := range r.mine {
		if err := r.pins.add(program); err != nil {
			return fmt.Errorf("pin the programs of the guard: %w", err)
		}
	}
	return nil
}

// prune removes the pins of other agents' programs that are not in use.
func (r *recognizer) prune(used map[ebpf.ProgramID]bool) error {
	if err := r.read(); err != nil {
		return err
	}
	var errs []error
	for id, at := range r.known {
		if r.mine[id] != nil || used[id] {
			continue
		}
		if err := os.Remove(at.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove a pinned program of an earlier agent: %w", err))
		}
		delete(r.known, id)
	}
	return errors.Join(errs...)
}
