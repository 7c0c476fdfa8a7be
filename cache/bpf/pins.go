package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sluice/filter/bpffs"
)

// DefaultBPFFS is the usual mount point of the BPF file system.
const DefaultBPFFS = bpffs.Default

// pins is the directory of one agent's programs. The agent holds a lock on the directory while
// it runs, and the kernel releases the lock however the process ends. So other agents recognise
// the directory of a dead agent: it has no lock. Unlike a file with a process ID, this also
// works between containers that do not share their process IDs.
type pins struct {
	dir  string
	lock *os.File
}

// pinPrefix returns the prefix of the directory names of agents in this network namespace. The
// directories of agents in other namespaces must not be removed: their rules are not visible
// here.
func pinPrefix() (string, error) {
	namespace, err := bpffs.Namespace()
	return fmt.Sprintf("sluice-%d-", namespace), err
}

func newPins(path string) (*pins, error) {
	name, err := pinPrefix()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(path, name)
	if err != nil {
		return nil, err
	}
	lock, locked, err := lock(dir)
	if err == nil && !locked {
		err = fmt.Errorf("another process has locked %s", dir)
	}
	if err != nil {
		return nil, errors.Join(err, os.Remove(dir))
	}
	return &pins{dir, lock}, nil
}

// lock takes the lock of a directory; the second result is false if another process holds it.
func lock(dir string) (f *os.File, locked bool, err error) {
	if f, err = os.Open(dir); err != nil {
		return nil, false, err
	}
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case err == nil:
		return f, true, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, false, f.Close()
	default:
		return nil, false, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
}

// ensure makes the directory again if it is gone or replaced, and takes its lock.
func (p *pins) ensure() error {
	var held, there unix.Stat_t
	if err := unix.Fstat(int(p.lock.Fd()), &held); err != nil {
		return err
	}
	if unix.Stat(p.dir, &there) == nil && there.Ino == held.Ino && there.Dev == held.Dev {
		return nil
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	f, locked, err := lock(p.dir)
	if err == nil && !locked {
		err = fmt.Errorf("another process has locked %s", p.dir)
	}
	if err != nil {
		return err
	}
	old := p.lock
	p.lock = f
	return old.Close()
}

// remove removes the pins. Programs that rules refer to stay in the kernel.
func (p *pins) remove() error {
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("remove the pinned programs: %w", err)
	}
	return nil
}

// release releases the lock and leaves the pins.
func (p *pins) release() error { return p.lock.Close() }

// RemoveStale removes the pinned programs of dead agents of this network namespace, and
// returns their directories. Rules that still call the programs continue to work, but the legacy
// backend of iptables can no longer change a table that contains such a rule.
func RemoveStale(path string) (removed []string, err error) {
	if path == "" {
		path = DefaultBPFFS
	}
	if !bpffs.Mounted(path) {
		return nil, nil
	}
	name, err := pinPrefix()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, fmt.Errorf("list the pinned programs of dead agents: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), name) {
			continue
		}
		dir := filepath.Join(path, e.Name())
		f, locked, err := lock(dir)
		if locked {
			p := pins{dir, f}
			if err = errors.Join(p.remove(), p.release()); err == nil {
				removed = append(removed, dir)
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}
