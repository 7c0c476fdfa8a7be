package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"sluice/bench/load"
	"sluice/bench/testbed/lab"
)

// ends states between which addresses the connections of a row are.
type ends uint8

const (
	fewPods           ends = iota // a few client pods and the server's pod
	newcomers                     // thousands of pods at each end; no two of them are connected twice
	visitors                      // outside addresses, and a pod that ipBlocks let them reach
	visitorsOfOpenPod             // the same, and a pod whose policy allows all peers
)

// family is a family of addresses: an index of the arrays with an address or range of each.
type family uint8

const (
	ipv4 family = iota
	ipv6
)

// The ranges of these ends. They are the same on all nodes, because only the node routes to them. The
// sources are behind one interface, and the pods that newcomers connect to behind another, as if these led
// to other machines. The visitors' ranges are those for benchmarks (RFC 2544 and 5180).
//
// A node has 4,096 × 4,096 pairs of newcomers, more than a run can use. It has 131,072 visitors; when one
// comes again, a cache of 65,536 addresses has forgotten it.
var (
	newcomerRanges = [...]netip.Prefix{netip.MustParsePrefix("10.128.0.0/20"), netip.MustParsePrefix("fd00:80::/116")}
	backendRanges  = [...]netip.Prefix{netip.MustParsePrefix("10.128.16.0/20"), netip.MustParsePrefix("fd00:80:0:1::/116")}
	visitorRanges  = [...]netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("2001:2::/111")}
)

// newcomerPods is the number of pods in newcomerRanges and backendRanges together. Each pod has an IPv4
// and an IPv6 address.
const newcomerPods = 2 * newcomerCount

const newcomerCount = 4096

// Labels of the pods.
const (
	roleNewcomer, roleBackend       = "bench-newcomer", "bench-backend"
	roleBehindBlocks, roleOpenToAll = "bench-behind-blocks", "bench-open-to-all"
)

// addEnds adds the ends to the node of a contender: ranges to the client and to the server, and the two
// pods for visitors.
func (s *contender) addEnds() (err error) {
	for f := range newcomerRanges {
		for _, r := range []struct {
			host *lab.Host
			all  netip.Prefix
		}{{s.client, newcomerRanges[f]}, {s.client, visitorRanges[f]}, {s.server, backendRanges[f]}} {
			if err := r.host.AddRange(r.all); err != nil {
				return err
			}
		}
	}
	for i, name := range []string{"behind-blocks", "open-to-all"} {
		if s.visited[i], err = s.node.AddPod(name); err != nil {
			return err
		}
	}
	return nil
}

// between returns the target for the ends of a contender's row.
func (s *contender) between() load.Target {
	to := load.Target{Ports: load.Ports{First: seenPort}, FromRange: visitorRanges[s.family]}
	switch s.ends {
	case newcomers:
		to.FromRange, to.ToRange = newcomerRanges[s.family], backendRanges[s.family]
	case visitorsOfOpenPod:
		to.To = s.visited[1].Addrs()[s.family]
	default:
		to.To = s.visited[0].Addrs()[s.family]
	}
	return to
}

// endPods returns the pods of all ends of a contender's node. Those that newcomers and visitors connect
// to are on this node, the newcomers elsewhere.
func endPods(namespace string, t *contender) (pods []*corev1.Pod) {
	add := func(name, role string, addrs []netip.Addr, nodes ...netip.Addr) {
		p := labPod(namespace, name, role, addrs...)
		for _, a := range nodes {
			p.Status.HostIPs = append(p.Status.HostIPs, corev1.HostIP{IP: a.String()})
			p.Status.HostIP = p.Status.HostIPs[0].IP
		}
		pods = append(pods, p)
	}
	here := t.node.Addrs()
	add("behind-blocks", roleBehindBlocks, t.visited[0].Addrs(), here...)
	add("open-to-all", roleOpenToAll, t.visited[1].Addrs(), here...)
	for i := range uint32(newcomerCount) {
		add(fmt.Sprintf("newcomer-%d", i), roleNewcomer, nthOfEach(newcomerRanges, i))
		add(fmt.Sprintf("backend-%d", i), roleBackend, nthOfEach(backendRanges, i), here...)
	}
	return pods
}

// endPolicies returns policies that let newcomers and visitors reach their pods.
func endPolicies(namespace string) []*networkingv1.NetworkPolicy {
	ports := []networkingv1.NetworkPolicyPort{port(corev1.ProtocolTCP, seenPort)}
	return []*networkingv1.NetworkPolicy{
		ingressPolicy(namespace, "bench-newcomers", roleBackend, []networkingv1.NetworkPolicyPeer{podsWithRole(roleNewcomer)}, ports),
		ingressPolicy(namespace, "bench-visitors", roleBehindBlocks, visitorBlocks(), ports),
		ingressPolicy(namespace, "bench-open", roleOpenToAll, nil, ports),
	}
}

// visitorBlocks returns ipBlocks that hold all visitors: in each family sixteen blocks with an
// exception, which is a block of its own. So there are visitors of 32 kinds.
func visitorBlocks() (peers []networkingv1.NetworkPolicyPeer) {
	const blockBits, exceptBits = 4, 3
	for _, all := range visitorRanges {
		size := all.Addr().BitLen() - all.Bits() - blockBits
		for i := range uint32(1) << blockBits {
			block := netip.PrefixFrom(nth(all, i<<size), all.Bits()+blockBits)
			except := netip.PrefixFrom(block.Addr(), block.Bits()+exceptBits).String()
			peers = append(peers,
				networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: block.String(), Except: []string{except}}},
				networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: except}})
		}
	}
	return peers
}

// nthOfEach returns the nth address of the range of each family.
func nthOfEach(ranges [2]netip.Prefix, n uint32) []netip.Addr {
	return []netip.Addr{nth(ranges[ipv4], n), nth(ranges[ipv6], n)}
}

// nth returns the nth address of a range of at most 2^32 addresses.
func nth(p netip.Prefix, n uint32) netip.Addr {
	b := p.Addr().AsSlice()
	low := b[len(b)-4:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)+n)
	a, _ := netip.AddrFromSlice(b)
	return a
}
