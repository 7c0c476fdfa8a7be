//go:build linux

package main

import (
	"net"
	"strconv"
	"strings"
	"testing"
)

// What ClusterNetworkPolicies deny follows the labels and addresses of Nodes, and the labels of
// namespaces and pods.
func TestClusterPoliciesFollowOnPackets(t *testing.T) {
	s := newClusterPolicyTestbed(t)
	toPoolB := clusterPolicies(fromAll("{action: Deny, to: [{nodes: {matchLabels: {pool: b}}}]}"))
	node1, node2, outside := "default/web node-1 tcp 80", "default/web node-2 tcp 80", "default/web outside udp 53"
	cart, odd := "mine/cart default/db tcp 6379", "bare/odd default/db tcp 6379"
	cluster := testbedNamespaces + s.pods()
	for _, step := range []struct {
		name, file, text string
		allow, deny      []string
	}{
		{"Nodes with the label", "policies.yaml", toPoolB, []string{node1, outside}, []string{node2}},
		{"another Node gets the label", "nodes.yaml", s.node("node-1", "b", "node-1") + s.node("node-2", "b", "node-2"), []string{outside}, []string{node1, node2}},
		{"a Node loses the label", "nodes.yaml", s.node("node-1", "b", "node-1") + s.node("node-2", "a", "node-2"), []string{node2, outside}, []string{node1}},
		{"a Node gets an address", "nodes.yaml", s.node("node-1", "a", "node-1") + s.node("node-2", "b", "node-2", "outside"), []string{node1}, []string{node2, outside}},
		{"a Node loses an address", "nodes.yaml", s.node("node-1", "a", "node-1") + s.node("node-2", "b", "outside"), []string{node1, node2}, []string{outside}},
		{"a Node is deleted", "nodes.yaml", s.node("node-1", "b", "node-1"), []string{node2, outside}, []string{node1}},
		{"a namespace with the label", "policies.yaml", clusterPolicies(toAll("{action: Deny, from: [" + myProject + "]}")), []string{node1, odd}, []string{cart}},
		{"a namespace loses the label", "cluster.yaml", strings.Replace(cluster, "project: myproject", "project: theirs", 1), []string{cart, odd}, nil},
		{"a namespace gets the label", "cluster.yaml", "{apiVersion: v1, kind: Namespace, metadata: {name: bare, labels: {project: myproject}}}\n---\n" + cluster, nil, []string{cart, odd}},
		{"a subject with the label", "policies.yaml", clusterPolicies(cnp("p", "Admin", "frontend", "[{action: Deny, to: ["+anyPods+"]}]")), []string{odd}, []string{cart}},
		{"a pod loses the label", "cluster.yaml", strings.Replace(cluster, "name: cart, labels: {role: frontend}", "name: cart, labels: {role: backend}", 1), []string{odd, cart}, nil},
		{"a pod gets the label", "cluster.yaml", strings.Replace(cluster, "name: odd, labels: {}", "name: odd, labels: {role: frontend}", 1), nil, []string{odd, cart}},
	} {
		t.Run(step.name, func(t *testing.T) {
			s.save(step.file, step.text)
			for range 2 { // by the agent's verdicts, then by those that caches remember
				s.check(t, step.allow, nil)
				s.checkSilent(t, step.deny...)
			}
		})
	}
}

// A live connection stops when a ClusterNetworkPolicy begins to deny it, in each tier, and also
// if a change of a Node is the cause. It continues when the policy no longer denies it.
func TestClusterPolicyLiveConnectionsOnPackets(t *testing.T) {
	s := newClusterPolicyTestbed(t)
	denied := func(tier string, priority int) string {
		return ofAll("deny", tier, priority, "egress: [{action: Deny, to: ["+anyNetwork+"]}]")
	}
	passed := func(tier string, priority int) string {
		return ofAll("pass", tier, priority, "egress: [{action: Pass, to: ["+anyNetwork+"]}]")
	}
	nodesOfPool := ofAll("deny", "Admin", 2, "egress: [{action: Deny, to: [{nodes: {matchLabels: {pool: c}}}]}]")
	pools := func(first, second string) string {
		return s.node("node-1", first, "node-1") + s.node("node-2", second, "node-2")
	}
	type connection struct {
		client, server *net.TCPConn
		unread         int // bytes that the server has not received yet
	}
	var live []*connection
	for family := range families {
		for _, to := range []string{"node-1", "node-2", "default/db", "default/far", "outside"} {
			client, server := s.connectTCP(t, family, "default/web", to)
			live = append(live, &connection{client: client, server: server})
		}
	}
	const ends, all = 5, "01234" // ends of each family, and their numbers
	for _, step := range []struct {
		name, file, text, flow string
	}{
		{"Admin denies", "policies.yaml", clusterPolicies(denied("Admin", 2)), ""},
		{"Admin passes", "policies.yaml", clusterPolicies(denied("Admin", 2), passed("Admin", 1)), all},
		{"Baseline denies", "policies.yaml", clusterPolicies(denied("Baseline", 2), passed("Admin", 1)), ""},
		{"Baseline passes", "policies.yaml", clusterPolicies(denied("Baseline", 2), passed("Baseline", 1)), all},
		{"a NetworkPolicy instead of Baseline", "policies.yaml", policies(webEgress("[{to: [{podSelector: {}}]}]")) + clusterPolicies(denied("Baseline", 2)), "023"},
		{"Admin accepts", "policies.yaml", policies(denyAll) + clusterPolicies(ofAll("accept", "Admin", 1, "egress: [{action: Accept, to: ["+anyNetwork+"]}], ingress: [{action: Accept, from: ["+anyPods+"]}]")), all},
		{"no Node has the label", "policies.yaml", clusterPolicies(nodesOfPool), all},
		{"a Node gets the label", "nodes.yaml", pools("a", "c"), "0234"},
		{"another Node gets the label", "nodes.yaml", pools("c", "b"), "1234"},
		{"no Node has the label again", "nodes.yaml", pools("a", "b"), all},
	} {
		t.Run(step.name, func(t *testing.T) {
			s.save(step.file, step.text)
			flows := func(i int) bool { return strings.Contains(step.flow, strconv.Itoa(i%ends)) }
			before := make([]uint32, len(live))
			for i, c := range live {
				before[i] = resent(t, c.client)
				sendByte(t, c.client)
				for c.unread++; flows(i) && c.unread > 0; c.unread-- {
					receiveByte(t, c.server)
				}
				if flows(i) {
					exchange(t, c.server, c.client)
				}
			}
			for i, c := range live {
				if !flows(i) {
					awaitResent(t, c.client, before[i])
					receivesNothing(t, c.server)
				}
			}
		})
	}
}
