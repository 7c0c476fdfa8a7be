// Package bpffs finds and mounts the BPF file system, in which the guard and the kernel's flow cache
// pin their programs.
package bpffs

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Default is the usual mount point of the BPF file system.
const Default = "/sys/fs/bpf"

// Mounted reports whether a path is in a BPF file system.
func Mounted(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && uint32(s.Type) == unix.BPF_FS_MAGIC
}

// Mount mounts the BPF file system at path, unless path is in one. To mount, the kernel requires
// CAP_SYS_ADMIN.
func Mount(path string) error {
	if Mounted(path) {
		return nil
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("mount the BPF file system: %w", err)
	}
	if err := unix.Mount("bpf", path, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return fmt.Errorf("mount the BPF file system on %s: %w", path, err)
	}
	return nil
}

// Replace pins a program at path, in place of whatever is there. The program may have been pinned
// before.
func Replace(path string, program *ebpf.Program) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	// Pin a clone, because the library regards the program itself as pinned even if its pin is gone.
	again, err := program.Clone()
	if err != nil {
		return err
	}
	return errors.Join(again.Pin(path), again.Close())
}

// Namespace returns the number of the network namespace, for the names of pins: agents in other
// namespaces may use the same BPF file system, and their pins must not be removed.
func Namespace() (uint64, error) {
	var s unix.Stat_t
	// Use thread-self, because a network namespace belongs to a thread.
	if err := unix.Stat("/proc/thread-self/ns/net", &s); err != nil {
		return 0, fmt.Errorf("find out the network namespace: %w", err)
	}
	return s.Ino, nil
}
