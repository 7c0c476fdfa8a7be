package node_test

import (
	"fmt"
	"net/netip"
	"testing"

	"sluice/bench/testbed/lab"
	"sluice/watch/node"
)

// BenchmarkNetwork measures on a node with 250 pods how long the agent takes to read the network,
// which it does after each change, and to derive the pod ranges, which it does every two seconds.
func BenchmarkNetwork(b *testing.B) {
	const pods = 250
	for name, bridged := range map[string]bool{"routed": false, "bridged": true} {
		l := lab.ForTest(b, lab.Options{Bridged: bridged})
		var addrs []netip.Addr
		for i := range pods {
			pod, err := l.AddPod(fmt.Sprint("pod-", i))
			if err != nil {
				b.Fatal(err)
			}
			addrs = append(addrs, pod.Addrs()...)
		}
		var n *node.Network
		b.Run(name+"/read", func(b *testing.B) {
			if err := l.Nodes[0].Do(func() (err error) {
				for b.Loop() && err == nil {
					n, err = node.ReadNetwork()
				}
				return err
			}); err != nil {
				b.Fatal(err)
			}
		})
		b.Run(name+"/derive", func(b *testing.B) {
			for b.Loop() {
				derived := n.PodRanges(nil, nil, addrs)
				node.CheckSettings(node.DefaultSysctls, n.PodBridges(derived, addrs), false)
			}
		})
	}
}
