package bpf

import (
	"math"
	"net/netip"
	"slices"
)

// several is the number of an address that belongs to hosts with different numbers, as SEVERAL in
// program.c.
const several = math.MaxUint32

// hosts numbers the nodes of pods, so that the programs recognize a pod's own node by comparing two
// numbers. A host is the addresses of a node that are of the same family as the pod's address. Hosts
// with different addresses have different numbers, and no number is used again.
type hosts struct {
	last  uint32
	known map[string]*host       // by its addresses; see key
	of    map[netip.Addr][]*host // the hosts with an address
	moved map[netip.Addr]bool    // addresses whose number may have changed; see take
}

type host struct {
	number uint32
	uses   int // by addresses of pods
	addrs  []netip.Addr
}

func newHosts(last uint32) *hosts {
	return &hosts{last: last, known: make(map[string]*host), of: make(map[netip.Addr][]*host), moved: make(map[netip.Addr]bool)}
}

// key appends to b what identifies the host of a pod with the address a. It is empty if no address of
// the node is known.
func (*hosts) key(b []byte, a netip.Addr, addrs []netip.Addr) []byte {
	var room [4]netip.Addr
	same := room[:0]
	for _, one := range addrs {
		if one.Is4() == a.Is4() {
			same = append(same, one)
		}
	}
	if len(same) > 1 {
		slices.SortFunc(same, netip.Addr.Compare)
		same = slices.Compact(same)
	}
	for _, one := range same {
		as16 := one.As16()
		b = append(b, as16[:]...)
	}
	return b
}

// number returns the number of the host of a pod with the address a; 0 if none of its addresses is
// known.
func (h *hosts) number(a netip.Addr, addrs []netip.Addr) uint32 {
	if len(addrs) == 0 {
		return 0
	}
	var room [64]byte
	if known := h.known[string(h.key(room[:0], a, addrs))]; known != nil {
		return known.number
	}
	return 0
}

// move counts the hosts of a pod with the address a when these addresses of its node change.
func (h *hosts) move(a netip.Addr, before, now []netip.Addr) {
	if len(before) == len(now) && (len(now) == 0 || &before[0] == &now[0]) {
		return // the usual case: pods of a node share one list
	}
	h.use(a, now)
	h.release(a, before)
}

// use counts a use of the host of a pod with the address a.
func (h *hosts) use(a netip.Addr, addrs []netip.Addr) {
	var room [64]byte
	key := h.key(room[:0], a, addrs)
	if len(key) == 0 {
		return
	}
	is := h.known[string(key)]
	if is == nil {
		h.last++
		is = &host{number: h.last}
		for one := range slices.Chunk(key, 16) {
			addr := netip.AddrFrom16([16]byte(one)).Unmap()
			is.addrs = append(is.addrs, addr)
			h.of[addr], h.moved[addr] = append(h.of[addr], is), true
		}
		h.known[string(key)] = is
	}
	is.uses++
}

// release ends a use.
func (h *hosts) release(a netip.Addr, addrs []netip.Addr) {
	var room [64]byte
	key := h.key(room[:0], a, addrs)
	is := h.known[string(key)]
	if is == nil {
		return
	}
	if is.uses--; is.uses > 0 {
		return
	}
	delete(h.known, string(key))
	for _, addr := range is.addrs {
		h.moved[addr] = true
		if h.of[addr] = slices.DeleteFunc(h.of[addr], func(o *host) bool { return o == is }); len(h.of[addr]) == 0 {
			delete(h.of, addr)
		}
	}
}

// at returns the number of the host with an address: 0 if there is none, and several if there are
// more than one.
func (h *hosts) at(a netip.Addr) uint32 {
	switch of := h.of[a]; len(of) {
	case 0:
		return 0
	case 1:
		return of[0].number
	}
	return several
}

// take returns the addresses whose number may have changed since the last call.
func (h *hosts) take() map[netip.Addr]bool {
	moved := h.moved
	h.moved = make(map[netip.Addr]bool)
	return moved
}
