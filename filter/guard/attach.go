package guard

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A program has one place at each side of an interface, where it stays when the agent
// ends. Linux 6.6 has TCX for that. On older kernels the place is a filter of a qdisc,
// clsact, with a price: to add the qdisc the kernel stops the interface for some
// milliseconds and drops what is sent there (qdisc_graft, dev_deactivate).

// side is one of the two sides of an interface.
type side struct {
	tcx     ebpf.AttachType
	parent  uint32 // of filters
	program string // the name of ours in the kernel
	filter  string // and that of the filter. An agent of any version replaces both.
}

var (
	fromPod = side{ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS, "sluice_from_pod", "sluice-from-pod"}
	toPod   = side{ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS, "sluice_to_pod", "sluice-to-pod"}
)

// Where a filter of ours is among those of an interface: before those of others.
const (
	priority = 1
	handle   = 0x51
)

// errNoTCX reports that the kernel attaches programs only as filters.
var errNoTCX = errors.New("the kernel has no TCX (Linux 6.6)")

// attachOutside attaches the program to an interface without a pod, which is not worth a qdisc.
func (o *programObjects) attachOutside(index int) error {
	err := fromPod.attachTCX(index, o.SluiceFromPod)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		return errNoTCX
	}
	return err
}

// attach attaches the programs to an interface. A tunnel has only one.
func (o *programObjects) attach(p port) error {
	if err := fromPod.attach(p.index, o.SluiceFromPod); err != nil || p.tunnel {
		return err
	}
	return toPod.attach(p.index, o.SluiceToPod)
}

// attach attaches a program, and removes an earlier one.
func (s side) attach(index int, program *ebpf.Program) error {
	err := s.attachTCX(index, program)
	switch {
	case err == nil:
		_, err = s.removeFilters(index) // an agent's that had no TCX
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL):
		err = s.attachFilter(index, program)
	}
	if err != nil {
		return fmt.Errorf("put %s in place: %w", s.program, err)
	}
	return nil
}

// attachTCX puts a program before all others; it replaces the one of ours that is there
// without a moment in which neither is.
func (s side) attachTCX(index int, program *ebpf.Program) error {
	old, err := s.attached(index)
	if err != nil {
		return err
	}
	info, err := program.Info()
	if err != nil {
		return err
	}
	if id, _ := info.ID(); slices.Contains(old, id) {
		return nil
	}
	opts := link.RawAttachProgramOptions{Target: index, Program: program, Attach: s.tcx, Anchor: link.Head()}
	if len(old) > 0 {
		before, err := ebpf.NewProgramFromID(old[0]) // the kernel takes no id here
		if err != nil {
			return err
		}
		defer before.Close()
		opts.Anchor = link.ReplaceProgram(before)
	}
	return link.RawAttachProgram(opts)
}

// attached are our programs on this side of an interface, of any agent.
func (s side) attached(index int) (ids []ebpf.ProgramID, err error) {
	there, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: s.tcx})
	if err != nil {
		return nil, err
	}
	for _, one := range there.Programs {
		if name, err := programName(one.ID); err == nil && name == s.program {
			ids = append(ids, one.ID)
		}
	}
	return ids, nil
}

// programName returns the name of a program in the kernel.
func programName(id ebpf.ProgramID) (string, error) {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return "", err
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return "", err
	}
	return info.Name, nil
}

func (s side) attachFilter(index int, program *ebpf.Program) error {
	clsact := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc clsact: %w", err)
	}
	return netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: s.parent, Handle: handle, Priority: priority, Protocol: unix.ETH_P_ALL},
		Fd:          program.FD(), Name: s.filter, DirectAction: true,
	})
}

// gone says that an interface is not there any more.
func gone(err error) bool { return errors.Is(err, unix.ENODEV) }

// present reports whether a program of ours is attached to an interface.
func present(index int) bool {
	ids, _ := fromPod.attached(index)
	return len(ids) > 0 || len(fromPod.filters(index)) > 0
}

// first reports whether a program of ours is the first that is attached to an interface with
// TCX, so that no other can let frames pass by it.
func first(index int) bool {
	there, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: fromPod.tcx})
	if err != nil || len(there.Programs) == 0 {
		return false
	}
	name, err := programName(there.Programs[0].ID)
	return err == nil && name == fromPod.program
}

// filters are our filters on this side of an interface.
func (s side) filters(index int) (found []netlink.Filter) {
	all, _ := netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, s.parent)
	for _, f := range all {
		if bpf, is := f.(*netlink.BpfFilter); is && bpf.Name == s.filter {
			found = append(found, f)
		}
	}
	return found
}

// removeFilters takes our filters off this side of an interface, and reports whether there
// were any. The qdisc stays: to remove it stops the interface as adding it does.
func (s side) removeFilters(index int) (any bool, err error) {
	var errs []error
	for _, f := range s.filters(index) {
		any = true
		if err := netlink.FilterDel(f); err != nil && !gone(err) {
			errs = append(errs, err)
		}
	}
	return any, errors.Join(errs...)
}

// remove takes all that is ours off this side of an interface, and reports whether there
// was any.
func (s side) remove(index int) (bool, error) {
	any, err := s.removeFilters(index)
	ids, _ := s.attached(index) // without TCX there are none
	errs := []error{err}
	for _, id := range ids {
		any = true
		if err := s.detach(index, id); err != nil && !gone(err) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, err)
		}
	}
	return any, errors.Join(errs...)
}

func (s side) detach(index int, id ebpf.ProgramID) error {
	program, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err
	}
	defer program.Close()
	return link.RawDetachProgram(link.RawDetachProgramOptions{Target: index, Program: program, Attach: s.tcx})
}

// Cleanup takes the programs of any agent off the interfaces, and returns the
// names of those.
func Cleanup() (removed []string, err error) {
	links, err := netlink.LinkList()
	if err = interrupted(err); err != nil {
		return nil, fmt.Errorf("list the node's interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		from, err1 := fromPod.remove(l.Attrs().Index)
		to, err2 := toPod.remove(l.Attrs().Index)
		if err := errors.Join(err1, err2); err != nil {
			errs = append(errs, fmt.Errorf("take the guard off interface %s: %w", l.Attrs().Name, err))
		}
		if from || to {
			removed = append(removed, l.Attrs().Name)
		}
	}
	return removed, errors.Join(errs...)
}
