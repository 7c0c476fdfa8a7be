package policy_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// The store keeps nothing of deleted objects. Otherwise an agent that runs for months would
// take ever more memory, because all pods and nodes of a cluster are replaced in that time.
func TestNothingIsLeft(t *testing.T) {
	for seed := range uint64(200) {
		r := newChance(seed + 700)
		a, b := r.cluster(), r.cluster()
		w := a.newStore()
		if r.oneIn(2) {
			w.Commit()
		}
		b.into(w) // pods with the same names get different labels, hosts and addresses
		if kept := w.Kept(); len(a.Pods) > 0 && (kept["identities"] == 0 || kept["pods"] == 0) {
			t.Fatalf("seed %d: the store keeps nothing of a cluster that exists: %v", seed, kept)
		}
		if r.oneIn(2) {
			w.Commit()
		}
		a.outOf(w)
		b.outOf(w)
		w.Commit()
		for what, n := range w.Kept() {
			if n > 0 && what != "namespaces" { // Namespace objects are deleted below
				t.Errorf("seed %d: the store still keeps %d %s", seed, n, what)
			}
		}
		for _, o := range append(a.Namespaces, b.Namespaces...) {
			w.DeleteNamespace(o.Name)
		}
		if n := w.Kept()["namespaces"]; n > 0 {
			t.Errorf("seed %d: the store still keeps %d namespaces", seed, n)
		}
	}
}

// into sets all objects of the cluster in a store.
func (c *cluster) into(w *policy.Store) {
	for _, o := range c.Namespaces {
		w.SetNamespace(o.Name, o.Labels)
	}
	for _, o := range c.Pods {
		w.SetPod(kubepod.Read(o))
	}
	for _, o := range c.Policies {
		w.SetPolicy(netpol.Read(o))
	}
	for _, o := range c.Cluster {
		w.SetPolicy(clusterpolicy.Read(o))
	}
	for _, o := range c.Nodes {
		w.SetNodeObject(readNode(o))
	}
}

// readNode returns what a store needs of a Node.
func readNode(o *corev1.Node) *policy.Node {
	return &policy.Node{Name: o.Name, Labels: o.Labels, Addrs: nodeObjectAddrs(o)}
}

// outOf deletes all objects of the cluster from a store, except its namespaces.
func (c *cluster) outOf(w *policy.Store) {
	for _, o := range c.Pods {
		w.DeletePod(o.Namespace, o.Name)
	}
	for _, o := range c.Policies {
		w.DeletePolicy(netpol.Ref(o.Namespace, o.Name))
	}
	for _, o := range c.Cluster {
		w.DeletePolicy(clusterpolicy.Ref(o.Name))
	}
	for _, o := range c.Nodes {
		w.DeleteNodeObject(o.Name)
	}
}
