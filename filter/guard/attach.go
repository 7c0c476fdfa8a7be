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

// Programs are attached to each side of an interface, and stay when the agent ends. Linux 6.6
// and later can attach them with TCX. Older kernels need a filter in a clsact qdisc, which is
// costly: to add the qdisc, the kernel stops the interface for some milliseconds and drops the
// packets sent there meanwhile (qdisc_graft, dev_deactivate).

// side is one of the two sides of an interface. An agent recognises the programs and filters of
// other agents, of any version, by their names.
type side struct {
	tcx     ebpf.AttachType
	parent  uint32 // parent of our filters in traffic control
	program string // name of our program in the kernel
	filter  string // name of our filter
}

var (
	fromPod = side{ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS, "sluice_from_pod", "sluice-from-pod"}
	toPod   = side{ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS, "sluice_to_pod", "sluice-to-pod"}
)

// The position of our filters: before all others of an interface.
const (
	priority = 1
	handle   = 0x51
)

// errNoTCX means that the kernel can attach programs only as filters.
var errNoTCX = errors.New("the kernel has no TCX (Linux 6.6)")

// attachOutside attaches sluice_from_pod to an interface without a pod. It returns errNoTCX
// instead of adding a qdisc, which would stop the interface.
func (o *programObjects) attachOutside(index int) error {
	err := fromPod.attachTCX(index, o.SluiceFromPod)
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		return errNoTCX
	}
	return err
}

// attach attaches the programs to an interface. A tunnel gets sluice_from_pod only.
func (o *programObjects) attach(p port) error {
	if err := fromPod.attach(p.index, o.SluiceFromPod); err != nil || p.tunnel {
		return err
	}
	return toPod.attach(p.index, o.SluiceToPod)
}

// attach attaches a program, and replaces the programs of earlier agents.
func (s side) attach(index int, program *ebpf.Program) error {
	err := s.attachTCX(index, program)
	switch {
	case err == nil:
		_, err = s.removeFilters(index) // an earlier agent may have used filters instead of TCX
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL):
		err = s.attachFilter(index, program)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", s.program, err)
	}
	return nil
}

// attachTCX attaches a program to an interface. If the interface already has a program of Sluice
// on this side, attachTCX replaces it in one step, at the same position, so that the interface
// is never without a program. Otherwise it attaches the program before all others.
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
		before, err := ebpf.NewProgramFromID(old[0]) // the kernel takes a file descriptor here, not an ID
		if err != nil {
			return err
		}
		defer before.Close()
		opts.Anchor = link.ReplaceProgram(before)
	}
	return link.RawAttachProgram(opts)
}

// attached returns the IDs of Sluice's programs on this side of an interface, whichever agent
// attached them.
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

// gone reports whether err means that an interface no longer exists.
func gone(err error) bool { return errors.Is(err, unix.ENODEV) }

// present reports whether sluice_from_pod is attached to an interface, with TCX or as a filter.
// If the parameter "both" is set, sluice_to_pod must be attached as well.
func present(index int, both bool) bool {
	return fromPod.present(index) && (!both || toPod.present(index))
}

func (s side) present(index int) bool {
	ids, _ := s.attached(index)
	return len(ids) > 0 || len(s.filters(index)) > 0
}

// first reports whether TCX runs a program of Sluice before all other programs at an interface,
// so that no other program can let frames bypass it.
func first(index int) bool {
	there, err := link.QueryPrograms(link.QueryOptions{Target: index, Attach: fromPod.tcx})
	if err != nil || len(there.Programs) == 0 {
		return false
	}
	name, err := programName(there.Programs[0].ID)
	return err == nil && name == fromPod.program
}

// filters returns our filters on this side of an interface.
func (s side) filters(index int) (found []netlink.Filter) {
	all, _ := netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, s.parent)
	for _, f := range all {
		if bpf, is := f.(*netlink.BpfFilter); is && bpf.Name == s.filter {
			found = append(found, f)
		}
	}
	return found
}

// removeFilters removes our filters from this side of an interface, and reports whether there
// were any. The qdisc stays, because removing it would stop the interface, as adding it does.
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

// remove removes our programs and filters from this side of an interface, and reports whether
// there were any.
func (s side) remove(index int) (bool, error) {
	any, err := s.removeFilters(index)
	ids, _ := s.attached(index) // an error means that there is no TCX, and so no such program
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

// Cleanup detaches the programs of all agents from all interfaces. It returns the names of the
// interfaces that had programs, even if it also returns an error.
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
			errs = append(errs, fmt.Errorf("detach the guard from interface %s: %w", l.Attrs().Name, err))
		}
		if from || to {
			removed = append(removed, l.Attrs().Name)
		}
	}
	return removed, errors.Join(errs...)
}
