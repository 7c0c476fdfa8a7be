package policy_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
)

// A snapshot has the Node objects as of its Commit. They are found by name, by address, and in
// the list of all.
func TestNodesOfASnapshot(t *testing.T) {
	w := policy.NewStore()
	w.SetNodeObject(&policy.Node{Name: "b", Labels: labels.Set{"pool": "a"}, Addrs: addrs("10.9.0.2", "::ffff:192.0.2.2", "fd09::2")})
	w.SetNodeObject(&policy.Node{Name: "a", Addrs: addrs("10.9.0.1", "fd09::2")})
	before, _ := w.Commit()
	w.DeleteNodeObject("a")
	w.SetNodeObject(&policy.Node{Name: "b", Labels: labels.Set{"pool": "a"}, Addrs: addrs("10.9.0.3")})
	after, _ := w.Commit()
	w.SetNodeObject(&policy.Node{Name: "b", Labels: labels.Set{"pool": "a"}, Addrs: addrs("10.9.0.3")})
	same, _ := w.Commit()
	for _, tt := range []struct {
		s     *policy.Snapshot
		addr  string
		owner string
	}{
		{before, "10.9.0.1", "a"}, {before, "10.9.0.2", "b"}, {before, "192.0.2.2", "b"}, {before, "fd09::2", "a"}, {before, "10.9.0.3", ""},
		{after, "10.9.0.1", ""}, {after, "10.9.0.2", ""}, {after, "10.9.0.3", "b"}, {same, "10.9.0.3", "b"},
	} {
		owner := ""
		if n := tt.s.NodeAt(netip.MustParseAddr(tt.addr)); n != nil {
			owner = n.Name
		}
		if owner != tt.owner {
			t.Errorf("snapshot %d: %s is the address of Node %q, want %q", tt.s.Number(), tt.addr, owner, tt.owner)
		}
	}
	if n := before.Node("b"); n == nil || n.Labels["pool"] != "a" || !slices.Equal(n.Addrs, addrs("10.9.0.2", "192.0.2.2", "fd09::2")) {
		t.Errorf("Node b: %+v", n)
	}
	if after.Node("a") != nil || len(slices.Collect(before.Nodes())) != 2 || len(slices.Collect(after.Nodes())) != 1 {
		t.Error("the snapshots do not list the Nodes of their times")
	}
}

// SetNodeObject also sets the pod ranges of the Node, and DeleteNodeObject removes them.
func TestNodeObjectHasPodRanges(t *testing.T) {
	w := policy.NewStore()
	w.SetLocalNode("n")
	w.SetNodeObject(&policy.Node{Name: "n", Ranges: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}})
	addr := netip.MustParseAddr("10.0.0.1")
	if s, _ := w.Commit(); s.Pending(addr) != policy.PendingLocal {
		t.Error("the range of the Node is not known")
	}
	w.DeleteNodeObject("n")
	if s, _ := w.Commit(); s.Pending(addr) != policy.Known {
		t.Error("the range of the Node is still known after it was deleted")
	}
}

// toNodes returns a policy with many rules whose peers are all Nodes.
func toNodes(rules int) *policy.Policy {
	p := &policy.Policy{
		Ref: clusterpolicy.Ref("p"), Tier: policy.Admin, Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
	}
	for i := range rules {
		p.Rules[filter.Egress] = append(p.Rules[filter.Egress], policy.Rule{
			Action: policy.Accept, Peers: []policy.Peer{{Nodes: labels.Everything()}},
			Ports: []policy.PortRange{{Protocol: filter.TCP, Low: uint16(i + 1), High: uint16(i + 1)}},
		})
	}
	return p
}

// The cost of a policy counts the addresses of the Nodes that its peers select. So new Nodes
// may bring the policy over a limit, and deleted ones back under it.
func TestNodesCountAgainstLimits(t *testing.T) {
	w := onePod()
	w.SetLimits(policy.Limits{Policies: 4 << 20})
	w.SetPolicy(toNodes(25))
	commit := func(refused int) {
		t.Helper()
		w.Commit()
		if n := len(w.Problems()); n != refused {
			t.Errorf("problems %v, want %d", w.Problems(), refused)
		}
	}
	commit(0)
	for i := range 2000 { // not adjacent, so that each is a range
		w.SetNodeObject(&policy.Node{Name: fmt.Sprint(i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 9, byte(i >> 7), byte(i << 1)})}})
	}
	commit(1)
	for i := range 2000 {
		w.DeleteNodeObject(fmt.Sprint(i))
	}
	commit(0)
}

// Without AssumeNodeAddrs, an address in the status of a Node does not count as an address of
// the node that its pods run on. It may be an address of a NAT outside the cluster, from which
// packets of any origin may come.
func TestNodeAddrsAreNotAssumed(t *testing.T) {
	for _, assumed := range []bool{false, true} {
		w := policy.NewStore()
		if assumed {
			w.AssumeNodeAddrs()
		}
		w.SetPod(&policy.Pod{Namespace: "a", Name: "x", Node: "n1", Addrs: addrs("10.0.0.1"), Hosts: addrs("10.9.0.1")})
		w.SetNodeObject(&policy.Node{Name: "n1", Addrs: addrs("10.9.0.1", "192.0.2.7")})
		w.SetPolicy(&policy.Policy{
			Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "a", Name: "p"}, Tier: policy.NetworkPolicy, Isolates: [2]bool{true, true},
			Subject: policy.Subject{Namespace: "a", Pods: labels.Everything()},
		})
		s, _ := w.Commit()
		from := toPod
		from.Src = addrs("192.0.2.7")[0]
		if v := s.Decide(from.key()); (v.Action == filter.Allow) != assumed {
			t.Errorf("assumed %t: from the Node's external address: %s", assumed, v.Action)
		}
		from.Src = addrs("10.9.0.1")[0]
		if v := s.Decide(from.key()); v.Action != filter.Allow {
			t.Errorf("assumed %t: from the pod's host: %s", assumed, v.Action)
		}
	}
}
