package guard

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// recognizer finds the programs of Sluice among those that TCX runs at an interface, and opens them.
// The kernel reports only their IDs, and a process without CAP_SYS_ADMIN, such as an agent in the
// container of our DaemonSet, may not open a program by its ID. So agents pin their programs, and
// recognise those of other agents by the pins. Programs without pins, which agents of earlier
// versions have left, are recognised by their names, if the kernel permits it.
//
// A recognizer is not safe for concurrent use.
type recognizer struct {
	pins  pins
	mine  map[ebpf.ProgramID]*ebpf.Program // the programs of this process
	known map[ebpf.ProgramID]pinned        // pinned programs, as found by the last read
}

// newRecognizer returns a recognizer for a process that has loaded the given programs.
func newRecognizer(bpffs string, mine ...*ebpf.Program) (*recognizer, error) {
	r := &recognizer{pins: pins{bpffs}, mine: make(map[ebpf.ProgramID]*ebpf.Program)}
	for _, p := range mine {
		id, _, err := identify(p)
		if err != nil {
			return nil, err
		}
		r.mine[id] = p
	}
	return r, nil
}

// identify returns the ID of a program, and its name in the kernel.
func identify(p *ebpf.Program) (id ebpf.ProgramID, name string, err error) {
	info, err := p.Info()
	if err != nil {
		return 0, "", fmt.Errorf("identify a program: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return 0, "", errors.New("identify a program: the kernel reports no ID")
	}
	return id, info.Name, nil
}

// attachments are the programs that TCX runs on one side of an interface, in this order.
type attachments struct {
	all     []ebpf.ProgramID
	ours    []ebpf.ProgramID // those of Sluice, whichever agent attached them
	unknown []ebpf.ProgramID // those that may be Sluice's, but this process may not open them
}

// at returns the programs on a side of an interface.
func (r *recognizer) at(s side, index int) (a attachments, err error) {
	there, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: s.tcx})
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("%w (this needs the capabilities BPF and NET_ADMIN)", err)
	}
	if err != nil {
		return a, err
	}
	for _, one := range there.Programs {
		a.all = append(a.all, one.ID)
		if _, linked := one.LinkID(); linked {
			continue // agents attach their programs without links, so that they stay
		}
		switch name, err := r.name(one.ID); {
		case err == nil && name == s.program:
			a.ours = append(a.ours, one.ID)
		case errors.Is(err, unix.EPERM):
			a.unknown = append(a.unknown, one.ID)
		case err != nil && !errors.Is(err, fs.ErrNotExist): // otherwise, the program is gone
			return a, err
		}
	}
	return a, nil
}

// name returns the name of a program in the kernel.
func (r *recognizer) name(id ebpf.ProgramID) (string, error) {
	p, err := r.open(id)
	if err != nil {
		return "", err
	}
	defer p.Close()
	_, name, err := identify(p)
	return name, err
}

// open opens a program. The error is EPERM if the program is neither pinned nor of this process,
// and the process lacks CAP_SYS_ADMIN.
func (r *recognizer) open(id ebpf.ProgramID) (*ebpf.Program, error) {
	if p := r.mine[id]; p != nil {
		return p.Clone()
	}
	var unread error
	if _, is := r.known[id]; !is { // another agent may have pinned it since the last read
		unread = r.read()
	}
	if at, is := r.known[id]; is {
		if p, err := at.open(); err == nil {
			return p, nil
		}
		delete(r.known, id) // its pin is gone
	}
	p, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return nil, errors.Join(err, unread)
	}
	return p, nil
}

func (r *recognizer) read() (err error) {
	r.known, err = r.pins.list()
	return err
}

// attach attaches a program of this process to an interface. If the interface already has a program
// of Sluice on this side, attach replaces it in one step, at the same position, so that the
// interface is never without a program, and detaches any further ones. Otherwise it attaches the
// program before all others.
func (r *recognizer) attach(s side, index int, program *ebpf.Program) error {
	there, err := r.at(s, index)
	if err != nil {
		return err
	}
	opts := link.RawAttachProgramOptions{Target: index, Program: program, Attach: s.tcx, Anchor: link.Head()}
	var mine, others []ebpf.ProgramID
	for _, id := range there.ours {
		if r.mine[id] != nil {
			mine = append(mine, id)
		} else {
			others = append(others, id)
		}
	}
	if len(mine) == 0 && len(others) > 0 {
		before, err := r.open(others[0]) // the kernel takes a file descriptor here, not an ID
		if err != nil {
			return err
		}
		defer before.Close()
		opts.Anchor, others = link.ReplaceProgram(before), others[1:]
	}
	if len(mine) == 0 {
		if err := link.RawAttachProgram(opts); err != nil {
			return err
		}
	}
	return r.detach(s, index, others...)
}

// detach detaches programs, of whichever agent, from an interface.
func (r *recognizer) detach(s side, index int, ids ...ebpf.ProgramID) error {
	var errs []error
	for _, id := range ids {
		if err := r.detachOne(s, index, id); err != nil && !gone(err) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (r *recognizer) detachOne(s side, index int, id ebpf.ProgramID) error {
	program, err := r.open(id)
	if err != nil {
		return err
	}
	defer program.Close()
	return link.RawDetachProgram(link.RawDetachProgramOptions{Target: index, Program: program, Attach: s.tcx})
}

// detachMine detaches the programs of this process from a side of an interface.
func (r *recognizer) detachMine(s side, index int) error {
	there, err := r.at(s, index)
	if err != nil && !gone(err) && !noTCX(err) {
		return err
	}
	mine := slices.DeleteFunc(there.ours, func(id ebpf.ProgramID) bool { return r.mine[id] == nil })
	return r.detach(s, index, mine...)
}

// present reports whether sluice_from_pod is attached to an interface, with TCX or as a filter.
// If the parameter "both" is set, sluice_to_pod must be attached as well.
func (r *recognizer) present(index int, both bool) bool {
	return r.presentAt(fromPod, index) && (!both || r.presentAt(toPod, index))
}

func (r *recognizer) presentAt(s side, index int) bool {
	there, _ := r.at(s, index) // an error counts as absent: attach then reports it
	if len(there.ours) > 0 {
		return true
	}
	filters, _ := s.filters(index)
	return len(filters) > 0
}

// first reports whether TCX runs a program of Sluice before all other programs at an interface,
// so that no other program can let frames bypass it.
func (r *recognizer) first(index int) bool {
	there, err := r.at(fromPod, index)
	return err == nil && len(there.ours) > 0 && there.ours[0] == there.all[0]
}

// remove removes the programs and filters of all agents from a side of an interface. It returns
// whether there were any, and the programs that it could not recognise.
func (r *recognizer) remove(s side, index int) (any bool, unknown []ebpf.ProgramID, err error) {
	any, err = s.removeFilters(index)
	there, tcxErr := r.at(s, index)
	if noTCX(tcxErr) || gone(tcxErr) {
		tcxErr = nil
	}
	return any || len(there.ours) > 0, there.unknown, errors.Join(err, tcxErr, r.detach(s, index, there.ours...))
}
