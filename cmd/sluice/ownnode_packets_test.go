//go:build linux

package main

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// clusterPolicies returns manifests of ClusterNetworkPolicies with the given specs, each written
// "name: {spec}" in YAML flow style.
func clusterPolicies(specs ...string) string {
	var b strings.Builder
	for _, text := range specs {
		name, spec, _ := strings.Cut(text, ": ")
		fmt.Fprintf(&b, "---\n{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: %s}, spec: %s}\n", name, spec)
	}
	return b.String()
}

// cnp returns a ClusterNetworkPolicy as "name: {spec}". Its subject is all pods with the given
// role, and egress is the list of its egress rules.
func cnp(name, tier, role, egress string) string {
	return fmt.Sprintf("%s: {tier: %s, priority: 10, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: %s}}}}, egress: %s}", name, tier, role, egress)
}

// nodeNetworks returns a rule for the addresses of a node. more is the text of further fields.
func (s *testbed) nodeNetworks(action, node, more string) string {
	h := s.host(node)
	return fmt.Sprintf("{action: %s, to: [{networks: [\"%s/32\", \"%s/128\"]}]%s}", action, h.IPv4, h.IPv6, more)
}

// What a pod sends to its own node is judged by ClusterNetworkPolicies, and by these only.
func TestOwnNodeOnPackets(t *testing.T) {
	for _, args := range [][]string{nil, {"--kernel-cache", "off"}, {"--iptables", "legacy"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) { testOwnNode(t, args...) })
	}
}

func testOwnNode(t *testing.T, args ...string) {
	s := newTestbed(t)
	s.serve(s.host("node-1"))
	s.serve(s.host("node-2"))
	for _, name := range []string{"node-1", "node-2"} {
		h := s.host(name)
		s.write(name+".yaml", fmt.Sprintf("{apiVersion: v1, kind: Node, metadata: {name: %s, labels: {name: %s}}, status: {addresses: [{type: InternalIP, address: %q}, {type: InternalIP, address: %q}]}}\n",
			name, name, h.IPv4, h.IPv6))
	}
	s.start(args...)
	const tcp80 = ", protocols: [{tcp: {destinationPort: {number: 80}}}]"
	probes := []string{"node-1 default/web tcp 80", "node-1 default/db udp 53", "node-1 default/db tcp 6379"}
	web, other := []string{"default/web node-1 tcp 80", "default/web node-1 udp 53"}, []string{"default/other node-1 tcp 80", "mine/cart node-2 tcp 80"}
	cases := []struct {
		name          string
		text          string
		allow, deny   []string
		without       bool // no rule jumps from INPUT
		networkPolicy string
	}{
		{name: "no policy", allow: web, without: true},
		{name: "NetworkPolicy alone leaves it open", networkPolicy: denyAll, allow: web, without: true},
		{name: "a policy for ingress", without: true, text: clusterPolicies("in: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}"), allow: web},
		{name: "a rule that accepts", without: true, text: clusterPolicies(cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Accept", "node-1", "")+"]")), allow: web},
		{name: "Admin denies", text: clusterPolicies(cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Deny", "node-1", "")+"]")), deny: web, allow: []string{"default/web node-2 tcp 80"}},
		{name: "Admin denies a port", text: clusterPolicies(cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Deny", "node-1", tcp80)+"]")), deny: web[:1], allow: append(web[1:], "default/web node-1 tcp 8080")},
		{name: "Admin accepts a port and denies the rest", text: clusterPolicies(cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Accept", "node-1", tcp80)+", "+s.nodeNetworks("Deny", "node-1", "")+"]")), allow: web[:1], deny: web[1:]},
		{name: "Admin passes, Baseline denies", text: clusterPolicies(
			cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Pass", "node-1", tcp80)+", "+s.nodeNetworks("Accept", "node-1", "")+"]"),
			cnp("b", "Baseline", "frontend", "["+s.nodeNetworks("Deny", "node-1", "")+"]")), deny: web[:1], allow: web[1:]},
		{name: "a NetworkPolicy replaces Baseline", networkPolicy: denyAll, text: clusterPolicies(cnp("b", "Baseline", "frontend", "["+s.nodeNetworks("Deny", "node-1", "")+"]")), allow: web},
		{name: "Baseline denies", text: clusterPolicies(cnp("b", "Baseline", "frontend", "["+s.nodeNetworks("Deny", "node-1", "")+"]")), deny: web},
		{name: "another node", text: clusterPolicies(cnp("a", "Admin", "frontend", "["+s.nodeNetworks("Deny", "node-2", "")+"]")), allow: web, deny: []string{"default/web node-2 tcp 80", "mine/cart node-2 tcp 80"}},
		{name: "nodes by label", text: clusterPolicies(cnp("a", "Admin", "frontend", "[{action: Deny, to: [{nodes: {matchLabels: {name: node-1}}}]}]")), deny: web, allow: []string{"default/web node-2 tcp 80"}},
		{name: "other nodes by label", text: clusterPolicies(cnp("a", "Admin", "frontend", "[{action: Deny, to: [{nodes: {matchExpressions: [{key: name, operator: NotIn, values: [node-1]}]}}]}]")), allow: web, deny: []string{"default/web node-2 tcp 80"}},
		{name: "no policy again", allow: web, without: true},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s.save("policies.yaml", policiesOf(c.networkPolicy)+c.text)
			for range 2 { // first the agent answers, then the cache
				allow := append(append([]string{}, probes...), c.allow...)
				if c.networkPolicy == "" {
					allow = append(allow, other[0])
				}
				s.check(t, allow, c.deny)
			}
			if text := s.savedMangle(); strings.Contains(text, "-A INPUT -j SLUICE-INPUT") == c.without {
				t.Errorf("a jump from INPUT should not exist: %t\n%s", c.without, text)
			}
		})
	}
}

// policiesOf returns the manifest of a NetworkPolicy written as "namespace/name: {spec}", or ""
// without one.
func policiesOf(spec string) string {
	if spec == "" {
		return ""
	}
	return policies(spec)
}

// savedMangle returns the rules in the tables mangle of the node, of both families and backends.
func (s *testbed) savedMangle() string {
	s.t.Helper()
	var all strings.Builder
	for _, name := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		text, err := s.Nodes[0].Output(exec.Command(name, "-t", "mangle"))
		if err != nil {
			s.t.Fatal(err)
		}
		all.WriteString(text)
	}
	return all.String()
}
