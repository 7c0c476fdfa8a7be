package expect_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/expect"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
)

func run(t *testing.T, c *expect.Cluster, test string) expect.Result {
	t.Helper()
	f, err := expect.Parse([]byte("tests:\n- " + test))
	if err != nil {
		t.Fatal(err)
	}
	return f.Tests[0].Run(c)
}

// replicas returns a cluster with the Node n1, on which two equal pods of the workload shop/web run,
// the Pod shop/db and the Node n2.
func replicas() *expect.Cluster {
	owner := policy.Ref{Kind: "Deployment", Namespace: "shop", Name: "web"}
	var o inventory.Objects
	for i, name := range []string{"web-1", "web-2", "db"} {
		p := &policy.Pod{
			Namespace: "shop", Name: name, Labels: labels.Set{"app": name[:2]}, Node: "n1",
			Addrs: []netip.Addr{netip.MustParseAddr(fmt.Sprintf("10.0.0.%d", i+1))}, Hosts: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
		}
		if name != "db" {
			p.Owner = owner
		}
		o.Pods = append(o.Pods, p)
	}
	o.Workloads = []*kubepod.Workload{{Ref: owner, Pod: &policy.Pod{Namespace: "shop", Name: "web", Labels: labels.Set{"app": "we"}}}}
	o.Nodes = []*policy.Node{
		{Name: "n1", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		{Name: "n2", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.2")}},
	}
	o.Policies = []*policy.Policy{{
		Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "shop", Name: "in"}, Tier: policy.NetworkPolicy,
		Subject: policy.Subject{Namespace: "shop", Pods: labels.Everything()}, Isolates: [2]bool{filter.Ingress: true},
		Rules: [2][]policy.Rule{filter.Ingress: {
			{Action: policy.Accept, Peers: []policy.Peer{{Pods: labels.SelectorFromSet(labels.Set{"app": "db"})}}},
			{Action: policy.Accept, Peers: []policy.Peer{{Block: &policy.Block{CIDR: netip.MustParsePrefix("198.51.100.0/24")}}}},
		}},
	}}
	return clusterOf(inventory.New(o))
}

// "All but" includes all other pods, the other nodes, and all addresses outside the cluster. It
// excludes flows from a pod to itself and from its own node, which policies cannot deny.
func TestAllBut(t *testing.T) {
	tests := []struct {
		test     string
		flows    int
		failures string
		err      string
	}{
		// the ends are the replicas of web, n2, the world, and 198.51.100.0/24
		{`{from: {not: shop/db}, to: shop/web, port: 80, expect: deny}`, 4, "198.51.100.0/24 to shop/web", ""},
		{`{from: {not: [shop/db, 198.51.0.0/16]}, to: shop/web, port: 80, expect: deny}`, 3, "", ""},
		{`{from: {not: [shop/db, world]}, to: shop/web, port: 80, expect: deny}`, 2, "", ""},
		{`{from: {not: [shop/db, world, node/n2]}, to: shop/web, port: 80, expect: deny}`, 1, "", ""},
		{`{from: {not: [ns/shop, world, node/n1]}, to: shop/web, port: 80, expect: deny}`, 1, "", ""},
		{`{from: {not: 198.51.100.0/25}, to: shop/db, port: 80, expect: deny}`, 4, "198.51.100.0/24 to shop/db", ""},
		{`{from: {namespace: shop, not: web}, to: ns/shop, port: 80, expect: allow}`, 1, "", ""},
		{`{from: {namespace: shop, not: web-1}, to: shop/web, port: 80, expect: deny}`, 2, "shop/db to shop/web", ""},
		{`{from: node/n1, to: shop/web, port: 80, expect: allow}`, 1, "", ""}, // a test may name the pod's own node
		{`{from: node/n1, to: ns/shop, port: 80, expect: allow}`, 2, "", ""},
		{`{from: {not: [ns/shop, world, node/n2]}, to: shop/web, port: 80, expect: deny}`, 0, "", "no flow is left to test"},
		{`{from: {namespace: shop, not: [web, db]}, to: shop/web, port: 80, expect: deny}`, 0, "", "from: nothing is left"},
	}
	for _, tt := range tests {
		t.Run(tt.test, func(t *testing.T) {
			r := run(t, replicas(), tt.test)
			var failures []string
			for _, f := range r.Failures {
				failures = append(failures, f.Flow.From.Name+" to "+f.Flow.To.Name)
			}
			if r.Flows != tt.flows || strings.Join(failures, ", ") != tt.failures {
				t.Errorf("%d flows, want %d; failures %q, want %q", r.Flows, tt.flows, failures, tt.failures)
			}
			if (r.Err != nil) != (tt.err != "") || r.Err != nil && !strings.Contains(r.Err.Error(), tt.err) {
				t.Errorf("error %v, want %q", r.Err, tt.err)
			}
		})
	}
}

// A flow touches each rule that matches it, even if the decision names another rule, and each policy
// that isolates one of its ends.
func TestCoverage(t *testing.T) {
	c := cluster(t)
	c.Coverage = &expect.Coverage{}
	c.Coverage.Add(c.Inventory.Policies)
	c.Coverage.Add(c.Inventory.Policies) // adding the policies again, as for a second file of tests, changes nothing
	run(t, c, `{from: web, to: db, port: 6379, expect: allow}`)
	want := expect.CoverageReport{Policies: 4, TestedPolicies: 3, Rules: 4, TestedRules: 2, Untested: []expect.Untested{
		{Policy: "default/four", Rules: []expect.UntestedRule{{Direction: "ingress", Index: 0}}},
		{Policy: "default/out"},
	}}
	if got := c.Coverage.Report(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	run(t, c, `{from: db, to: 203.0.113.9, port: 443, expect: allow}`)
	run(t, c, `{from: 10.0.0.3, to: db, port: 1, expect: allow}`)
	if got := c.Coverage.Report(); got.TestedRules != 4 || got.TestedPolicies != 4 || len(got.Untested) != 0 {
		t.Errorf("%+v, want all tested", got)
	}
}
