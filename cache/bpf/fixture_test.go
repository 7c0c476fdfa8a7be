package bpf_test

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/packet"
	"sluice/filter/policy"
)

// newCache makes a cache in a BPF file system of its own.
func newCache(t testing.TB, opts bpf.Options) *bpf.Cache {
	t.Helper()
	opts.BPFFS = bpffs(t)
	c, err := bpf.Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Remove(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// bpffs is where a BPF file system may be mounted until the test ends.
func bpffs(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("the kernel's flow cache needs root: BPF programs are loaded and run")
	}
	dir := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	})
	return dir
}

// programs runs what a cache has pinned on packets.
type programs struct {
	t           testing.TB
	allow, deny *ebpf.Program
}

func load(t testing.TB, c *bpf.Cache) *programs {
	t.Helper()
	p := &programs{t: t}
	for path, to := range map[string]**ebpf.Program{c.AllowPin(): &p.allow, c.DenyPin(): &p.deny} {
		if path == "" {
			continue
		}
		var err error
		if *to, err = ebpf.LoadPinnedProgram(path, nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = (*to).Close() })
	}
	return p
}

// verdict is what the programs say about a packet.
type verdict string

const (
	allowed verdict = "allow"
	denied  verdict = "deny"
	silent  verdict = "nothing"
)

// say asks both programs about a packet that begins with its IP header. The
// kernel does not run programs on packets that have none: of those they say
// nothing.
func (p *programs) say(data []byte) verdict {
	p.t.Helper()
	return p.sayFrom(0, data)
}

// sayFrom is say for a packet that came in by an interface. It leaves by that of the
// number 1.
func (p *programs) sayFrom(device uint32, data []byte) verdict {
	p.t.Helper()
	var skb [192]byte // struct __sk_buff
	binary.NativeEndian.PutUint32(skb[36:], device)
	frame, header := make([]byte, 14, 14+len(data)), 20
	binary.BigEndian.PutUint16(frame[12:], 0x0800)
	if len(data) > 0 && data[0]>>4 == 6 {
		binary.BigEndian.PutUint16(frame[12:], 0x86dd)
		header = 40
	}
	frame = append(frame, data...)
	said := silent
	for _, one := range []struct {
		*ebpf.Program
		verdict
	}{{p.allow, allowed}, {p.deny, denied}} {
		if one.Program == nil {
			continue
		}
		yes, err := one.Run(&ebpf.RunOptions{Data: frame, Context: skb})
		switch {
		case err != nil && len(data) < header:
			return silent
		case err != nil:
			p.t.Fatalf("run on %x: %v", data, err)
		case yes != 0 && said != silent:
			p.t.Fatalf("both say yes to %x", data)
		case yes != 0:
			said = one.verdict
		}
	}
	return said
}

// user is user space with a cache in the kernel behind it.
type user struct {
	world     *policy.Store
	published policy.Published
	evaluator *engine.Evaluator
	cache     *bpf.Cache
	decoder   *packet.Decoder
}

func newUser(t testing.TB, c *bpf.Cache, ranges []netip.Prefix) *user {
	t.Helper()
	u := &user{world: policy.NewStore(), cache: c, decoder: packet.NewDecoder()}
	u.evaluator = engine.New(engine.Config{Published: &u.published, Memory: c.NewWriter()}, cache.NewFlows(0))
	u.world.SetPodRanges(ranges)
	return u
}

// commit puts what the world holds in force.
func (u *user) commit(t testing.TB) {
	t.Helper()
	s, changes := u.world.Commit()
	u.published.Publish(s)
	if err := u.cache.Publish(s, changes); err != nil {
		t.Fatal(err)
	}
}

// judges gives user space's verdict, which is then remembered.
func (u *user) judges(data []byte) filter.Action {
	u.evaluator.Enter()
	action, _ := u.evaluator.Evaluate(data)
	u.evaluator.Exit()
	return action
}

// packetOf is a packet as hosts send it, with so many bytes behind the IP header. It
// opens a connection.
func packetOf(src, dst netip.Addr, protocol filter.Protocol, port uint16, length int) []byte {
	body := make([]byte, length)
	binary.BigEndian.PutUint16(body[2:], port)
	switch protocol {
	case filter.TCP:
		body[12], body[13] = 5<<4, 0x02 // no options, SYN
	case filter.SCTP:
		body[12] = 1 // INIT
	case filter.UDP:
		binary.BigEndian.PutUint16(body[4:], uint16(length))
	}
	if src.Is4() {
		data := append(make([]byte, 20, 20+length), body...)
		data[0], data[9] = 0x45, byte(protocol)
		binary.BigEndian.PutUint16(data[2:], uint16(20+length))
		copy(data[12:], src.AsSlice())
		copy(data[16:], dst.AsSlice())
		return data
	}
	data := append(make([]byte, 40, 40+length), body...)
	data[0], data[6] = 0x60, byte(protocol)
	binary.BigEndian.PutUint16(data[4:], uint16(length))
	copy(data[8:], src.AsSlice())
	copy(data[24:], dst.AsSlice())
	return data
}
