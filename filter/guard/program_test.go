package guard

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// loopback is the index of the interface on which the kernel runs programs in tests.
const loopback = 1

// openGuard opens a guard that is attached to nothing.
func openGuard(tb testing.TB) *Guard {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("needs root: it loads programs")
	}
	return openGuardAt(tb, bpfFS(tb))
}

// openGuardAt opens a guard that pins its programs in the BPF file system at the given path.
func openGuardAt(tb testing.TB, path string) *Guard {
	tb.Helper()
	g, err := Open(Options{AllowedMark: 0x10, BPFFS: path})
	if err != nil {
		tb.Skipf("the kernel does not accept the programs: %v", err)
	}
	tb.Cleanup(func() { _ = g.Close() })
	return g
}

// bpfFS returns a path at which the caller may mount a BPF file system. When the test ends, the file
// system is unmounted.
func bpfFS(tb testing.TB) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "bpf")
	tb.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			tb.Error(err)
		}
	})
	return dir
}

// portValue.IPv4 and IPv6 are a fast path: frames of these addresses pass without further checks.
// With and without the fast path, each frame gets the same verdict and mark.
func TestOrdinaryFramesPassAllChecks(t *testing.T) {
	g := openGuard(t)
	r := rand.New(rand.NewPCG(1, 2))
	const ports, each = 100, 500
	for range ports {
		full := randomPort(r)
		fast := full
		value := full.ports[loopback]
		value.ordinary(listedAt(full), nil)
		fast.ports = map[uint32]portValue{loopback: value}
		for range each {
			frame := randomFrame(r)
			for name, program := range map[string]*ebpf.Program{"from": g.objs.SluiceFromPod, "to": g.objs.SluiceToPod} {
				if got, want := outcomeAt(t, g, program, fast, frame), outcomeAt(t, g, program, full, frame); got != want {
					t.Fatalf("%s: %x at %+v: %+v, with all checks %+v", name, frame, value, got, want)
				}
			}
		}
	}
}

// outcome is the result of a program for a frame.
type outcome struct {
	verdict int32
	mark    uint32
}

func outcomeAt(t *testing.T, g *Guard, program *ebpf.Program, st state, frame []byte) outcome {
	t.Helper()
	if err := g.objs.write(&g.written, st); err != nil {
		t.Fatal(err)
	}
	var after skBuff
	verdict, err := program.Run(&ebpf.RunOptions{Data: frame, Context: skBuff{Ifindex: loopback}, ContextOut: &after})
	if err != nil {
		t.Fatal(err)
	}
	return outcome{int32(verdict), after.Mark}
}

// skBuff is struct __sk_buff of linux/bpf.h. The kernel requires the unnamed fields to be zero.
type skBuff struct {
	_       [2]uint32
	Mark    uint32
	_       [7]uint32
	Ifindex uint32
	_       [37]uint32
}

var (
	frameAddrs4 = addrs("10.0.0.1", "10.0.0.2", "10.0.0.3", "169.254.1.1", "192.0.2.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "10.0.0.255")
	frameAddrs6 = addrs("fd00::1", "fd00::2", "fe80::1", "fe80::2", "fd00::9", "::", "ff02::1", "ff02::1:2")
)

// randomPort returns maps with random flags for the loopback interface, and with random entries
// for all test addresses except the first two, which are the addresses of the interface's pod.
func randomPort(r *rand.Rand) state {
	st := newState()
	st.ports[loopback] = portValue{Flags: r.Uint32N(32)}
	st.tunnels[bigEndian(4789)] = 1
	for i, a := range append(addrs(frameAddrs4[0].String(), frameAddrs6[0].String()), append(frameAddrs4[1:], frameAddrs6[1:]...)...) {
		switch {
		case i < 2: // the pod's addresses: as in the guard, in the maps only if the port has the flag primaryPort
			if st.ports[loopback].Flags&primaryPort != 0 {
				st.own[place{a.As16(), loopback}], st.known[a.As16()] = listed, ofPod
			}
		case r.IntN(4) == 0:
			st.own[place{a.As16(), loopback}] = extra
		default:
			st.known[a.As16()] = r.Uint32N(16)
		}
	}
	return st
}

// listedAt returns the addresses in st that the API lists for the pod behind the interface.
func listedAt(st state) (found []netip.Addr) {
	for at, how := range st.own {
		if how == listed {
			found = append(found, netip.AddrFrom16(at.Address).Unmap())
		}
	}
	return found
}

// pick returns a random element of from, most often the first.
func pick[T any](r *rand.Rand, from ...T) T {
	if r.IntN(3) == 0 {
		return from[0]
	}
	return from[r.IntN(len(from))]
}

// randomFrame returns a random frame: to the pod, from it, or neither. It often has the protocol
// and addresses of an ordinary frame.
func randomFrame(r *rand.Rand) []byte {
	frame := append([]byte{pick[byte](r, 2, 1, 0xff), 0, 0, 0, 0, 1}, 2, 0, 0, 0, 0, 2)
	upper := make([]byte, 24)
	for at := 0; at < 8; at += 4 { // the ports are at 0, or at 4 after 4 bytes of IPv4 options
		binary.BigEndian.PutUint16(upper[at:], pick[uint16](r, 4711, 68, 546))
		binary.BigEndian.PutUint16(upper[at+2:], pick[uint16](r, 80, 4789, 67, 547))
	}
	protocols := []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, unix.IPPROTO_IPIP, unix.IPPROTO_IPV6, unix.IPPROTO_GRE, unix.IPPROTO_IGMP, unix.IPPROTO_HOPOPTS, unix.IPPROTO_FRAGMENT, unix.IPPROTO_DSTOPTS}
	protocol := pick(r, protocols...)
	if protocol == unix.IPPROTO_ICMPV6 || protocol == unix.IPPROTO_ICMP {
		upper[0] = pick[byte](r, 128, 133, 134, 135, 136, 137, 143, 5, 9)
	}
	if r.IntN(10) == 0 {
		frame = append(frame, 0x81, 0, 0, pick[byte](r, 0, 7))
	}
	if r.IntN(2) == 0 {
		ip := []byte{pick[byte](r, 0x45, 0x46), 0, 0, 60, 0, 0, pick[byte](r, 0x40, 0, 0x20), pick[byte](r, 0, 9), 64, protocol, 0, 0}
		ip = append(ip, pick(r, frameAddrs4...).AsSlice()...)
		ip = append(ip, pick(r, frameAddrs4...).AsSlice()...)
		return append(append(append(frame, 8, 0), ip...), upper...)
	}
	ip := []byte{0x60, 0, 0, 0, 0, 24, protocol, pick[byte](r, 255, 64)}
	ip = append(ip, pick(r, frameAddrs6...).AsSlice()...)
	ip = append(ip, pick(r, frameAddrs6...).AsSlice()...)
	return append(append(append(frame, 0x86, 0xdd), ip...), upper...)
}
