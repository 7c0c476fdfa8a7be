package conntrack

import (
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxBurst is the number of datagrams that one system call reads.
	maxBurst = 64
	// eventSize is the room for a datagram. It exceeds the size of an event, which is some 400 bytes with
	// counts and times.
	eventSize = 4 << 10
)

// messageHeader is struct mmsghdr of recvmmsg(2).
type messageHeader struct {
	hdr unix.Msghdr
	len uint32
}

// burst reads several datagrams with one system call. It takes 256 KiB.
type burst struct {
	all     []byte
	iovecs  [maxBurst]unix.Iovec
	headers [maxBurst]messageHeader
}

func newBurst() *burst {
	b := &burst{all: make([]byte, maxBurst*eventSize)}
	for i := range b.headers {
		b.iovecs[i].Base = &b.all[i*eventSize]
		b.iovecs[i].SetLen(eventSize)
		b.headers[i].hdr.Iov = &b.iovecs[i]
		b.headers[i].hdr.SetIovlen(1)
	}
	return b
}

// receive reads up to maxBurst datagrams from a socket, without waiting. If a datagram does not fit,
// receive returns an error, because the tail of the datagram is lost.
func (b *burst) receive(fd int) (n int, err error) {
	err = retry(func() error {
		got, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), maxBurst, unix.MSG_DONTWAIT, 0, 0)
		if errno != 0 {
			return errno
		}
		n = int(got)
		return nil
	})
	if err == unix.EAGAIN {
		return 0, nil
	}
	for i := range n {
		if b.headers[i].hdr.Flags&unix.MSG_TRUNC != 0 {
			return 0, io.ErrShortBuffer
		}
	}
	return n, err
}

// datagram returns the i-th datagram of the last receive.
func (b *burst) datagram(i int) []byte { return b.all[i*eventSize:][:b.headers[i].len] }
