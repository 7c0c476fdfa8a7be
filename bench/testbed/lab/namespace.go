package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace without a name. It exists as long as its file descriptor
// is open, or a process, thread or socket is in it.
type namespace struct {
	fd   netns.NsHandle
	link *netlink.Handle // acts in the namespace, from any thread
	// mounts is the host's mount namespace. If it is nil, the host uses the mounts of this
	// process.
	mounts *os.File
}

// newNamespace makes a namespace in which loopback is up and the given settings are written:
// paths in /proc/sys, each followed by its value.
func newNamespace(settings ...string) (*namespace, error) {
	n := &namespace{fd: netns.None()}
	err := onThread(func() (err error) {
		if n.fd, err = netns.New(); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if n.link, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("open netlink: %w", err)
		}
		if err := writeSettings(settings...); err != nil {
			return err
		}
		if err := n.link.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}); err != nil {
			return fmt.Errorf("set loopback up: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, n.close())
	}
	return n, nil
}

// writeSettings writes settings in the namespace of this thread.
func writeSettings(settings ...string) error {
	for ; len(settings) > 1; settings = settings[2:] {
		if err := os.WriteFile("/proc/sys/"+settings[0], []byte(settings[1]), 0); err != nil {
			return fmt.Errorf("set a kernel parameter: %w", err)
		}
	}
	return nil
}

// bpffs is the path at which systems mount the BPF file system.
const bpffs = "/sys/fs/bpf"

// ownBPF gives the namespace a BPF file system of its own at bpffs. Pins in it are not visible
// on the machine, and are removed with the namespace. If the kernel has no BPF, or a container
// forbids mounts, the namespace gets no BPF file system.
func (n *namespace) ownBPF() error {
	if _, err := os.Stat(bpffs); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		// Make the mounts private. Otherwise the mount below would propagate to all processes.
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("bpf", bpffs, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return err
		}
		n.mounts, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("mount a BPF file system: %w", err)
	}
	return nil
}

// do runs f on a thread in the namespace.
func (n *namespace) do(f func() error) error {
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

func (n *namespace) enter() error {
	if err := netns.Set(n.fd); err != nil || n.mounts == nil {
		return err
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	// A thread that shares its working directory with others cannot enter a mount namespace.
	// Setns changes the working directory to the root.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(n.mounts.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Chdir(dir)
}

func (n *namespace) close() error {
	if n.link != nil {
		n.link.Close()
	}
	var errs []error
	if n.mounts != nil {
		errs = append(errs, n.mounts.Close())
	}
	if n.fd.IsOpen() {
		errs = append(errs, n.fd.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close a network namespace: %w", err)
	}
	return nil
}

// onThread runs f on a new thread, which ends with f. A thread that was in a namespace is not
// returned to the runtime: if it could not leave the namespace, another goroutine would run
// in the wrong namespace. A new thread costs about 50 µs.
//
// f may end its goroutine, as a test's Fatal does. In that case, onThread returns nil.
func onThread(f func() error) (err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked, so the thread ends with this goroutine
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end: it would stay in the namespace and keep it alive.
			// While the main thread is locked here, the next attempt gets another thread.
			defer runtime.UnlockOSThread()
			err = onThread(f)
			return
		}
		err = f()
	}()
	<-done
	return err
}
