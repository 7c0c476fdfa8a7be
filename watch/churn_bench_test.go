package watch_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/worstcase"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
	"sluice/watch"
)

// BenchmarkBesideChurn measures the time until a change of one tenant's small policy is in
// force. Meanwhile, large policies of other tenants change, each three times a second.
// There are three cases: one large policy of 80 KiB; one of the largest size that an API
// server stores; four of that size, of two tenants. Each case takes 100 measurements,
// regardless of -benchtime.
func BenchmarkBesideChurn(b *testing.B) {
	for _, recipe := range worstcase.Known() {
		for _, c := range []struct {
			name     string
			size     int
			policies int
		}{{"80K", 80 << 10, 1}, {"1536K", worstcase.Largest, 1}, {"4x1536K", worstcase.Largest, 4}} {
			b.Run(recipe.Name+"/"+c.name, func(b *testing.B) {
				var list []watch.Update
				for i := range 2 * c.policies {
					p := recipe.OfSize(fmt.Sprint("churn-", i%c.policies), c.size-20000*(i/c.policies))
					p.Namespace = []string{worstcase.Namespace, "ns-1"}[i%2*(c.policies/4)]
					e := netpol.Encode(p) // encoded in advance: a source does not encode on the Controller's goroutine
					list = append(list, func(w *policy.Store) { w.SetEncoded(e) })
				}
				besideChurn(b, recipe.Pods(), time.Second/3/time.Duration(c.policies), list)
			})
		}
	}
}

// besideChurn applies the updates in churn in turn, about one in each interval, and begins
// again after the last. Meanwhile, it sets a small policy 100 times, and measures the time
// until the Controller has published each version.
func besideChurn(b *testing.B, pods []*corev1.Pod, interval time.Duration, churn []watch.Update) {
	store := policy.NewStore()
	for _, p := range pods {
		store.SetPod(kubepod.Read(p))
	}
	published := make(chan int, 10000)
	count := 0 // used only on the Controller's goroutine
	c := watch.New(store, new(policy.Published), watch.Options{Stages: []watch.Stage{watch.StageFunc{Name: "count", Func: func(context.Context, watch.Change) error {
		count++
		published <- count
		return nil
	}}}})
	feed := make(feed)
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = c.Run(ctx, feed) }()
	defer func() { stop(); <-ended }()
	feed <- func(*policy.Store) {}
	<-c.Ready()
	var delays []time.Duration
	next := time.Now()
	for i, n := 0, 0; n < 100; n++ {
		if time.Now().After(next) {
			feed <- churn[i%len(churn)] // the worst moment for the measured update, which follows immediately
			i, next = i+1, next.Add(interval)
		}
		other := netpol.Read(small(n))
		began := time.Now()
		before := make(chan int, 1)
		feed <- func(w *policy.Store) { w.SetPolicy(other); before <- count }
		for was := <-before; <-published <= was; {
		}
		delays = append(delays, time.Since(began))
		time.Sleep(30*time.Millisecond - time.Since(began))
	}
	slices.Sort(delays)
	for b.Loop() { // everything has already been measured
	}
	b.ReportMetric(float64(delays[len(delays)/2])/1e6, "p50-ms")
	b.ReportMetric(float64(delays[len(delays)*99/100-1])/1e6, "p99-ms")
	b.ReportMetric(float64(delays[len(delays)-1])/1e6, "max-ms")
	b.ReportMetric(0, "ns/op")
}

// small returns one of several versions of a policy of typical size.
func small(n int) *networkingv1.NetworkPolicy {
	p := worstcase.Recipe{Layout: worstcase.Apart, Ports: 1, Blocks: 1, In: 1}.Policy("other", 1+n%5)
	p.Namespace = "other"
	p.Spec.Ingress[0].From = append(p.Spec.Ingress[0].From, networkingv1.NetworkPolicyPeer{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": fmt.Sprint(n % 7)}},
		PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}},
	})
	return p
}
