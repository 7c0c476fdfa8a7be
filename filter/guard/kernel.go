package guard

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The names under which the programs stand on an interface. An agent of any version
// takes the place of those that bear them.
const (
	fromName = "sluice-from-pod"
	toName   = "sluice-to-pod"
)

// Where among the filters of an interface: before those of others.
const (
	priority = 1
	handle   = 0x51
)

// attach puts the programs on an interface. A tunnel has but one.
func attach(p port, from, to int) error {
	clsact := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: p.index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := netlink.QdiscAdd(clsact); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add qdisc clsact: %w", err)
	}
	if err := netlink.FilterReplace(bpfFilter(p.index, netlink.HANDLE_MIN_INGRESS, fromName, from)); err != nil {
		return fmt.Errorf("put %s in place: %w", fromName, err)
	}
	if p.tunnel {
		return nil
	}
	if err := netlink.FilterReplace(bpfFilter(p.index, netlink.HANDLE_MIN_EGRESS, toName, to)); err != nil {
		return fmt.Errorf("put %s in place: %w", toName, err)
	}
	return nil
}

func bpfFilter(index int, parent uint32, name string, fd int) *netlink.BpfFilter {
	return &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: parent, Handle: handle, Priority: priority, Protocol: unix.ETH_P_ALL},
		Fd:          fd, Name: name, DirectAction: true,
	}
}

// gone says that an interface is not there any more.
func gone(err error) bool { return errors.Is(err, unix.ENODEV) }

// present reports whether a program of ours is attached to an interface.
func present(index int) bool {
	return len(ours(index, netlink.HANDLE_MIN_INGRESS)) > 0
}

// ours are our filters on one side of an interface.
func ours(index int, parent uint32) (found []netlink.Filter) {
	filters, _ := netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, parent)
	for _, f := range filters {
		if bpf, is := f.(*netlink.BpfFilter); is && (bpf.Name == fromName || bpf.Name == toName) {
			found = append(found, f)
		}
	}
	return found
}

// RemoveTraces takes the programs of any agent off the interfaces, and returns the
// names of those. The qdiscs stay: to remove one, the kernel stops the interface for some
// milliseconds and drops what is sent there (qdisc_graft, dev_deactivate).
func RemoveTraces() (removed []string, err error) {
	links, err := netlink.LinkList()
	if err = interrupted(err); err != nil {
		return nil, fmt.Errorf("list the node's interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		any := false
		for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
			for _, f := range ours(l.Attrs().Index, parent) {
				if err := netlink.FilterDel(f); err != nil && !gone(err) {
					errs = append(errs, fmt.Errorf("take the guard off interface %s: %w", l.Attrs().Name, err))
				}
				any = true
			}
		}
		if any {
			removed = append(removed, l.Attrs().Name)
		}
	}
	return removed, errors.Join(errs...)
}

// write brings the maps from what they hold to what is wanted: addresses first, for a
// port is strict as soon as it is said to be a pod's.
func (o *programObjects) write(now *state, want state) error {
	return errors.Join(
		bring(o.Own, now.own, want.own), bring(o.Known, now.known, want.known),
		bring(o.Tunnels, now.tunnels, want.tunnels), bring(o.Ports, now.ports, want.ports),
	)
}

// bigEndian is a number in network byte order, as program.c compares it.
func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// bring brings a map up to date, and what is known of it.
func bring[K comparable](m *ebpf.Map, now, want map[K]uint32) error {
	for k, v := range want {
		if was, is := now[k]; is && was == v {
			continue
		}
		if err := m.Put(k, v); err != nil {
			return fmt.Errorf("tell the guard of the pods' interfaces: %w", err)
		}
		now[k] = v
	}
	for k := range now {
		if _, is := want[k]; is {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("tell the guard of the pods' interfaces: %w", err)
		}
		delete(now, k)
	}
	return nil
}
