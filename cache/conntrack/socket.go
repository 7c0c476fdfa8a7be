package conntrack

import (
	"io"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// send sends out to the kernel in one system call.
func send(raw syscall.RawConn, out []byte) error {
	var err error
	if e := raw.Write(func(fd uintptr) bool {
		err = retry(func() error { return unix.Sendto(int(fd), out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
		return err != unix.EAGAIN
	}); e != nil {
		return e
	}
	return err
}

// receive reads one datagram. A datagram that does not fit is an error, because its tail is
// lost.
func receive(raw syscall.RawConn, in []byte) (int, error) {
	var n int
	var err error
	if e := raw.Read(func(fd uintptr) bool {
		err = retry(func() (err error) {
			n, _, err = unix.Recvfrom(int(fd), in, unix.MSG_TRUNC)
			return err
		})
		return err != unix.EAGAIN
	}); e != nil {
		return 0, e
	}
	if err == nil && n > len(in) {
		return 0, io.ErrShortBuffer
	}
	return n, err
}

// memoryInfo holds the kernel's counters about the memory of a socket (SO_MEMINFO, linux/sock_diag.h).
type memoryInfo [9]uint32

// memoryDrops is the index, in a memoryInfo, of the number of messages that did not fit into the receive
// buffer: SK_MEMINFO_DROPS.
const memoryDrops = 8

func (i *memoryInfo) read(fd int) error {
	size := uint32(unsafe.Sizeof(*i))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(i)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		return errno
	}
	return nil
}

// retry repeats a system call that was interrupted by a signal.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}
