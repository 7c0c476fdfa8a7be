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

// newCache opens a cache with a BPF file system of its own.
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

// bpffs returns a path at which the caller may mount a BPF file system. When the test ends, the file
// system is unmounted.
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

// programs runs the pinned programs of a cache on packets.
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

// verdict is the result of both programs for a packet.
type verdict string

const (
	allowed verdict = "allow"
	denied  verdict = "deny"
	noMatch verdict = "no match"
)

// run returns the result of both programs for data, a packet that begins with its IP header. The
// kernel does not run programs on data without a complete IP header; the result is noMatch.
func (p *programs) run(data []byte) verdict {
	p.t.Helper()
	return p.runFrom(0, data)
}

// runFrom is like run, for a packet that arrived on the interface with the given index. It leaves by
// interface 1.
func (p *programs) runFrom(device uint32, data []byte) verdict {
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
	got := noMatch
	for _, one := range []struct {
		*ebpf.Program
		verdict
	}{{p.allow, allowed}, {p.deny, denied}} {
		if one.Program == nil {
			continue
		}
		matches, err := one.Run(&ebpf.RunOptions{Data: frame, Context: skb})
		switch {
		case err != nil && len(data) < header:
			return noMatch
		case err != nil:
			p.t.Fatalf("run on %x: %v", data, err)
		case matches != 0 && got != noMatch:
			p.t.Fatalf("both programs match %x", data)
		case matches != 0:
			got = one.verdict
		}
	}
	return got
}

// user is the part of an agent that runs in user space: a store, and an evaluator that writes its
// verdicts to the flow cache in the kernel.
type user struct {
	store     *policy.Store
	published policy.Published
	evaluator *engine.Evaluator
	cache     *bpf.Cache
	decoder   *packet.Decoder
}

func newUser(t testing.TB, c *bpf.Cache, ranges []netip.Prefix) *user {
	t.Helper()
	u := &user{store: policy.NewStore(), cache: c, decoder: packet.NewDecoder()}
	u.evaluator = engine.New(engine.Config{Published: &u.published, Memory: c.NewWriter()}, cache.NewFlows(0))
	u.store.SetPodRanges(ranges)
	return u
}

// commit publishes the content of the store, in user space and in the kernel.
func (u *user) commit(t testing.TB) {
	t.Helper()
	s, changes := u.store.Commit()
	u.published.Publish(s)
	if err := u.cache.Publish(s, changes); err != nil {
		t.Fatal(err)
	}
}

// evaluate returns the verdict of user space, which the kernel then remembers. It evaluates a
// packet to an address of the node at the hook INPUT, and any other in POSTROUTING.
func (u *user) evaluate(data []byte) filter.Action {
	hook := filter.AtPostrouting
	if k, err := u.decoder.Decode(data); err == nil && u.published.Snapshot().Endpoint(k.Key.DstAddr()).IsNode() {
		hook = filter.AtInput
	}
	u.evaluator.Enter()
	action, _ := u.evaluator.Evaluate(data, hook)
	u.evaluator.Exit()
	return action
}

// idKey returns the key of a verdict about k in a snapshot.
func idKey(s *policy.Snapshot, k filter.Key) policy.IDKey {
	_, src := s.Identify(k.SrcAddr())
	_, dst := s.Identify(k.DstAddr())
	return policy.NewIDKey(&k, src, dst)
}

// packetOf returns a well-formed first packet of a connection. length is the number of bytes behind
// the IP header.
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
