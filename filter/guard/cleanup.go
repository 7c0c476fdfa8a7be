package guard

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sluice/filter/event"
)

// unrecognized lists programs of which this process cannot find out whether they are Sluice's.
type unrecognized struct{ programs []string }

func (u *unrecognized) add(s side, index int, ids []ebpf.ProgramID) {
	for _, id := range ids {
		at := fmt.Sprintf("interface %d", index)
		if one, err := net.InterfaceByIndex(index); err == nil {
			at = one.Name
		}
		u.programs = append(u.programs, fmt.Sprintf("%d (%s, %s)", id, at, s.direction))
	}
}

// warn logs the programs, if any.
func (u *unrecognized) warn(log *slog.Logger) {
	if len(u.programs) > 0 {
		log.Warn("cannot recognise all programs at interfaces", event.GuardUnrecognized.Attr(), "err", u)
	}
}

// Error implements error.
func (u *unrecognized) Error() string {
	return fmt.Sprintf("programs at interfaces may be the guard of an earlier agent: %s. Without the capability SYS_ADMIN, "+
		"only programs that are pinned in the BPF file system (--bpffs) can be recognised; to remove those of earlier agents, "+
		"run sluice rules --remove as root on the node, while no agent runs", strings.Join(u.programs, ", "))
}

// Removed is what Cleanup has removed.
type Removed struct {
	Interfaces []string // names of interfaces that had programs
	Pins       string   // directory of pinned programs; empty if there was none
}

// Cleanup detaches the programs of all agents from all interfaces, and removes their pins in the BPF
// file system that is mounted at the given path (empty: at the usual one). It returns what it has
// removed, even if it also returns an error, as it does if it cannot recognise all programs.
func Cleanup(bpffs string) (Removed, error) {
	r, err := newRecognizer(bpffs)
	if err != nil {
		return Removed{}, err
	}
	removed := Removed{}
	var unknown *unrecognized
	if removed.Interfaces, unknown, err = r.detachAll(); err == nil { // otherwise, the pins are needed for another attempt
		removed.Pins, err = r.pins.removeAll()
	}
	if len(unknown.programs) > 0 {
		err = errors.Join(err, unknown)
	}
	return removed, err
}

// detachAll detaches the programs of all agents from all interfaces. It returns the names of the
// interfaces that had programs, even if it also returns an error.
func (r *recognizer) detachAll() (names []string, unknown *unrecognized, err error) {
	unknown = &unrecognized{}
	links, err := netlink.LinkList()
	if err = interrupted(err); err != nil {
		return nil, unknown, fmt.Errorf("list the node's interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		name, found := l.Attrs().Name, false
		for _, s := range sides {
			any, rest, err := r.remove(s, l.Attrs().Index)
			found = found || any
			unknown.add(s, l.Attrs().Index, rest)
			if err != nil {
				errs = append(errs, fmt.Errorf("detach the guard from interface %s: %w", name, err))
			}
			if errors.Is(err, unix.EPERM) {
				return names, unknown, errors.Join(errs...) // the other interfaces would fail for the same reason
			}
		}
		if found {
			names = append(names, name)
		}
	}
	return names, unknown, errors.Join(errs...)
}
