package guard

import (
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// When an agent has attached its programs everywhere, only these are pinned: not those of an agent
// that it has replaced, nor those of one that has ended before it attached any. Lost pins come back.
func TestOnlyProgramsInUseArePinned(t *testing.T) {
	path := bpfFS(t)
	old, unused, now := openGuardAt(t, path), openGuardAt(t, path), openGuardAt(t, path)
	now.needTCX(t)
	newInterface(t)
	movePeer(t)
	begin := func(g *Guard) {
		t.Helper()
		if err := g.Begin(snapshotOf(t, "")); err != nil {
			t.Fatal(err)
		}
	}
	check := func(when string, want ...*Guard) {
		t.Helper()
		found, err := now.programs.pins.list()
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 2*len(want) {
			t.Errorf("%s: %d pins, want those of %d agents", when, len(found), len(want))
		}
		for _, g := range want {
			for id := range g.programs.mine {
				if _, is := found[id]; !is {
					t.Errorf("%s: a program of an agent is not pinned", when)
				}
			}
		}
	}
	begin(old)
	if err := unused.programs.pin(); err != nil {
		t.Fatal(err)
	}
	check("before", old, unused)
	old.Yield()
	begin(now)
	check("after", now)
	begin(old) // as if the other one had died
	check("again", old)
	if _, err := old.programs.pins.removeAll(); err != nil {
		t.Fatal(err)
	}
	check("removed")
	old.reconcile()
	check("pinned again", old)
	if removed, err := Cleanup(path); err != nil || len(removed.Interfaces) != 1 || removed.Pins == "" {
		t.Errorf("removed %+v, error %v", removed, err)
	}
	check("after Cleanup")
}

// movePeer moves the other end of the test's veth pair to another network namespace, so that it
// leads to a pod.
func movePeer(t *testing.T) {
	t.Helper()
	peer, err := netlink.LinkByName("peer")
	if err != nil {
		t.Fatal(err)
	}
	namespaces := make(chan *os.File, 1)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		defer close(namespaces)
		if unix.Unshare(unix.CLONE_NEWNET) != nil {
			return
		}
		if f, err := os.Open("/proc/thread-self/ns/net"); err == nil {
			namespaces <- f
		}
	}()
	pod := <-namespaces
	if pod == nil {
		t.Fatal("cannot create a network namespace")
	}
	t.Cleanup(func() { _ = pod.Close() })
	if err := netlink.LinkSetNsFd(peer, int(pod.Fd())); err != nil {
		t.Fatal(err)
	}
}

// A program is recognised by its pin only as long as the file is this program.
func TestPinOfAnotherProgram(t *testing.T) {
	path := bpfFS(t)
	one := openGuardAt(t, path)
	if err := one.programs.pins.add(one.objs.SluiceFromPod); err != nil {
		t.Fatal(err)
	}
	found, err := one.programs.pins.list()
	if err != nil {
		t.Fatal(err)
	}
	for id, at := range found {
		p, err := at.open()
		if err != nil {
			t.Fatal(err)
		}
		_ = p.Close()
		at.id = id + 1
		if _, err := at.open(); err == nil {
			t.Error("another program is taken for the pinned one")
		}
	}
	if len(found) != 1 {
		t.Errorf("%d pins, want 1", len(found))
	}
}
