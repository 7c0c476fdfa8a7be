package guard

import (
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
)

// binding assigns a port to a pod.
type binding struct {
	pod    string
	listed []netip.Addr // its addresses there that the API lists
	netns  int
}

// bindings are indexed by the port that has the pod's addresses of the API.
type bindings map[int]*binding

// of returns the binding of a port; nil if it is not known, or if the port is on another network than that
// of the API.
func (b bindings) of(p port) *binding { return b[p.index] }

// unknown reports whether some port may yet turn out to be that of a pod.
func (b bindings) unknown(f found) bool {
	return slices.ContainsFunc(f.ports, func(p port) bool { return !p.tunnel && b.of(p) == nil && b.beside(p) == nil })
}

// beside returns the binding of another port in the same network namespace.
func (b bindings) beside(p port) *binding {
	if p.tunnel {
		return nil
	}
	for _, one := range b {
		if one.netns == p.netns {
			return one
		}
	}
	return nil
}

// next returns the current bindings. Earlier ones take precedence: the binding of a port does not change
// with later claims of its pod.
func (b bindings) next(f found, s *policy.Snapshot) bindings {
	now, taken := bindings{}, make(map[string]int)
	for _, p := range f.ports {
		if was := b[p.index]; was != nil && !p.tunnel {
			if listed := of(was.pod, s, was.listed, p.routed, p.behind); len(listed) > 0 {
				now[p.index], taken[was.pod] = &binding{was.pod, listed, p.netns}, p.index
			}
		}
	}
	// The network plugin sets routes; the pod itself can set addresses at the other end.
	for _, word := range []func(port) []netip.Addr{
		func(p port) []netip.Addr { return p.routed },
		func(p port) []netip.Addr { return p.behind },
	} {
		claims := make(map[string][]port)
		for _, p := range f.ports {
			if p.tunnel || now[p.index] != nil || now.beside(p) != nil {
				continue
			}
			for _, pod := range pods(s, word(p)) {
				if _, is := taken[pod]; !is {
					claims[pod] = append(claims[pod], p)
				}
			}
		}
		for pod, by := range claims {
			if len(by) > 1 || len(pods(s, word(by[0]))) > 1 {
				continue // one of them lies
			}
			p := by[0]
			now[p.index], taken[pod] = &binding{pod, of(pod, s, word(p)), p.netns}, p.index
		}
	}
	return now
}

// pods returns the owners of the given addresses.
func pods(s *policy.Snapshot, addrs []netip.Addr) (names []string) {
	for _, a := range addrs {
		if e := s.Endpoint(a); e != nil && !e.IsNode() && !slices.Contains(names, e.String()) {
			names = append(names, e.String())
		}
	}
	return names
}

// of returns the given addresses that belong to the pod, each once.
func of(pod string, s *policy.Snapshot, among ...[]netip.Addr) (addrs []netip.Addr) {
	for _, a := range slices.Concat(among...) {
		if e := s.Endpoint(a); e != nil && !e.IsNode() && e.String() == pod && !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// The flags of program.c.
const (
	podPort         uint32 = 1
	primaryPort     uint32 = 2
	isolatedEgress  uint32 = 4
	isolatedIngress uint32 = 8
	secondaryPort   uint32 = 16
	outsidePort     uint32 = 32
	barePort        uint32 = 64
	memberPort      uint32 = 128

	listed uint32 = 1
	extra  uint32 = 2
	nodes  uint32 = 4

	ofPod    uint32 = 1
	ofNode   uint32 = 2
	ofTunnel uint32 = 4
	ofAll    uint32 = 8
)

// place is struct place of program.c.
type place struct {
	Address [16]byte
	Port    uint32
}

// portValue is struct port of program.c.
type portValue struct {
	Flags uint32
	IPv4  [4]byte
	IPv6  [16]byte
}

// state is the content of the maps.
type state struct {
	ports   map[uint32]portValue
	own     map[place]uint32
	known   map[[16]byte]uint32
	tunnels map[uint16]uint32 // in network byte order
}

func newState() state {
	return state{map[uint32]portValue{}, map[place]uint32{}, map[[16]byte]uint32{}, map[uint16]uint32{}}
}

// wanted returns the wanted content of the maps.
func wanted(f found, b bindings, s *policy.Snapshot) state {
	st := newState()
	bridges := make(map[int]bool)
	for _, p := range f.ports {
		if b.of(p) != nil && p.master != 0 {
			bridges[p.master] = true
			st.ports[uint32(p.master)] = portValue{} // packets of its pods to the router seem to come from the bridge
		}
	}
	for _, p := range f.ports {
		if p.tunnel {
			continue
		}
		var v portValue
		if bridges[p.master] {
			v.Flags |= podPort
		}
		if one := b.of(p); one != nil {
			v.Flags |= podPort | primaryPort | isolation(s, one)
			v.ordinary(one.listed, f.node)
			st.claim(f, p, one, s)
		} else if one := b.beside(p); one != nil {
			v.Flags |= secondaryPort | isolation(s, one)
		}
		st.ports[uint32(p.index)] = v
	}
	for _, p := range f.outside {
		st.outside(f, p)
	}
	for a := range f.node {
		st.known[a.As16()] |= ofNode
	}
	for a := range f.all {
		st.known[a.As16()] |= ofAll
	}
	for a := range f.peers {
		st.known[a.As16()] |= ofTunnel
	}
	for _, t := range f.tunnels {
		st.tunnels[bigEndian(t)] = 1
	}
	return st
}

// outside sets the flags of an interface without a pod.
func (st state) outside(f found, p port) {
	flags := outsidePort
	if p.bare {
		flags |= barePort
	}
	if p.member {
		flags |= memberPort
	}
	st.ports[uint32(p.index)] = portValue{Flags: flags}
	for _, at := range []int{p.index, p.master} {
		for _, a := range f.local[at] {
			st.own[place{a.As16(), uint32(p.index)}] = nodes
		}
	}
}

// ordinary sets the addresses for which program.c lets ordinary frames pass early: the first of each family
// that is neither the node's nor link-local.
func (v *portValue) ordinary(listed []netip.Addr, node addresses) {
	for _, a := range listed {
		switch {
		case node[a] || a.IsLinkLocalUnicast() || a.IsLoopback():
		case a.Is4() && v.IPv4 == [4]byte{}:
			v.IPv4 = a.As4()
		case a.Is6() && v.IPv6 == [16]byte{}:
			v.IPv6 = a.As16()
		}
	}
}

// claim records the addresses of a pod at its port.
func (st state) claim(f found, p port, one *binding, s *policy.Snapshot) {
	for _, a := range slices.Concat(p.routed, p.behind, p.beside) {
		if s.Endpoint(a) == nil && !f.node[a] && !a.IsLoopback() && !a.IsMulticast() {
			st.own[place{a.As16(), uint32(p.index)}] = extra
			if a.IsLinkLocalUnicast() && a.Is6() {
				st.known[a.As16()] |= ofPod
			}
		}
	}
	for _, a := range one.listed {
		if f.node[a] {
			continue // packets from there count as the node's
		}
		st.own[place{a.As16(), uint32(p.index)}] = listed
		st.known[a.As16()] |= ofPod
	}
}

// isolation returns the directions in which policies isolate the pod, as flags.
func isolation(s *policy.Snapshot, b *binding) (flags uint32) {
	e := s.Endpoint(b.listed[0])
	if e.Effect(filter.Egress) != policy.Open {
		flags |= isolatedEgress
	}
	if e.Effect(filter.Ingress) != policy.Open {
		flags |= isolatedIngress
	}
	return flags
}
