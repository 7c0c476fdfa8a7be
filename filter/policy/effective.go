package policy

import (
	"net/netip"
	"slices"

	"sluice/filter"
)

// Effective returns a rule of the policy as the store compiles it. Where the rule has parts
// that cannot be understood, it fails closed. matches is false if the rule matches nothing.
//
//   - In a NetworkPolicy, malformed peers and ports match nothing.
//   - In the other tiers, a rule that accepts and has a malformed peer or port matches
//     nothing. Any other rule with one denies everything. An unknown action denies.
//   - Domain names are not supported. In a rule that accepts, they match nothing. In any
//     other rule, they count as malformed.
func (p *Policy) Effective(d filter.Direction, index int) (r Rule, matches bool) {
	return p.effective(p.Rules[d][index])
}

func (p *Policy) effective(r Rule) (_ Rule, matches bool) {
	if r.Action > Pass {
		r.Action = Deny
	}
	malformed := func(peer Peer) bool {
		return peer.malformed(p.Ref) || r.Action != Accept && len(peer.Names) > 0
	}
	if p.Tier != NetworkPolicy && (slices.ContainsFunc(r.Peers, malformed) || slices.ContainsFunc(r.Ports, isMalformed)) {
		if r.Action == Accept {
			return r, false
		}
		return Rule{Name: r.Name, Action: Deny}, true
	}
	peers := unless(r.Peers, func(peer Peer) bool { return malformed(peer) || len(peer.Names) > 0 })
	ports := unless(r.Ports, isMalformed)
	matches = (len(peers) > 0 || len(r.Peers) == 0) && (len(ports) > 0 || len(r.Ports) == 0)
	r.Peers, r.Ports = peers, ports
	return r, matches
}

// malformed reports whether the peer cannot be understood in a policy. A policy of the whole
// cluster has no namespace of its own, so that its peers must name what they select.
func (p *Peer) malformed(of Ref) bool {
	blank := p.Namespaces == nil && p.Block == nil && len(p.Networks) == 0 && p.Nodes == nil && len(p.Names) == 0
	return p.Malformed != "" || blank && of.clusterWide() || slices.ContainsFunc(p.Networks, isMalformedNetwork)
}

// isMalformedNetwork reports whether no packet has an address of the network: it is the zero
// Prefix, or of IPv4 in the form of IPv6.
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
