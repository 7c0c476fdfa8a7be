package bpf

import (
	"encoding/binary"
	"math/rand/v2"
	"unsafe"

	"github.com/cilium/ebpf"

	"sluice/filter"
)

// Remember inserts a verdict of policy.Snapshot.DecideBetween about a key, with the epochs of
// its ends. It takes one to three microseconds and does not allocate. If a verdict cannot be
// inserted, it is counted in Stats.Failed, and user space decides the next packet again.
//
// Remember inserts nothing in three cases: the programs in the kernel never look up such a key;
// the verdict is a denial (filter.Deny or filter.Reject) and Options.AllowedOnly is set; the
// cache is stopped.
func (w *Writer) Remember(k filter.Key, src, dst uint64, action filter.Action) {
	readable := k.Transport == filter.Any || k.Transport == filter.Ported || k.Transport == filter.Portless && (k.Protocol == filter.ICMP || k.Protocol == filter.ICMPv6)
	if !readable || action != filter.Allow && w.cache.opts.AllowedOnly || w.cache.stopped.Load() {
		return
	}
	w.key, w.value = k, w.cache.secrets.stamp(&k, src, dst)
	switch action {
	case filter.Allow:
		w.value |= allowed
	case filter.Reject:
		w.value |= rejected
	}
	if err := w.cache.objs.Flows.Update(unsafe.Pointer(&w.key), unsafe.Pointer(&w.value), ebpf.UpdateAny); err != nil {
		w.cache.failed.Add(1)
	}
}

// The bits of a value that hold the verdict, as in program.c.
const (
	allowed  = 1
	rejected = 2
)

// secrets holds the random numbers of the array secrets in program.c.
type secrets [7]uint64

func newSecrets() (s secrets) {
	for i := range s {
		s[i] = rand.Uint64()
	}
	return s
}

// stamp computes the same number as stamp in program.c.
func (s *secrets) stamp(k *filter.Key, src, dst uint64) (h uint64) {
	for i := range 4 {
		a := &k.Src
		if i >= 2 {
			a = &k.Dst
		}
		at := i % 2 * 8
		h += product(s[i], binary.NativeEndian.Uint32(a[at:]), binary.NativeEndian.Uint32(a[at+4:]))
	}
	h += product(s[4], uint32(k.Port)<<16|uint32(k.Protocol)<<8|uint32(k.Transport), 0)
	h += product(s[5], uint32(src), uint32(src>>32))
	h += product(s[6], uint32(dst), uint32(dst>>32))
	return h &^ (allowed | rejected)
}

// product computes the same number as product in program.c.
func product(secret uint64, a, b uint32) uint64 {
	return uint64(a+uint32(secret)) * uint64(b+uint32(secret>>32))
}
