package policy_test

import (
	"runtime"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// taken is what compiling takes: memory that stays, all that was allocated, and
// what the objects themselves take.
type taken struct{ kept, allocated uint64 }

func heap() (kept, allocated uint64) {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.TotalAlloc
}

// take compiles pods and policies in a new store.
func take(pods []*corev1.Pod, policies ...*networkingv1.NetworkPolicy) (taken, *policy.Store, *policy.Snapshot) {
	kept, allocated := heap()
	w := policy.NewStore()
	w.SetLimits(policy.Limits{})
	for _, p := range pods {
		w.SetPod(kubepod.Read(p))
	}
	for _, p := range policies {
		w.SetPolicy(netpol.Read(p))
	}
	s, _ := w.Commit()
	keptThen, allocatedThen := heap()
	runtime.KeepAlive(pods)
	runtime.KeepAlive(policies)
	return taken{keptThen - min(kept, keptThen), allocatedThen - allocated}, w, s
}
