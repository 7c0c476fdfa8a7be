package node_test

import (
	"net/netip"
	"slices"
	"testing"

	"sluice/bench/testbed/lab"
	"sluice/watch/node"
)

// read returns the network of a host.
func read(t *testing.T, h *lab.Host) (n *node.Network) {
	t.Helper()
	err := h.Do(func() (err error) {
		n, err = node.ReadNetwork()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// PodRanges and PodLinks find pods by their host routes. They do not mistake the node's default
// route for such a route.
func TestReadRoutedNetwork(t *testing.T) {
	l := lab.ForTest(t, lab.Options{})
	pod, err := l.AddPod("web")
	if err != nil {
		t.Fatal(err)
	}
	n := read(t, l.Nodes[0].Host)
	var want []netip.Prefix
	for _, a := range pod.Addrs() {
		want = append(want, netip.PrefixFrom(a, a.BitLen()))
	}
	if got := n.PodRanges(nil, nil, nil); !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v; network %+v", got, want, n)
	}
	if got := n.PodLinks(nil, pod.Addrs()); len(got) != 1 || got[0].Name != pod.RouterDevice() {
		t.Errorf("interfaces to pods %+v, want %s", got, pod.RouterDevice())
	}
	if i := slices.IndexFunc(n.Links, func(l node.Link) bool { return l.Name == lab.Device }); i < 0 || !n.Links[i].Uplink || !n.Links[i].InOtherNetns {
		t.Errorf("%s is not known to lead out of the node: %+v", lab.Device, n.Links)
	}
	if err := pod.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, l.Nodes[0].Host).PodRanges(nil, nil, nil); got != nil {
		t.Errorf("without the pod, ranges %v", got)
	}
}

// PodBridges returns a bridge with the bridge's own settings of br_netfilter. PodRanges returns
// the bridge's networks if a pod on the bridge is known, and no port of the bridge leads out of
// the node.
func TestReadBridgedNetwork(t *testing.T) {
	l := lab.ForTest(t, lab.Options{Bridged: true})
	h := l.Nodes[0]
	pod, err := l.AddPod("web")
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"0", "1"} {
		if err := h.Run("ip", "link", "set", lab.BridgeDevice, "type", "bridge", "nf_call_iptables", own); err != nil {
			t.Skipf("needs br_netfilter in the kernel: %v", err)
		}
		n := read(t, h.Host)
		got := n.PodBridges(nil, pod.Addrs())
		if len(got) != 1 || got[0].Name != lab.BridgeDevice || got[0].CallIPTables != (own == "1") || got[0].CallIP6Tables {
			t.Errorf("with nf_call_iptables %s, bridges %+v", own, got)
		}
		if got, want := n.PodRanges(nil, nil, pod.Addrs()), []netip.Prefix{h.Pods4, h.Pods6}; !slices.Equal(got, want) {
			t.Errorf("ranges %v, want %v", got, want)
		}
		if got := n.PodRanges(nil, nil, nil); got != nil {
			t.Errorf("without a known pod, ranges %v", got)
		}
	}
	for _, args := range [][]string{{"link", "add", "near", "type", "veth", "peer", "name", "uplink"}, {"link", "set", "near", "master", lab.BridgeDevice}} {
		if err := h.Run("ip", args...); err != nil {
			t.Fatal(err)
		}
	}
	if got := read(t, h.Host).PodRanges(nil, nil, pod.Addrs()); got != nil {
		t.Errorf("of a bridge that leads out of the node, ranges %v", got)
	}
}
