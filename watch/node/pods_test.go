package node

import (
	"net/netip"
	"slices"
	"testing"
)

func prefixes(texts ...string) (list []netip.Prefix) {
	for _, t := range texts {
		list = append(list, netip.MustParsePrefix(t))
	}
	return list
}

func addrs(texts ...string) (list []netip.Addr) {
	for _, t := range texts {
		list = append(list, netip.MustParseAddr(t))
	}
	return list
}

// bridged returns the network of a node with an uplink, a bridge of pods, and a bridge of
// other containers.
func bridged() *Network {
	return &Network{
		Links: []Link{
			{Index: 1, Name: "lo", Kind: "device"},
			{Index: 2, Name: "eth0", Kind: "device", Uplink: true},
			{Index: 3, Name: "cni0", Kind: "bridge"},
			{Index: 4, Name: "vethA", Kind: "veth", Master: 3, InOtherNetns: true, NetnsID: 1},
			{Index: 5, Name: "docker0", Kind: "bridge"},
			{Index: 6, Name: "vethB", Kind: "veth", Master: 5, InOtherNetns: true, NetnsID: 2},
		},
		Routes: []Route{
			{netip.MustParsePrefix("192.0.2.0/24"), 2},
			{netip.MustParsePrefix("10.42.3.0/24"), 3},
			{netip.MustParsePrefix("fd00:42:3::/64"), 3},
			{netip.MustParsePrefix("fe80::/64"), 3},
			{netip.MustParsePrefix("172.17.0.0/16"), 5},
		},
	}
}

// routed returns the network of a node with an interface and a host route for each pod.
func routed() *Network {
	return &Network{
		Links: []Link{
			{Index: 2, Name: "eth0", Kind: "veth", InOtherNetns: true, Uplink: true}, // the uplink of a node that is a container itself
			{Index: 3, Name: "cali1", Kind: "veth", InOtherNetns: true, NetnsID: 1},
			{Index: 4, Name: "cali2", Kind: "veth", InOtherNetns: true, NetnsID: 2},
			{Index: 5, Name: "near", Kind: "veth"}, // a veth pair with both ends on the node
			{Index: 6, Name: "tunl0", Kind: "ipip"},
		},
		Routes: []Route{
			{netip.MustParsePrefix("192.0.2.1/32"), 2}, // to the gateway
			{netip.MustParsePrefix("10.0.7.5/32"), 3},
			{netip.MustParsePrefix("fd00::5/128"), 3},
			{netip.MustParsePrefix("fe80::5/128"), 3},
			{netip.MustParsePrefix("10.0.7.6/32"), 4},
			{netip.MustParsePrefix("10.9.9.9/32"), 5},
			{netip.MustParsePrefix("10.0.8.9/32"), 6},
			{netip.MustParsePrefix("10.0.9.0/24"), 4},
		},
	}
}

// Ranges of pods are derived only from routes to addresses that no other machine can have.
func TestPodRanges(t *testing.T) {
	for name, tt := range map[string]struct {
		network *Network
		change  func(*Network)
		known   []netip.Prefix
		before  []netip.Prefix
		pods    []netip.Addr
		want    []netip.Prefix
	}{
		"routed":                     {network: routed(), want: prefixes("10.0.7.5/32", "10.0.7.6/32", "fd00::5/128")},
		"routed, ranges are known":   {network: routed(), known: prefixes("10.0.7.0/29", "fd00::/64"), want: nil},
		"routed, only IPv4 is known": {network: routed(), known: prefixes("10.0.7.0/24"), want: prefixes("fd00::5/128")},
		"routed, the pods are known": {network: routed(), pods: addrs("10.0.7.5", "10.0.7.6", "fd00::5"), want: prefixes("10.0.7.5/32", "10.0.7.6/32", "fd00::5/128")},
		"routed, a known pod has an address that the API does not list": {network: routed(), pods: addrs("10.0.7.5", "10.0.7.6"), want: prefixes("10.0.7.5/32", "10.0.7.6/32")},
		"routed, a known pod has another interface": {
			network: routed(), pods: addrs("10.0.7.5", "fd00::5", "10.0.7.6"), want: prefixes("10.0.7.5/32", "10.0.7.6/32", "fd00::5/128"),
			change: func(n *Network) {
				n.Links = append(n.Links, Link{Index: 9, Name: "net1", Kind: "veth", InOtherNetns: true, NetnsID: 2})
				n.Routes = append(n.Routes, Route{netip.MustParsePrefix("10.200.0.1/32"), 9})
			},
		},
		"bridged, its pod has another interface": {
			network: bridged(), pods: addrs("10.42.3.9"), want: prefixes("10.42.3.0/24"),
			change: func(n *Network) {
				n.Links = append(n.Links, Link{Index: 9, Name: "net1", Kind: "veth", InOtherNetns: true, NetnsID: 1})
				n.Routes = append(n.Routes, Route{netip.MustParsePrefix("10.200.0.1/32"), 9})
			},
		},
		"bridged, no pod is known":    {network: bridged(), want: nil},
		"bridged":                     {network: bridged(), pods: addrs("10.42.3.9", "fd00:42:3::9"), want: prefixes("10.42.3.0/24", "fd00:42:3::/64")},
		"bridged, only IPv4":          {network: bridged(), pods: addrs("10.42.3.9"), want: prefixes("10.42.3.0/24")},
		"bridged, podCIDR is known":   {network: bridged(), pods: addrs("10.42.3.9"), known: prefixes("10.42.3.0/24"), want: nil},
		"bridged, wider than podCIDR": {network: bridged(), pods: addrs("10.42.3.9"), known: prefixes("10.42.3.0/25"), want: prefixes("10.42.3.0/24")},
		"bridged to the LAN": {
			network: bridged(), pods: addrs("10.42.3.9"), want: nil,
			change: func(n *Network) { n.Links = append(n.Links, Link{Index: 9, Name: "eth1", Kind: "device", Master: 3}) },
		},
		"bridged to a tunnel": {
			network: bridged(), pods: addrs("10.42.3.9"), want: nil,
			change: func(n *Network) { n.Links = append(n.Links, Link{Index: 9, Name: "vxlan1", Kind: "vxlan", Master: 3}) },
		},
		"the bridge has a gateway behind it": {
			network: bridged(), pods: addrs("10.42.3.9"), want: nil,
			change: func(n *Network) { n.Links[2].Uplink = true },
		},
		"bridged, its last pod is gone": {network: bridged(), before: prefixes("10.42.3.0/24", "10.42.9.0/24"), want: prefixes("10.42.3.0/24")},
		"nothing":                       {network: new(Network), pods: addrs("10.42.3.9"), want: nil},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.change != nil {
				tt.change(tt.network)
			}
			if got := tt.network.PodRanges(tt.known, tt.before, tt.pods); !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// PodLinks finds the interfaces of pods and the bridges of pods.
func TestPodLinks(t *testing.T) {
	for name, tt := range map[string]struct {
		network *Network
		ranges  []netip.Prefix
		pods    []netip.Addr
		want    []string
	}{
		"routed, by pod":   {routed(), nil, addrs("10.0.7.5"), []string{"cali1"}},
		"routed, by range": {routed(), prefixes("10.0.7.0/24"), nil, []string{"cali1", "cali2"}},
		"bridged":          {bridged(), nil, addrs("10.42.3.9"), []string{"cni0"}},
		"nothing is known": {routed(), nil, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, l := range tt.network.PodLinks(tt.ranges, tt.pods) {
				got = append(got, l.Name)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// PodBridges finds a bridge if a route over it contains a pod's address or overlaps a pod range.
func TestPodBridges(t *testing.T) {
	for name, tt := range map[string]struct {
		network *Network
		ranges  []netip.Prefix
		pods    []netip.Addr
		want    []string
	}{
		"nothing is known":        {network: bridged()},
		"by range":                {bridged(), prefixes("10.42.3.0/24"), nil, []string{"cni0"}},
		"by a part of the range":  {bridged(), prefixes("10.42.0.0/16"), nil, []string{"cni0"}},
		"by pod":                  {bridged(), nil, addrs("fd00:42:3::1"), []string{"cni0"}},
		"pods elsewhere":          {bridged(), prefixes("10.50.0.0/16"), addrs("10.50.0.1"), nil},
		"routed pods, no bridges": {routed(), prefixes("10.0.7.0/24"), addrs("10.0.7.5"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, l := range tt.network.PodBridges(tt.ranges, tt.pods) {
				got = append(got, l.Name)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// PodDevices finds each interface that leads to a single pod. The interface's other end is in
// another network namespace, and the only host route to the pod's address is over this interface.
// The interface is not a port of a bridge, and leads to no gateway.
func TestPodDevices(t *testing.T) {
	n := routed()
	n.Routes = append(n.Routes, Route{netip.MustParsePrefix("10.0.7.9/32"), 3}, Route{netip.MustParsePrefix("10.0.7.9/32"), 4}, Route{netip.MustParsePrefix("10.0.7.9/32"), 3},
		Route{netip.MustParsePrefix("10.0.8.0/24"), 4})
	got := n.PodDevices()
	for text, want := range map[string]uint32{
		"10.0.7.5": 3, "fd00::5": 3, "10.0.7.6": 4,
		"192.0.2.1": 0, "10.9.9.9": 0, "10.0.7.9": 0, "10.0.8.0": 0,
	} {
		if device := got[netip.MustParseAddr(text)]; device != want {
			t.Errorf("%s: %d, want %d", text, device, want)
		}
	}
	if got := bridged().PodDevices(); len(got) > 0 {
		t.Errorf("behind bridges: %v", got)
	}
}
