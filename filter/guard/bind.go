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
	listed []netip.Addr // addresses that were found at the port and that the API lists for the pod
	netns  int
}

// bindings maps the interface index of a port to the port's pod. A pod with several networks has
// several ports. bindings has at most one of them: the port with the addresses that the API lists.
type bindings map[int]*binding

// of returns the binding of a port; nil if the port's pod is not known, or if the port leads to
// another of the pod's networks.
func (b bindings) of(p port) *binding { return b[p.index] }

// unknown reports whether there is a port whose pod is not known yet.
func (b bindings) unknown(f found) bool {
	return slices.ContainsFunc(f.ports, func(p port) bool { return !p.tunnel && b.of(p) == nil && b.beside(p) == nil })
}

// beside is for a port without a binding. If another port that leads to the same network namespace
// has a binding, beside returns that binding, otherwise nil.
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

// next returns the bindings for the given interfaces and snapshot. A port that is in b keeps its
// pod, so that a pod cannot change the binding of its port by setting other addresses.
func (b bindings) next(f found, s *policy.Snapshot) bindings {
	now, taken := bindings{}, make(map[string]int)
	for _, p := range f.ports {
		if was := b[p.index]; was != nil && !p.tunnel {
			if listed := of(was.pod, s, was.listed, p.routed, p.behind); len(listed) > 0 {
				now[p.index], taken[was.pod] = &binding{was.pod, listed, p.netns}, p.index
			}
		}
	}
	// Routes come first, because the network plugin sets them. The pod itself can set the
	// addresses at the other end.
	for _, claimed := range []func(port) []netip.Addr{
		func(p port) []netip.Addr { return p.routed },
		func(p port) []netip.Addr { return p.behind },
	} {
		claims := make(map[string][]port)
		for _, p := range f.ports {
			if p.tunnel || now[p.index] != nil || now.beside(p) != nil {
				continue
			}
			for _, pod := range pods(s, claimed(p)) {
				if _, is := taken[pod]; !is {
					claims[pod] = append(claims[pod], p)
				}
			}
		}
		for pod, by := range claims {
			if len(by) > 1 || len(pods(s, claimed(by[0]))) > 1 {
				continue // several ports claim the pod, or the port claims several pods: at least one claim is false
			}
			p := by[0]
			now[p.index], taken[pod] = &binding{pod, of(pod, s, claimed(p)), p.netns}, p.index
		}
	}
	return now
}

// pods returns the names of the pods that have the given addresses, each once.
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

// Three groups of constants from program.c: the flags in a value of the map "ports", the values
// of the map "own", and the flags in a value of the map "known".
const (
	podPort         uint32 = 1
	primaryPort     uint32 = 2
	isolatedEgress  uint32 = 4
	isolatedIngress uint32 = 8
	secondaryPort   uint32 = 16
	outsidePort     uint32 = 32
	barePort        uint32 = 64
	memberPort      uint32 = 128
	askToNode       uint32 = 256

	listed uint32 = 1
	extra  uint32 = 2
	nodes  uint32 = 4

	ofPod    uint32 = 1
	ofNode   uint32 = 2
	ofTunnel uint32 = 4
	ofAll    uint32 = 8
)

// nodeBits is the binary logarithm of the number of bits in the map "node_bits": NODE_BITS in program.c.
const nodeBits = 14

// place is an address at a port. It is a key of the map "own", laid out as struct place in program.c.
type place struct {
	Address [16]byte
	Port    uint32
}

// portValue is a value of the map "ports", laid out as struct port in program.c.
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
	nodes   map[uint32]uint64 // words of the map "node_bits"; empty in a wanted state, because write derives them from known
	tunnels map[uint16]uint32 // set of the UDP ports of tunnels, in network byte order
}

func newState() state {
	return state{map[uint32]portValue{}, map[place]uint32{}, map[[16]byte]uint32{}, map[uint32]uint64{}, map[uint16]uint32{}}
}

// wanted returns the wanted content of the maps.
func wanted(f found, b bindings, s *policy.Snapshot) state {
	st := newState()
	bridges := make(map[int]bool)
	for _, p := range f.ports {
		if b.of(p) != nil && p.master != 0 {
			bridges[p.master] = true
			// If the node routes a packet from a pod of the bridge, the packet arrives at the
			// bridge's own interface.
			st.ports[uint32(p.master)] = portValue{}
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

// ordinary sets v.IPv4 and v.IPv6. program.c lets ordinary frames with these addresses pass without
// further checks. For each family, the address is the first one in listed that is neither the
// node's nor link-local nor loopback.
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

// claim records the addresses that a pod may use at its port.
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
			continue // the guard and the rules treat packets with this source as packets of the node
		}
		st.own[place{a.As16(), uint32(p.index)}] = listed
		st.known[a.As16()] |= ofPod
	}
}

// isolation returns the flags for the directions in which policies isolate the pod.
func isolation(s *policy.Snapshot, b *binding) (flags uint32) {
	e := s.Endpoint(b.listed[0])
	if e.Effect(filter.Egress) != policy.Open {
		flags |= isolatedEgress
	}
	if e.Effect(filter.Ingress) != policy.Open {
		flags |= isolatedIngress
	}
	if e.EffectToNode() != policy.Open {
		flags |= askToNode
	}
	return flags
}
