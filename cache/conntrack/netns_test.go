package conntrack_test

import (
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/vishvananda/netns"
)

// namespace is a network namespace that lives as long as a test.
type namespace struct {
	tb     testing.TB
	handle netns.NsHandle
}

// newNamespace makes a network namespace with its loopback interface up.
func newNamespace(tb testing.TB) namespace {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: it makes network namespaces")
	}
	made := make(chan error)
	n := namespace{tb: tb}
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		var err error
		n.handle, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		tb.Fatalf("make a network namespace: %v", err)
	}
	tb.Cleanup(func() { _ = n.handle.Close() })
	n.run("ip", "link", "set", "lo", "up")
	return n
}

// do runs f on a thread in the namespace. Sockets stay in it.
func (n namespace) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(n.handle); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// run runs a command in the namespace.
func (n namespace) run(name string, args ...string) {
	n.tb.Helper()
	if err := n.do(func() error {
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			n.tb.Logf("%s", out)
		}
		return err
	}); err != nil {
		n.tb.Fatalf("%s %v: %v", name, args, err)
	}
}

// fill makes count UDP connections from 10.0.0.0/8 to the given destinations in
// turn, each with another source.
func (n namespace) fill(count int, to ...netip.Addr) {
	n.tb.Helper()
	c, err := conntrack.Dial(&netlink.Config{NetNS: int(n.handle)})
	if err != nil {
		n.tb.Fatal(err)
	}
	defer c.Close()
	for i := range count {
		src := netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
		f := conntrack.NewFlow(17, 0, src, to[i%len(to)], 40000, 53, 600, 0)
		if err := c.Create(f); err != nil {
			n.tb.Fatalf("create entry %d: %v", i, err)
		}
	}
}
