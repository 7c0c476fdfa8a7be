package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The names under which the programs stand on an interface. An agent of any version
// takes the place of those that bear them.
const (
	fromName = "sluice-from-pod"
	toName   = "sluice-to-pod"
	// ownedName replaces fromName where an agent has added the qdisc, which may then be
	// removed with the programs: the next agent, or sluice rules --remove, knows it from
	// this name.
	ownedName = fromName + "+qdisc"
)

// Where among the filters of an interface: before those of others.
const (
	priority = 1
	handle   = 0x51
)

// sides are where an interface has filters.
func sides() [2]uint32 {
	return [...]uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS}
}

// attach puts the programs on an interface. A tunnel has but one.
func attach(p port, from, to int) error {
	name := fromName
	switch err := netlink.QdiscAdd(clsact(p.index)); {
	case err == nil || errors.Is(err, unix.EEXIST) && owned(p.index):
		name = ownedName
	case !errors.Is(err, unix.EEXIST):
		return fmt.Errorf("add qdisc clsact: %w", err)
	}
	if err := netlink.FilterReplace(bpfFilter(p.index, netlink.HANDLE_MIN_INGRESS, name, from)); err != nil {
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

// clsact is the qdisc that has tc's hooks.
func clsact(index int) netlink.Qdisc {
	return &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
}

// owned reports whether an agent has added the qdisc of an interface.
func owned(index int) bool {
	return slices.ContainsFunc(ours(index, netlink.HANDLE_MIN_INGRESS), func(f netlink.Filter) bool {
		bpf, is := f.(*netlink.BpfFilter)
		return is && bpf.Name == ownedName
	})
}

// removeQdisc removes the qdisc that an agent has added, if no filter is left on it. It
// stays if that cannot be known.
func removeQdisc(index int) error {
	for _, parent := range sides() {
		left, err := netlink.FilterList(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}, parent)
		if err != nil || len(left) > 0 {
			return nil
		}
	}
	if err := netlink.QdiscDel(clsact(index)); err != nil && !gone(err) && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("remove qdisc clsact: %w", err)
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
		if bpf, is := f.(*netlink.BpfFilter); is && (bpf.Name == fromName || bpf.Name == toName || bpf.Name == ownedName) {
			found = append(found, f)
		}
	}
	return found
}

// RemoveTraces takes the programs of any agent off the interfaces, and returns the names
// of those interfaces. A qdisc that an agent has added goes too, unless it has filters
// of others.
func RemoveTraces() (removed []string, err error) {
	links, err := netlink.LinkList()
	if err = interrupted(err); err != nil {
		return nil, fmt.Errorf("list the node's interfaces: %w", err)
	}
	var errs []error
	for _, l := range links {
		any, err := detach(l.Attrs().Index)
		if err != nil {
			errs = append(errs, fmt.Errorf("take the guard off interface %s: %w", l.Attrs().Name, err))
		}
		if any {
			removed = append(removed, l.Attrs().Name)
		}
	}
	return removed, errors.Join(errs...)
}

// detach takes the programs off an interface, and the qdisc if an agent has added it. It
// reports whether there were programs.
func detach(index int) (any bool, err error) {
	mayRemove := owned(index)
	var errs []error
	for _, parent := range sides() {
		for _, f := range ours(index, parent) {
			if err := netlink.FilterDel(f); err != nil && !gone(err) {
				errs = append(errs, err)
			}
			any = true
		}
	}
	if mayRemove {
		errs = append(errs, removeQdisc(index))
	}
	return any, errors.Join(errs...)
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
