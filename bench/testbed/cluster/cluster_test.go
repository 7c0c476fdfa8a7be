package cluster_test

import (
	"net/netip"
	"reflect"
	"testing"

	"sluice/bench/testbed/cluster"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// TestGeneratedCluster checks what benchmarks rely on: the sizes, valid policies, enough
// allowed flows, and enough denied ones.
func TestGeneratedCluster(t *testing.T) {
	for _, o := range []cluster.Options{
		{Pods: 1},
		{Pods: 7, Policies: 2},
		{Pods: 100, Policies: 10},
		{Pods: 1000, Policies: 100, Namespaces: 20, DualStack: true},
		{Pods: 1000, Policies: 250, Namespaces: 7},
		{Pods: 1000, Policies: 50, Namespaces: 5, Replicas: 20},
	} {
		c, w := cluster.New(1, o), policy.NewStore()
		c.Fill(w)
		s, _ := w.Commit()
		want := policy.Counts{Namespaces: max(1, o.Namespaces), Pods: o.Pods, Policies: o.Policies, Endpoints: o.Pods}
		want.Tiers[policy.NetworkPolicy] = o.Policies
		if o.DualStack {
			want.Endpoints *= 2
		}
		got := s.Counts()
		got.Classes, got.PolicySets, got.Prefixes, got.IDs = 0, 0, 0, 0
		if got != want {
			t.Errorf("%+v: %+v, want %+v", o, got, want)
		}
		if problems := w.Problems(); len(problems) > 0 {
			t.Errorf("%+v: %v", o, problems)
		}
		if o.Policies < 10 {
			continue
		}
		var seen [2]int
		keys := c.Keys(1, 1000)
		for _, k := range keys {
			v := s.Decide(k)
			if seen[v.Action]++; v.Reason == filter.OwnNode {
				t.Fatalf("%+v: %s is about a node", o, k)
			}
		}
		if seen[filter.Allow] < 250 || seen[filter.Deny] < 250 {
			t.Errorf("%+v: of 1000 flows %d are denied, %d allowed", o, seen[filter.Deny], seen[filter.Allow])
		}
	}
}

// TestClusterDependsOnTheSeedAlone checks that the same seed gives the same cluster and
// flows. Otherwise measurements could not be repeated.
func TestClusterDependsOnTheSeedAlone(t *testing.T) {
	o := cluster.Options{Pods: 200, Policies: 20, Namespaces: 3}
	a, b, other := cluster.New(1, o), cluster.New(1, o), cluster.New(2, o)
	if !reflect.DeepEqual(a.Pods, b.Pods) || !reflect.DeepEqual(a.Policies, b.Policies) || !reflect.DeepEqual(a.Namespaces, b.Namespaces) {
		t.Error("two clusters of one seed differ")
	}
	if reflect.DeepEqual(a.Policies, other.Policies) {
		t.Error("two seeds make the same policies")
	}
	if !reflect.DeepEqual(a.Keys(1, 10), b.Keys(1, 10)) || reflect.DeepEqual(a.Keys(1, 10), a.Keys(2, 10)) {
		t.Error("flows do not depend on the seed, or not only on the seed")
	}
}

// TestClients checks that the pods of an app may be called by those of its client.
func TestClients(t *testing.T) {
	o := cluster.Options{Pods: 400, Policies: 20, Namespaces: 3, Replicas: 20}
	c, w := cluster.New(1, o), policy.NewStore()
	c.Fill(w)
	s, _ := w.Commit()
	addr := func(app int) netip.Addr { return kubepod.Read(c.Pods[app*o.Replicas]).Addrs[0] }
	for app := range c.Apps() {
		k := filter.NewKey(addr(c.Client(app)), addr(app), filter.TCP, cluster.ClientPort)
		if v := s.Decide(k); !v.Ingress.Allows() {
			t.Errorf("app %d: its policy denies %s", app, k)
		}
	}
}
