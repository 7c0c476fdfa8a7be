package policy_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	madeup "sluice/bench/testbed/cluster"
	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
)

func selector(key, value string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{key: value}}
}

// besidePlatform runs a benchmark at 10,000 pods and 1,000 NetworkPolicies, without and with
// 100 ClusterNetworkPolicies of 25 rules.
func besidePlatform(b *testing.B, run func(b *testing.B, c *madeup.Cluster, fill func(*policy.Store))) {
	c := madeup.New(1, madeup.Options{Pods: 10_000, Policies: 1_000, Namespaces: 200})
	var forms []*policy.Policy
	for _, o := range madeup.Platform(100, 25) {
		forms = append(forms, clusterpolicy.Read(o))
	}
	for _, policies := range []int{0, 100} {
		b.Run(fmt.Sprint(policies), func(b *testing.B) {
			b.ReportAllocs()
			run(b, c, func(w *policy.Store) {
				c.Fill(w)
				for _, p := range forms[:policies] {
					w.SetPolicy(p)
				}
			})
		})
	}
}

// BenchmarkDecideBesidePlatform measures a decision that no flow cache answers.
func BenchmarkDecideBesidePlatform(b *testing.B) {
	besidePlatform(b, func(b *testing.B, c *madeup.Cluster, fill func(*policy.Store)) {
		w := policy.NewStore()
		fill(w)
		s, _ := w.Commit()
		_, _, _, apart, _ := w.Forms()
		keys := c.Keys(1, 1<<16)
		i, allowed := 0, 0
		for b.Loop() {
			allowed += int(s.Decide(keys[i%len(keys)]).Action)
			i++
		}
		b.ReportMetric(100*float64(allowed)/float64(b.N), "%allowed")
		b.ReportMetric(float64(apart), "parts")
	})
}

// BenchmarkCompileBesidePlatform measures the compilation of all policies at an agent's start.
func BenchmarkCompileBesidePlatform(b *testing.B) {
	besidePlatform(b, func(b *testing.B, c *madeup.Cluster, fill func(*policy.Store)) {
		for b.Loop() {
			w := policy.NewStore()
			fill(w)
			w.Commit()
		}
		b.StopTimer()
		b.ReportMetric(heapOf(c, fill), "heap-bytes")
	})
}

// largestClusterPolicy returns a policy of the largest size that the API permits: 50 rules of 25
// peers, each of which has 25 networks in rules for egress.
func largestClusterPolicy() *v1beta1.ClusterNetworkPolicy {
	r := chance{rand.New(rand.NewPCG(1, 2))}
	o := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "largest"}}
	o.Spec.Tier, o.Spec.Subject.Namespaces = v1beta1.AdminTier, &metav1.LabelSelector{}
	var ports []v1beta1.ClusterNetworkPolicyProtocol
	for i := range 25 {
		low := int32(1 + 2000*i + r.IntN(1000))
		ports = append(ports, v1beta1.ClusterNetworkPolicyProtocol{TCP: &v1beta1.ClusterNetworkPolicyProtocolTCP{
			DestinationPort: &v1beta1.Port{Range: &v1beta1.PortRange{Start: low, End: low + int32(1+r.IntN(900))}},
		}})
	}
	for i := range 25 {
		in := v1beta1.ClusterNetworkPolicyIngressRule{Action: "Accept", Protocols: ports}
		out := v1beta1.ClusterNetworkPolicyEgressRule{Action: "Accept", Protocols: ports}
		for j := range 25 {
			in.From = append(in.From, v1beta1.ClusterNetworkPolicyIngressPeer{Pods: &v1beta1.NamespacedPod{
				NamespaceSelector: selector(fmt.Sprint("ns", i), fmt.Sprint(j)), PodSelector: selector(fmt.Sprint("pod", j), fmt.Sprint(i)),
			}})
			var peer v1beta1.ClusterNetworkPolicyEgressPeer
			for range 25 {
				peer.Networks = append(peer.Networks, v1beta1.CIDR(fmt.Sprintf("%d.%d.%d.0/24", 1+r.IntN(200), r.IntN(256), r.IntN(256))))
			}
			out.To = append(out.To, peer)
		}
		o.Spec.Ingress, o.Spec.Egress = append(o.Spec.Ingress, in), append(o.Spec.Egress, out)
	}
	return o
}

// BenchmarkLargestClusterPolicy measures the time for setting and committing the largest
// ClusterNetworkPolicy in a store with 10,000 pods.
func BenchmarkLargestClusterPolicy(b *testing.B) {
	c := madeup.New(1, madeup.Options{Pods: 10_000, Policies: 1_000, Namespaces: 200})
	w := policy.NewStore()
	c.Fill(w)
	w.Commit()
	o := largestClusterPolicy()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		o.Spec.Priority = int32(i)
		e := clusterpolicy.Encode(o)
		b.StartTimer()
		w.SetEncoded(e)
		w.Commit()
	}
}

// BenchmarkCommitClusterPolicy changes the priority of a policy for all pods, and commits.
func BenchmarkCommitClusterPolicy(b *testing.B) {
	c, w := madeup.New(1, madeup.Options{Pods: 10_000, Policies: 1_000, Namespaces: 200}), policy.NewStore()
	c.Fill(w)
	all := madeup.Platform(100, 25)
	for _, o := range all {
		w.SetPolicy(clusterpolicy.Read(o))
	}
	w.Commit()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		all[0].Spec.Priority = int32(i % 100)
		w.SetPolicy(clusterpolicy.Read(all[0]))
		w.Commit()
	}
}
