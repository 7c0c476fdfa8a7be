//go:build linux

package main

import (
	"strings"
	"testing"
)

// Policies that several cases use.
const (
	demo1   = "default/access-demo1: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{protocol: TCP, port: 6379}]}]}"
	demo2   = "default/access-demo2: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}}], ports: [{protocol: TCP, port: 6379}]}]}"
	denyAll = "default/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}"
)

// db returns a policy that isolates the database for ingress.
func db(ingress string) string {
	return "default/p: {podSelector: {matchLabels: {role: db}}, ingress: " + ingress + "}"
}

// webEgress returns a policy that isolates the frontend for egress.
func webEgress(egress string) string {
	return "default/out: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress], egress: " + egress + "}"
}

// TestSemanticsOnPackets makes real connections, over IPv4 and IPv6. It tests each statement in
// the API's documentation that packets can confirm or refute. The number in the name of a case
// is that of the statement: statements are numbered in the order of that documentation.
func TestSemanticsOnPackets(t *testing.T) {
	const redis = " default/db tcp 6379"
	cases := []struct {
		name        string
		policies    []string
		allow, deny []string
	}{
		{
			"01 without a policy everything passes", nil,
			[]string{"default/web" + redis, "mine/cart" + redis, "bare/odd default/web udp 53", "outside" + redis, "default/db outside tcp 80", "default/far default/db udp 53"}, nil,
		},
		{
			"01 both ends must allow", []string{demo1, webEgress("[{ports: [{port: 6379}]}]")},
			[]string{"default/web" + redis, "default/web default/other tcp 6379"},
			[]string{"default/web default/other tcp 80", "default/web default/db tcp 80", "default/other" + redis},
		},
		{
			"02 no policyTypes: ingress alone", []string{db("[]")},
			[]string{"default/db default/web tcp 80", "default/db outside tcp 80"}, []string{"default/web" + redis},
		},
		{
			"02 no policyTypes with an egress rule: both", []string{"default/p: {podSelector: {matchLabels: {role: db}}, egress: [{ports: [{port: 80}]}]}"},
			[]string{"default/db default/web tcp 80"}, []string{"default/db default/web tcp 8080", "default/web" + redis},
		},
		{
			"02 an empty list of egress rules isolates nothing", []string{"default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{}], egress: []}"},
			[]string{"default/db default/web tcp 80", "default/web" + redis}, nil,
		},
		{
			"03 ingress absent", []string{"default/p: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress]}"},
			[]string{"default/db default/web tcp 80"}, []string{"default/web" + redis, "outside" + redis, "default/web default/db udp 53"},
		},
		{"03 one empty rule allows everything", []string{db("[{}]")}, []string{"default/web" + redis, "outside default/db tcp 80", "bare/odd default/db udp 53"}, nil},
		{
			"03 egress absent", []string{"default/out: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress]}"},
			[]string{"default/other default/web tcp 80"}, []string{"default/web" + redis, "default/web outside tcp 80", "default/web mine/cart udp 53"},
		},
		{
			"04 an empty podSelector is all pods of the policy's namespace", []string{"default/p: {podSelector: {}}"},
			[]string{"default/web mine/cart tcp 80", "outside bare/odd tcp 80"},
			[]string{"default/web" + redis, "mine/cart default/web tcp 80", "outside default/other tcp 80"},
		},
		{
			"05 policies add up", []string{demo1, demo2},
			[]string{"default/web" + redis, "mine/cart" + redis, "default/far" + redis},
			[]string{"default/other" + redis, "bare/odd" + redis, "outside" + redis, "default/web default/db tcp 80", "mine/cart default/db tcp 80"},
		},
		{
			"08 an empty from is everyone", []string{db("[{from: [], ports: [{port: 6379}]}]")},
			[]string{"default/web" + redis, "outside" + redis}, []string{"default/web default/db tcp 80"},
		},
		{
			"08 an empty podSelector is the policy's namespace", []string{db("[{from: [{podSelector: {}}]}]")},
			[]string{"default/web" + redis, "default/other default/db udp 53", "default/far" + redis}, []string{"mine/cart" + redis, "outside" + redis},
		},
		{
			"08 an empty namespaceSelector is every pod", []string{db("[{from: [{namespaceSelector: {}}]}]")},
			[]string{"default/web" + redis, "mine/cart" + redis, "bare/odd" + redis}, []string{"outside" + redis},
		},
		{
			"09 both selectors in one item", []string{db("[{from: [{namespaceSelector: {matchLabels: {project: myproject}}, podSelector: {matchLabels: {role: frontend}}}]}]")},
			[]string{"mine/cart" + redis}, []string{"default/web" + redis, "bare/odd" + redis},
		},
		{
			"09 two items are either", []string{db("[{from: [{namespaceSelector: {matchLabels: {project: myproject}}}, {podSelector: {matchLabels: {role: backend}}}]}]")},
			[]string{"mine/cart" + redis, "default/other" + redis}, []string{"default/web" + redis, "bare/odd" + redis},
		},
		{
			"10 NotIn matches without the key", []string{db("[{from: [{namespaceSelector: {}, podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [frontend]}]}}]}]")},
			[]string{"default/other" + redis, "bare/odd" + redis}, []string{"default/web" + redis, "mine/cart" + redis},
		},
		{
			"10 Exists, DoesNotExist and In together", []string{db("[{from: [{podSelector: {matchExpressions: [{key: role, operator: Exists}, {key: zone, operator: DoesNotExist}, {key: role, operator: In, values: [frontend, x]}]}}]}]")},
			[]string{"default/web" + redis}, []string{"default/far" + redis, "default/other" + redis},
		},
		{
			"11 every namespace has its name as a label", []string{db("[{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: bare}}}]}]")},
			[]string{"bare/odd" + redis}, []string{"default/web" + redis, "mine/cart" + redis},
		},
		{
			"13 ipBlock with except as ingress source", []string{db("[{from: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 2001:db8::/32}}]}]")},
			[]string{"outside" + redis}, []string{"default/web" + redis},
		},
		{
			"13 an exception is denied", []string{db("[{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24]}}, {ipBlock: {cidr: \"::/0\", except: [\"2001:db8::/64\"]}}]}]")},
			[]string{"default/web" + redis, "mine/cart" + redis}, []string{"outside" + redis},
		},
		{
			"13 an exception of one rule, allowed by another", []string{db("[{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [192.0.2.0/24]}}]}, {from: [{ipBlock: {cidr: 192.0.2.0/25}}, {ipBlock: {cidr: \"2001:db8::/64\"}}]}]")},
			[]string{"outside" + redis}, nil,
		},
		{
			"13 ipBlock as egress destination", []string{webEgress("[{to: [{ipBlock: {cidr: 192.0.2.0/24}}, {ipBlock: {cidr: 2001:db8::/64}}]}]")},
			[]string{"default/web outside tcp 80", "mine/cart" + redis}, []string{"default/web" + redis, "default/web mine/cart tcp 80"},
		},
		{
			"16 an item without protocol is TCP", []string{db("[{ports: [{port: 53}, {port: 80}]}]")},
			[]string{"default/web default/db tcp 80"}, []string{"default/web default/db udp 53", "default/web" + redis},
		},
		{
			"16 an item without port is all of its protocol", []string{db("[{ports: [{protocol: UDP}]}]")},
			[]string{"default/web default/db udp 53"}, []string{"default/web" + redis},
		},
		{
			"17 a range includes both its ends", []string{db("[{ports: [{port: 6379, endPort: 8080}]}]")},
			[]string{"default/web" + redis, "default/web default/db tcp 8080"}, []string{"default/web default/db tcp 80", "default/web default/db udp 53"},
		},
		{
			"18 a named port for ingress", []string{db("[{ports: [{port: redis}]}]")},
			[]string{"default/web" + redis}, []string{"default/web default/db tcp 80"},
		},
		{
			"18 a named port for egress; outside has none", []string{webEgress("[{ports: [{port: redis}]}]")},
			[]string{"default/web" + redis, "default/web default/other tcp 6379"}, []string{"default/web default/db tcp 80", "default/web outside tcp 6379"},
		},
		{
			"19 one protocol's rule opens no other", []string{db("[{ports: [{protocol: SCTP, port: 6379}]}]")},
			nil, []string{"default/web" + redis, "default/web default/db udp 53"},
		},
		{
			"21 replies pass", []string{db("[{}]"), "default/none: {podSelector: {matchLabels: {role: db}}, policyTypes: [Egress]}"},
			[]string{"default/web" + redis, "default/web default/db udp 53", "outside default/db tcp 80"}, []string{"default/db default/web tcp 80"},
		},
		{
			"22 the pod's own node passes, another node does not", []string{denyAll},
			[]string{"node-1" + redis, "node-1 default/web tcp 80", "node-1 default/db udp 53", "default/web default/web tcp 80"},
			[]string{"node-2" + redis, "node-2 default/web udp 53", "default/web" + redis, "outside" + redis, "default/far" + redis},
		},
	}
	s := newTestbed(t)
	s.start()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s.save("policies.yaml", policies(c.policies...))
			s.check(t, c.allow, c.deny) // by the agent's verdicts
			s.check(t, c.allow, c.deny) // by the verdicts that caches remember
		})
	}
}

// If two equal policies select a pod, it stays isolated when one of them is deleted.
func TestTwoEqualPoliciesOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.start()
	twin := strings.Replace(demo1, "access-demo1", "twin", 1)
	for _, specs := range [][]string{{demo1, twin}, {twin}} {
		s.save("policies.yaml", policies(specs...))
		s.check(t, []string{"default/web default/db tcp 6379"}, []string{"default/other default/db tcp 6379"})
	}
	s.save("policies.yaml", "")
	s.check(t, []string{"default/other default/db tcp 6379"}, nil)
}

// Cases of the API's documentation in which pods or namespaces change.
func TestPodsOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start()
	const redis = " default/db tcp 6379"
	t.Run("06 a host network pod is its node", func(t *testing.T) {
		node := s.host("node-2")
		s.save("more.yaml", `
{apiVersion: v1, kind: Pod, metadata: {namespace: default, name: agent, labels: {role: frontend}}, spec: {hostNetwork: true},
 status: {podIPs: [{ip: "`+node.IPv4.String()+`"}, {ip: "`+node.IPv6.String()+`"}]}}`)
		s.check(t, []string{"default/web" + redis}, []string{"node-2" + redis})
	})
	t.Run("07 a finished pod has no address", func(t *testing.T) {
		odd := s.host("bare/odd")
		finished := strings.Replace(s.pod("default/done", "role: frontend", 0, odd.Addrs()...), "status: {", "status: {phase: Succeeded, ", 1)
		s.save("more.yaml", finished)
		s.check(t, nil, []string{"bare/odd" + redis})
	})
	t.Run("12 a pod's labels change", func(t *testing.T) {
		s.save("more.yaml", "")
		s.save("cluster.yaml", strings.Replace(testbedNamespaces+s.pods(), "role: backend", "role: frontend", 1))
		s.check(t, []string{"default/other" + redis}, nil)
		s.save("cluster.yaml", testbedNamespaces+s.pods())
		s.check(t, nil, []string{"default/other" + redis})
	})
	t.Run("12 a namespace's labels change", func(t *testing.T) {
		s.save("policies.yaml", policies(demo2))
		s.check(t, []string{"mine/cart" + redis}, nil)
		s.save("cluster.yaml", strings.Replace(testbedNamespaces, "myproject", "other", 1)+s.pods())
		s.check(t, nil, []string{"mine/cart" + redis})
		s.save("cluster.yaml", testbedNamespaces+s.pods())
		s.save("policies.yaml", policies(demo1))
	})
	t.Run("15 a malformed CIDR allows nothing", func(t *testing.T) {
		s.save("policies.yaml", "")
		// The file was never valid, so its readable parts are in force.
		s.save("malformed.yaml", policies(db("[{from: [{ipBlock: {cidr: 10.077.0.0/16}}, {ipBlock: {cidr: 2001:db8::/64, except: [2001:db8::/zz]}}]}]")))
		s.check(t, nil, []string{"default/web" + redis, "outside" + redis})
		s.save("malformed.yaml", "")
		s.save("policies.yaml", policies(demo1))
	})
	t.Run("28 a pod that starts under a policy is isolated", func(t *testing.T) {
		h, err := s.Nodes[0].AddPod("late")
		if err != nil {
			t.Fatal(err)
		}
		s.hosts["default/late"] = h
		s.serve(h)
		s.save("policies.yaml", policies(denyAll))
		s.save("late.yaml", s.pod("default/late", "role: db", 0, h.Addrs()...))
		s.check(t, nil, []string{"default/web default/late tcp 80", "default/late outside udp 53"})
		s.save("policies.yaml", policies(demo1))
	})
	t.Run("29 an address passes from one pod to another", func(t *testing.T) {
		s.check(t, []string{"default/web" + redis, "default/web" + redis}, nil) // twice, so that the verdict is cached
		moved := strings.Replace(testbedNamespaces+s.pods(), "name: web, labels: {role: frontend}", "name: successor, labels: {role: nobody}", 1)
		s.save("cluster.yaml", moved)
		s.check(t, nil, []string{"default/web" + redis})
		s.save("cluster.yaml", testbedNamespaces+s.pods())
		s.check(t, []string{"default/web" + redis}, nil)
	})
}
