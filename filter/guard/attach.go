package guard

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Programs are attached to each side of an interface, and stay when the agent ends. Linux 6.6
// and later can attach them with TCX. Older kernels need a filter in a clsact qdisc, which is
// costly: to add the qdisc, the kernel stops the interface for some milliseconds and drops the
// packets sent there meanwhile (qdisc_graft, dev_deactivate).

// side is one of the two sides of an interface. An agent recognises the programs (see recognizer) and
// filters of other agents, of any version, by their names.
type side struct {
	direction string // as people call it
	tcx       ebpf.AttachType
	parent    uint32 // parent of our filters in traffic control
	program   string // name of our program in the kernel
	filter    string // name of our filter
}

var (
	fromPod = side{"ingress", ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS, "sluice_from_pod", "sluice-from-pod"}
	toPod   = side{"egress", ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS, "sluice_to_pod", "sluice-to-pod"}
	sides   = []side{fromPod, toPod}
)

// The position of our filters: before all others of an interface.
const (
	priority = 1
	handle   = 0x51
)

// errNoTCX means that the kernel can attach programs only as filters.
var errNoTCX = errors.New("the kernel has no TCX (Linux 6.6)")

// noTCX reports whether err means that the kernel has no TCX.
func noTCX(err error) bool {
	return errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

// attachOutside attaches sluice_from_pod to an interface without a pod. It returns errNoTCX
// instead of adding a qdisc, which would stop the interface.
func (g *Guard) attachOutside(index int) error {
	err := g.programs.attach(fromPod, index, g.objs.SluiceFromPod)
	if noTCX(err) {
		return errNoTCX
	}
	return err
}

// attachPort attaches the programs to a pod's interface or a tunnel. A tunnel gets sluice_from_pod
// only.
func (g *Guard) attachPort(p port) error {
	if err := g.attachAt(fromPod, p.index, g.objs.SluiceFromPod); err != nil || p.tunnel {
		return err
	}
	return g.attachAt(toPod, p.index, g.objs.SluiceToPod)
}

// attachAt attaches a program, and replaces the programs of earlier agents.
func (g *Guard) attachAt(s side, index int, program *ebpf.Program) error {
	err := g.programs.attach(s, index, program)
	switch {
	case err == nil:
		_, err = s.removeFilters(index) // an earlier agent may have used filters instead of TCX
	case noTCX(err):
		err = s.attachFilter(index, program)
	}
	if err != nil {
		return fmt.Errorf("attach %s: %w", s.program, err)
	}
	return nil
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

// filters returns our filters on this side of an interface.
func (s side) filters(index int) (found []netlink.Filter, err error) {
	all, err := netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, s.parent)
	// Other errors mean that the kernel has no filters, or that the library does not understand the
	// filters of another program.
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	for _, f := range all {
		if bpf, is := f.(*netlink.BpfFilter); is && bpf.Name == s.filter {
			found = append(found, f)
		}
	}
	return found, nil
}

// removeFilters removes our filters from this side of an interface, and reports whether there
// were any. The qdisc stays, because removing it would stop the interface, as adding it does.
func (s side) removeFilters(index int) (any bool, err error) {
	found, err := s.filters(index)
	errs := []error{err}
	for _, f := range found {
		if err := netlink.FilterDel(f); err != nil && !gone(err) {
			errs = append(errs, err)
		}
	}
	return len(found) > 0, errors.Join(errs...)
}
