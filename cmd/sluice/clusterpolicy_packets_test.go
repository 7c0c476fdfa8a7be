//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"sluice/bench/testbed/lab"
)

// Peers of ClusterNetworkPolicies.
const (
	anyPods    = `{namespaces: {}}`
	frontends  = `{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: frontend}}}}`
	myProject  = `{namespaces: {matchLabels: {project: myproject}}}`
	anyNetwork = `{networks: [0.0.0.0/0, "::/0"]}`
)

// ofAll returns a ClusterNetworkPolicy as "name: {spec}", whose subject is all pods. rules are the
// fields of its rules.
func ofAll(name, tier string, priority int, rules string) string {
	return fmt.Sprintf("%s: {tier: %s, priority: %d, subject: {namespaces: {}}, %s}", name, tier, priority, rules)
}

// toAll returns an Admin policy named p for all pods, with ingress rules. fromAll returns one
// with egress rules.
func toAll(rules string) string   { return ofAll("p", "Admin", 1, "ingress: ["+rules+"]") }
func fromAll(rules string) string { return ofAll("p", "Admin", 1, "egress: ["+rules+"]") }

// networksOf returns a peer for both addresses of a host.
func (s *testbed) networksOf(name string) string {
	h := s.host(name)
	return fmt.Sprintf(`{networks: [%s/32, "%s/128"]}`, h.IPv4, h.IPv6)
}

// node returns the manifest of a Node with the label pool and the addresses of hosts.
func (s *testbed) node(name, pool string, hosts ...string) string {
	var addrs []string
	for _, h := range hosts {
		for _, a := range s.host(h).Addrs() {
			addrs = append(addrs, fmt.Sprintf("{type: InternalIP, address: %q}", a))
		}
	}
	return fmt.Sprintf("---\n{apiVersion: v1, kind: Node, metadata: {name: %s, labels: {pool: %s}}, status: {addresses: [%s]}}\n", name, pool, strings.Join(addrs, ", "))
}

// newClusterPolicyTestbed returns a testbed whose nodes have Node objects, and listen on the
// same ports as pods. Port 81 of the Service address and the NodePort 30000 lead to the pod db.
// The NodePort 30001 leads to port 80 of the node itself.
func newClusterPolicyTestbed(t *testing.T) *testbed {
	t.Helper()
	s := newTestbed(t)
	db, node := s.host("default/db"), s.Nodes[0].Host
	for _, f := range families {
		to := func(dst netip.Addr, port string, at netip.AddrPort) {
			s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", dst.String(), "--dport", port, "-j", "DNAT", "--to-destination", at.String())
		}
		to(netip.MustParseAddr(f.service), "81", netip.AddrPortFrom(f.addr(db), 6379))
		to(f.addr(node), "30000", netip.AddrPortFrom(f.addr(db), 6379))
		to(f.addr(node), "30001", netip.AddrPortFrom(f.addr(node), 80))
		s.nat(f.iptables, "POSTROUTING", "-s", f.addr(db).String(), "-d", f.addr(db).String(), "-j", "MASQUERADE")
	}
	s.serve(s.host("node-1"))
	s.serve(s.host("node-2"))
	node2 := s.host("node-2")
	s.write("nodes.yaml", s.node("node-1", "a", "node-1")+s.node("node-2", "b", "node-2"))
	s.write("agent.yaml", fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {namespace: default, name: agent, labels: {role: frontend}}, spec: {hostNetwork: true, nodeName: node-2},
 status: {podIPs: [{ip: %q}, {ip: %q}]}}`, node2.IPv4, node2.IPv6))
	s.start()
	return s
}

// checkSilent makes all probes at once, and checks that none of them is answered.
func (s *testbed) checkSilent(t *testing.T, probes ...string) {
	t.Helper()
	var wait sync.WaitGroup
	for _, text := range probes {
		p := parseAttempt(t, text)
		for _, addr := range s.targets(p.to) {
			wait.Go(func() {
				r := s.host(p.from).Connect(t.Context(), p.network, netip.AddrPortFrom(addr, p.port), probeTimeout)
				if r.Outcome != lab.TimedOut {
					t.Errorf("%s (%s): %s (%v), want no answer", text, addr, r.Outcome, r.Err)
				}
			})
		}
	}
	wait.Wait()
}

// TestClusterPoliciesOnPackets repeats with real connections, over IPv4 and IPv6, those unit
// tests of ClusterNetworkPolicy in package policy whose result is visible in packets. A number
// such as c05 names the same case in both. Denied packets get no answer.
func TestClusterPoliciesOnPackets(t *testing.T) {
	s := newClusterPolicyTestbed(t)
	const redis = " default/db tcp 6379"
	addr := func(name string, family int) string { return families[family].addr(s.host(name)).String() }
	isolatedDB := policies(db("[{from: [{podSelector: {}}]}]"))
	closed := ofAll("closed", "Baseline", 10, "ingress: [{action: Deny, from: ["+anyPods+"]}]")
	byService, byNodePort, byNode := []string{}, "default/web node-1 tcp 30000", "default/web node-1 tcp 30001"
	for _, f := range families {
		byService = append(byService, "default/web "+f.service+" tcp 81")
	}
	cases := []struct {
		name, text  string
		allow, deny []string
		closed      bool // parts of text cannot be understood, so it needs a file of its own
	}{
		{
			name: "c01 Baseline alone", text: clusterPolicies(closed),
			allow: []string{"outside" + redis, "node-1" + redis, "default/db outside tcp 80", "default/db node-1 tcp 80"},
			deny:  []string{"default/web" + redis, "mine/cart default/db udp 53", "default/far" + redis},
		},
		{
			name: "c01 NetworkPolicy before Baseline", text: isolatedDB + clusterPolicies(closed),
			allow: []string{"default/web" + redis, "default/far" + redis}, deny: []string{"mine/cart" + redis, "outside" + redis, "mine/cart default/web tcp 80"},
		},
		{
			name:  "c01 Admin before both",
			text:  isolatedDB + clusterPolicies(closed, ofAll("top", "Admin", 1000, "ingress: [{action: Accept, from: ["+myProject+"]}, {action: Deny, from: ["+frontends+"]}]")),
			allow: []string{"mine/cart" + redis, "mine/cart default/web tcp 80", "default/other" + redis}, deny: []string{"default/web" + redis, "default/far" + redis, "bare/odd" + redis},
		},
		{
			name:  "c01 lower priorities first, Admin",
			text:  clusterPolicies(ofAll("a", "Admin", 20, "ingress: [{action: Deny, from: ["+anyPods+"]}]"), ofAll("b", "Admin", 3, "ingress: [{action: Accept, from: ["+frontends+"]}]")),
			allow: []string{"default/web" + redis, "mine/cart default/db udp 53", "default/far" + redis}, deny: []string{"bare/odd" + redis, "default/other default/db udp 53"},
		},
		{
			name: "c01 lower priorities first, Admin, the other order",
			text: clusterPolicies(ofAll("a", "Admin", 20, "ingress: [{action: Deny, from: ["+anyPods+"]}]"), ofAll("b", "Admin", 21, "ingress: [{action: Accept, from: ["+frontends+"]}]")),
			deny: []string{"default/web" + redis, "bare/odd" + redis},
		},
		{
			name:  "c01 lower priorities first, Baseline",
			text:  clusterPolicies(ofAll("a", "Baseline", 20, "egress: [{action: Deny, to: ["+anyPods+"]}]"), ofAll("b", "Baseline", 3, "egress: [{action: Accept, to: ["+frontends+"]}]")),
			allow: []string{"default/db default/web tcp 80", "default/db default/far udp 53", "default/db outside tcp 80"}, deny: []string{"default/web" + redis, "default/web default/other udp 53"},
		},
		{
			name: "c01 both ends must accept",
			text: clusterPolicies(ofAll("in", "Admin", 1, "ingress: [{action: Accept, from: ["+frontends+"]}]"),
				"out: {tier: Admin, priority: 2, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{action: Deny, to: ["+anyPods+"]}]}"),
			allow: []string{"default/web" + redis, "mine/cart outside tcp 80"}, deny: []string{"mine/cart" + redis},
		},
		{
			name: "c02 it isolates no pod", text: clusterPolicies(toAll("{action: Accept, from: [" + myProject + "]}")),
			allow: []string{"mine/cart" + redis, "default/web" + redis, "outside" + redis, "default/db outside tcp 80"},
		},
		{
			name:  "c02 Baseline does not judge what NetworkPolicies isolate",
			text:  isolatedDB + clusterPolicies(ofAll("b", "Baseline", 1, "ingress: [{action: Deny, from: ["+anyPods+"]}], egress: [{action: Deny, to: [{networks: [192.0.2.0/24, \"2001:db8::/64\"]}]}]")),
			allow: []string{"default/web" + redis, "outside default/web tcp 80"}, deny: []string{"outside" + redis, "default/db outside tcp 80", "default/db node-1 tcp 80", "default/other default/web tcp 80"},
		},
		{
			name: "c02 a direction without rules", text: clusterPolicies(fromAll("{action: Deny, to: [" + frontends + "]}")),
			allow: []string{"default/web" + redis, "outside" + redis}, deny: []string{"default/db default/web tcp 80", "default/db default/far udp 53"},
		},
		{
			name:  "c03 the first rule that matches counts",
			text:  clusterPolicies(toAll("{action: Accept, from: [" + frontends + "], protocols: [{tcp: {destinationPort: {number: 6379}}}]}, {action: Deny, from: [" + frontends + "]}, {action: Accept, from: [" + anyPods + "]}")),
			allow: []string{"default/web" + redis, "bare/odd default/db tcp 80"}, deny: []string{"default/web default/db tcp 80", "default/far default/db udp 53"},
		},
		{
			name:  "c03 Pass leaves the tier",
			text:  clusterPolicies(toAll("{action: Pass, from: ["+frontends+"]}, {action: Deny, from: ["+anyPods+"]}"), ofAll("q", "Admin", 2, "ingress: [{action: Deny, from: ["+frontends+"]}]")),
			allow: []string{"default/web" + redis, "mine/cart default/db udp 53"}, deny: []string{"bare/odd" + redis},
		},
		{
			name:  "c03 after Pass, NetworkPolicy and Baseline decide",
			text:  policies(db("[{ports: [{port: 6379}]}]")) + clusterPolicies(closed, toAll("{action: Pass, from: ["+frontends+"]}, {action: Deny, from: ["+anyPods+"]}")),
			allow: []string{"default/web" + redis, "outside" + redis}, deny: []string{"default/web default/db tcp 80", "bare/odd" + redis, "mine/cart default/web tcp 80"},
		},
		{
			name:  "c03 Pass in Baseline",
			text:  clusterPolicies(ofAll("b", "Baseline", 1, "ingress: [{action: Pass, from: ["+frontends+"]}]"), closed),
			allow: []string{"default/web" + redis, "mine/cart default/db udp 53"}, deny: []string{"bare/odd" + redis},
		},
		{
			name: "c04 equal priorities, denied by the first name", text: clusterPolicies(
				ofAll("m", "Admin", 5, "ingress: [{action: Accept, from: ["+anyPods+"]}]"), ofAll("l", "Admin", 5, "ingress: [{action: Deny, from: ["+frontends+"]}]")),
			allow: []string{"bare/odd" + redis}, deny: []string{"default/web" + redis},
		},
		{
			name: "c04 equal priorities, accepted by the first name", text: clusterPolicies(
				ofAll("m", "Baseline", 5, "ingress: [{action: Accept, from: ["+anyPods+"]}]"), ofAll("o", "Baseline", 5, "ingress: [{action: Deny, from: ["+frontends+"]}]")),
			allow: []string{"bare/odd" + redis, "default/web" + redis},
		},
		{
			name:  "c05 protocols and ranges",
			text:  clusterPolicies(toAll("{action: Deny, from: [" + frontends + "], protocols: [{tcp: {destinationPort: {range: {start: 80, end: 6379}}}}, {udp: {destinationPort: {number: 54}}}, {sctp: {destinationPort: {number: 8080}}}]}")),
			allow: []string{"default/web default/db tcp 8080", "default/web default/db udp 53"}, deny: []string{"default/web default/db tcp 80", "default/web" + redis},
		},
		{
			name:  "c06 a host-network pod is neither subject nor peer by label",
			text:  clusterPolicies("p: {tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: frontend}}}}, egress: [{action: Deny, to: ["+anyPods+"]}]}", ofAll("q", "Admin", 2, "ingress: [{action: Deny, from: ["+frontends+"]}], egress: [{action: Deny, to: ["+frontends+"]}]")),
			allow: []string{"node-2" + redis, "default/db node-2 tcp 80"}, deny: []string{"default/web" + redis, "default/far" + redis},
		},
		{
			name: "c06 networks match a node, and with it its host-network pod", text: clusterPolicies(fromAll("{action: Deny, to: [" + s.networksOf("node-2") + "]}")),
			allow: []string{"default/db outside tcp 80", "default/db node-1 tcp 80"}, deny: []string{"default/db node-2 tcp 80"},
		},
		{
			name: "c06 networks match pods and outside", text: clusterPolicies(fromAll("{action: Deny, to: [" + s.networksOf("default/web") + ", " + s.networksOf("outside") + "]}")),
			allow: []string{"default/db default/other tcp 80", "default/web" + redis}, deny: []string{"default/db default/web tcp 80", "default/web outside udp 53"},
		},
		{
			name: "c06 networks of IPv4", text: clusterPolicies(fromAll("{action: Deny, to: [{networks: [0.0.0.0/0]}]}")),
			allow: []string{"default/db " + addr("default/web", 1) + " tcp 80", "default/db " + addr("node-1", 1) + " tcp 80"},
			deny:  []string{"default/db " + addr("default/web", 0) + " tcp 80", "default/db " + addr("node-1", 0) + " tcp 80"},
		},
		{
			name: "c06 networks of IPv6", text: clusterPolicies(fromAll("{action: Deny, to: [{networks: [\"::/0\"]}]}")),
			allow: []string{"default/db " + addr("default/web", 0) + " tcp 80", "default/db " + addr("node-1", 0) + " tcp 80"},
			deny:  []string{"default/db " + addr("default/web", 1) + " tcp 80", "default/db " + addr("node-1", 1) + " tcp 80"},
		},
		{
			name: "c06 all namespaces is every pod, and nothing outside the cluster", text: clusterPolicies(ofAll("p", "Admin", 1, "ingress: [{action: Deny, from: ["+anyPods+"]}], egress: [{action: Deny, to: ["+anyPods+"]}]")),
			allow: []string{"outside" + redis, "node-1" + redis, "node-2" + redis, "default/db outside tcp 80", "default/db node-1 tcp 80", "default/db node-2 udp 53"},
			deny:  []string{"bare/odd" + redis, "default/far" + redis, "default/db default/far udp 53"},
		},
		{
			name: "c07 networks of the own node", text: clusterPolicies(fromAll("{action: Deny, to: [" + s.networksOf("node-1") + "]}")),
			allow: []string{"node-1 default/web tcp 80", "default/web node-2 tcp 80", byNodePort}, deny: []string{"default/web node-1 tcp 80", "default/web node-1 udp 53", byNode},
		},
		{
			name: "c07 nodes by label", text: clusterPolicies(fromAll("{action: Deny, to: [{nodes: {matchLabels: {pool: b}}}]}")),
			allow: []string{"default/web node-1 tcp 80", byNode}, deny: []string{"default/web node-2 tcp 80", "default/other node-2 udp 53"},
		},
		{
			name: "c07 all nodes", text: clusterPolicies(fromAll("{action: Deny, to: [{nodes: {}}]}")),
			allow: []string{"default/web outside tcp 80", "default/web" + redis, byNodePort, "node-1" + redis, "node-2" + redis},
			deny:  []string{"default/web node-1 tcp 80", "default/web node-2 tcp 80", byNode},
		},
		{
			name: "c07 the port at the node counts, and not the NodePort", text: clusterPolicies(fromAll("{action: Deny, to: [{nodes: {}}], protocols: [{tcp: {destinationPort: {range: {start: 30000, end: 30001}}}}]}")),
			allow: []string{byNodePort, byNode, "default/web node-1 tcp 80"},
		},
		{
			name: "c07 a rule about the pod behind the NodePort", text: clusterPolicies(fromAll("{action: Deny, to: [" + s.networksOf("default/db") + "]}")),
			allow: []string{byNode}, deny: []string{byNodePort, "default/web" + redis},
		},
		{
			name: "c07 what the node sends cannot be denied", text: policies(denyAll) + clusterPolicies(toAll("{action: Deny, from: ["+anyPods+"]}"), ofAll("b", "Baseline", 1, "egress: [{action: Deny, to: ["+anyNetwork+"]}]")),
			allow: []string{"node-1" + redis, "node-1 default/db udp 53", "default/web node-1 tcp 80"}, deny: []string{"node-2" + redis, "bare/odd node-1 tcp 80", "mine/cart outside tcp 80"},
		},
		{
			name: "c08 named ports", text: clusterPolicies(fromAll("{action: Deny, to: [" + anyPods + "], protocols: [{destinationNamedPort: redis}]}")),
			allow: []string{"default/web default/db tcp 80", "default/web default/db udp 53", "default/web outside tcp 6379"}, deny: []string{"default/web" + redis, "default/web default/far tcp 6379"},
		},
		{
			name: "c08 named ports for ingress", text: clusterPolicies(toAll("{action: Accept, from: [" + anyPods + "], protocols: [{destinationNamedPort: redis}]}, {action: Deny, from: [" + anyPods + "]}")),
			allow: []string{"default/web" + redis}, deny: []string{"default/web default/db tcp 80", "default/web default/db udp 53"},
		},
		{
			name: "c09 a rule that accepts an unknown peer", closed: true, text: clusterPolicies(fromAll("{action: Accept, to: [{}]}, {action: Deny, to: [" + anyPods + "]}")),
			allow: []string{"default/db outside tcp 80"}, deny: []string{"default/web" + redis},
		},
		{
			name: "c09 rules that deny or pass an unknown peer", closed: true, text: clusterPolicies(
				"p: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{action: Pass, to: [{later: {}}], protocols: [{tcp: {destinationPort: {number: 1}}}]}]}",
				"q: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: bare}}}, ingress: [{action: Deny, from: [{}]}]}"),
			allow: []string{"default/web outside tcp 80", "bare/odd outside tcp 80"},
			deny:  []string{"mine/cart outside udp 53", "mine/cart" + redis, "mine/cart node-1 tcp 80", "outside bare/odd tcp 80", "default/web bare/odd udp 53"},
		},
		{
			name: "c09 an unknown protocol", closed: true, text: clusterPolicies(fromAll("{action: Accept, to: [" + anyPods + "], protocols: [{}]}, {action: Deny, to: [" + anyPods + "]}")),
			allow: []string{"default/db outside tcp 80"}, deny: []string{"default/web" + redis},
		},
		{
			name: "c09 an unknown action", closed: true, text: clusterPolicies("p: {tier: Baseline, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{action: Log, to: [" + frontends + "]}]}"),
			allow: []string{"default/web" + redis}, deny: []string{"mine/cart" + redis, "mine/cart outside tcp 80", "mine/cart node-1 tcp 80"},
		},
		{
			name: "c10 domain names", closed: true, text: clusterPolicies(
				"p: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, egress: [{action: Accept, to: [{domainNames: [example.com]}, "+s.networksOf("default/db")+"]}, {action: Deny, to: ["+anyNetwork+"]}]}",
				"q: {tier: Admin, priority: 2, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: bare}}}, egress: [{action: Deny, to: [{domainNames: [example.com]}]}]}"),
			allow: []string{"mine/cart" + redis}, deny: []string{"mine/cart outside tcp 80", "bare/odd" + redis, "bare/odd outside udp 53"},
		},
		{
			name: "c11 replies pass", text: clusterPolicies("p: {tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: db}}}}, ingress: [{action: Accept, from: [" + anyPods + "]}], egress: [{action: Deny, to: [" + anyNetwork + "]}]}"),
			allow: []string{"default/web" + redis, "default/far default/db udp 53", "node-1" + redis, "outside" + redis}, deny: []string{"default/db default/web tcp 80", "default/db outside udp 53", "default/db node-1 tcp 80"},
		},
		{
			name: "c12 the address of a Service does not count", text: clusterPolicies(fromAll("{action: Deny, to: [{networks: [10.96.0.0/16, \"fd00:96::/112\"]}]}")),
			allow: append(byService, "default/web"+redis),
		},
		{
			name: "c12 the address behind a Service counts", text: clusterPolicies(fromAll("{action: Deny, to: [" + s.networksOf("default/db") + "]}")),
			allow: []string{"default/web default/other tcp 80"}, deny: byService,
		},
		{
			name: "c12 a pod to its own address is subject to no policy", text: clusterPolicies(ofAll("p", "Admin", 1, "ingress: [{action: Deny, from: ["+anyPods+"]}], egress: [{action: Deny, to: ["+anyNetwork+"]}]")),
			allow: []string{"default/db " + families[0].service + " tcp 81", "default/db " + families[1].service + " tcp 81"}, deny: append(byService, "default/web"+redis, "default/web outside tcp 80"),
		},
		{
			name: "the version before", text: strings.ReplaceAll(clusterPolicies(closed), "v1beta1", "v1alpha2"),
			allow: []string{"outside" + redis}, deny: []string{"default/web" + redis},
		},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			file := "policies.yaml"
			if c.closed {
				s.save(file, "")
				file = fmt.Sprintf("closed-%d.yaml", i)
				defer s.save(file, "")
			}
			s.save(file, c.text)
			for range 2 { // by the agent's verdicts, then by those that caches remember
				s.check(t, c.allow, nil)
				s.checkSilent(t, c.deny...)
			}
		})
	}
}
