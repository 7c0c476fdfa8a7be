package policy

import (
	"net/netip"
	"slices"
)

// effective returns a rule of the policy as it is compiled: it fails closed where it has
// parts that cannot be understood. matches is false if it matches nothing.
//
// In a rule that accepts, malformed peers and ports match nothing. Any other rule with a
// malformed peer denies every peer, with a malformed port every port: if it ignored these
// parts, flows could pass that it or a later tier denies. An unknown action denies.
func (p *Policy) effective(r Rule) (_ Rule, matches bool) {
	if r.Action > Pass {
		r.Action = Deny
	}
	malformed := func(peer Peer) bool { return len(peer.Names) > 0 || peer.malformed(p.Ref) }
	if r.Action != Accept {
		if slices.ContainsFunc(r.Peers, malformed) {
			r.Action, r.Peers = Deny, nil
		}
		if slices.ContainsFunc(r.Ports, isMalformed) {
			r.Action, r.Ports = Deny, nil
		}
		return r, true
	}
	peers, ports := unless(r.Peers, malformed), unless(r.Ports, isMalformed)
	matches = (len(peers) > 0 || len(r.Peers) == 0) && (len(ports) > 0 || len(r.Ports) == 0)
	r.Peers, r.Ports = peers, ports
	return r, matches
}

// malformed reports whether the peer cannot be understood in the policy with the reference "of".
// A peer without a field means the pods of the policy's own namespace, so it is malformed in a
// policy that is in no namespace.
func (p *Peer) malformed(of Ref) bool {
	blank := p.Namespaces == nil && p.Block == nil && len(p.Networks) == 0 && p.Nodes == nil && len(p.Names) == 0
	return p.Malformed != "" || blank && of.clusterWide() || slices.ContainsFunc(p.Networks, isMalformedNetwork)
}

// isMalformedNetwork reports whether no packet can have an address of the network: it is the
// zero Prefix, or one of IPv4 in the form of IPv6.
func isMalformedNetwork(n netip.Prefix) bool { return !n.IsValid() || n.Addr().Is4In6() }

func isMalformed(p PortRange) bool { return p.Malformed }

// unless returns the elements of a list for which drop is false. If that is all of them, it
// returns the list itself.
func unless[T any](list []T, drop func(T) bool) []T {
	if !slices.ContainsFunc(list, drop) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), drop)
}
