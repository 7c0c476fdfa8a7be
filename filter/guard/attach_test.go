package guard

import (
	"errors"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newInterface creates a network namespace with a veth pair, lets the test's thread enter it, and
// returns the index of one end. The namespace ends with the test.
func newInterface(t *testing.T) (index int) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread, and with it the namespace, ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "pod"}, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	one, err := netlink.LinkByName("pod")
	if err != nil {
		t.Fatal(err)
	}
	return one.Attrs().Index
}

// attachedTo returns the number of our programs that are attached to an interface with TCX, and
// the number that are attached as filters of traffic control.
func (g *Guard) attachedTo(t *testing.T, index int) (tcx, filters int) {
	t.Helper()
	for _, s := range sides {
		there, err := g.programs.at(s, index)
		found, filtersErr := s.filters(index)
		if err != nil && !errors.Is(err, unix.EINVAL) || filtersErr != nil {
			t.Fatal(err, filtersErr)
		}
		tcx += len(there.ours)
		filters += len(found)
	}
	return tcx, filters
}

// needTCX skips a test on kernels before 6.6.
func (g *Guard) needTCX(t *testing.T) {
	t.Helper()
	if _, err := g.programs.at(fromPod, 1); noTCX(err) {
		t.Skip("needs TCX, which Linux has since 6.6")
	}
}

// The programs of an agent replace those of earlier agents, whether these attached them with TCX
// or as filters of traffic control. Cleanup detaches all of them.
func TestAttach(t *testing.T) {
	old, now := openGuard(t), openGuard(t)
	now.needTCX(t)
	index := newInterface(t)
	p := port{index: index, name: "pod"}
	expect := func(what string, tcx, filters int) {
		t.Helper()
		if a, b := now.attachedTo(t, index); a != tcx || b != filters {
			t.Errorf("%s: %d with TCX and %d filters, want %d and %d", what, a, b, tcx, filters)
		}
		if got := now.programs.present(index, tcx+filters > 1); got != (tcx+filters > 0) {
			t.Errorf("%s: present is %v", what, got)
		}
	}
	expect("before attaching", 0, 0)
	for range 2 {
		if err := errors.Join(fromPod.attachFilter(index, old.objs.SluiceFromPod), toPod.attachFilter(index, old.objs.SluiceToPod)); err != nil {
			t.Fatal(err)
		}
		expect("as filters", 0, 2)
	}
	for _, g := range []*Guard{old, now, now} {
		if err := g.attachPort(p); err != nil {
			t.Fatal(err)
		}
		expect("with TCX", 2, 0)
	}
	extra := link.RawAttachProgramOptions{Target: index, Attach: fromPod.tcx, Anchor: link.Head()}
	for _, extra.Program = range []*ebpf.Program{old.objs.SluiceFromPod, openGuard(t).objs.SluiceFromPod} {
		if err := link.RawAttachProgram(extra); err != nil {
			t.Fatal(err)
		}
	}
	expect("with programs that other agents have added", 4, 0)
	if err := now.attachPort(p); err != nil {
		t.Fatal(err)
	}
	expect("with TCX again", 2, 0)
	info, err := now.objs.SluiceFromPod.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	if there, err := now.programs.at(fromPod, index); err != nil || len(there.all) != 1 || there.ours[0] != id {
		t.Errorf("programs %v are attached (error %v), want only the last one, %d", there, err, id)
	}
	if removed, err := Cleanup(now.programs.pins.bpffs); err != nil || len(removed.Interfaces) != 1 {
		t.Errorf("removed from %v, %v", removed, err)
	}
	expect("after Cleanup", 0, 0)

	p.tunnel = true
	if err := now.attachPort(p); err != nil {
		t.Fatal(err)
	}
	expect("at a tunnel", 1, 0)
	if err := fromPod.attachFilter(index, old.objs.SluiceFromPod); err != nil {
		t.Fatal(err)
	}
	if removed, err := Cleanup(now.programs.pins.bpffs); err != nil || len(removed.Interfaces) != 1 {
		t.Errorf("removed from %v, %v", removed, err)
	}
	expect("after Cleanup of a tunnel", 0, 0)
	if _, err := Cleanup(""); err != nil {
		t.Error(err)
	}
}

// A program that another process has detached is noticed and attached again, on either side.
func TestDetachedProgramIsAttachedAgain(t *testing.T) {
	for _, s := range []side{fromPod, toPod} {
		t.Run(s.program, func(t *testing.T) {
			g := openGuard(t)
			g.needTCX(t)
			index := newInterface(t)
			g.on, g.found.ports = true, []port{{index: index, name: "pod"}}
			for _, what := range []string{"at first", "after it was detached"} {
				if err := g.attach(); err != nil {
					t.Fatal(err)
				}
				if tcx, filters := g.attachedTo(t, index); tcx != 2 || filters != 0 || !g.intact() {
					t.Errorf("%s: %d programs with TCX and %d filters; intact is %v", what, tcx, filters, g.intact())
				}
				if _, _, err := g.programs.remove(s, index); err != nil {
					t.Fatal(err)
				}
				if g.intact() {
					t.Error("a detached program is not noticed")
				}
			}
		})
	}
}
