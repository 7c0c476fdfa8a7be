package policy_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// claimant is a pod that claims 10.0.0.1.
func claimant(name, node string, created int64) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name, CreationTimestamp: metav1.NewTime(time.Unix(created, 0))},
		Spec:       corev1.PodSpec{NodeName: node},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.0.0.1"},
	}
}

// If an address is in the ranges of this node's pods, a pod of this node keeps it even if a pod
// of another node claims it too, whatever the order of events.
func TestAPodOfThisNodeKeepsItsAddress(t *testing.T) {
	here := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/24")}
	ending := claimant("far", "there", 2)
	ending.DeletionTimestamp = &metav1.Time{}
	host := claimant("far", "there", 2)
	host.Spec.HostNetwork = true
	done := claimant("far", "there", 2)
	done.Status.Phase = corev1.PodSucceeded
	tests := map[string]struct {
		pods   [2]*corev1.Pod
		ranges []netip.Prefix
		want   string
		clash  string
	}{
		"newer elsewhere":        {[2]*corev1.Pod{claimant("near", "here", 1), claimant("far", "there", 2)}, here, "a/near", "10.0.0.1 a/near, a/far"},
		"newer here":             {[2]*corev1.Pod{claimant("near", "here", 2), claimant("far", "there", 1)}, here, "a/near", "10.0.0.1 a/near, a/far"},
		"not in the ranges":      {[2]*corev1.Pod{claimant("near", "here", 1), claimant("far", "there", 2)}, nil, "a/far", "10.0.0.1 a/far, a/near"},
		"both here":              {[2]*corev1.Pod{claimant("near", "here", 1), claimant("far", "here", 2)}, here, "a/far", "10.0.0.1 a/far, a/near"},
		"both elsewhere":         {[2]*corev1.Pod{claimant("near", "there", 1), claimant("far", "", 2)}, here, "a/far", "10.0.0.1 a/far, a/near"},
		"one is being deleted":   {[2]*corev1.Pod{claimant("near", "here", 1), ending}, here, "a/near", ""},
		"one has finished":       {[2]*corev1.Pod{claimant("near", "here", 1), done}, here, "a/near", ""},
		"one is in the host net": {[2]*corev1.Pod{claimant("near", "here", 1), host}, here, "a/near", ""},
	}
	for name, tt := range tests {
		for _, order := range [][2]int{{0, 1}, {1, 0}} {
			for _, rangesLast := range []bool{false, true} {
				t.Run(fmt.Sprint(name, order, rangesLast), func(t *testing.T) {
					w := policy.NewStore()
					w.SetLocalNode("here")
					if !rangesLast {
						w.SetPodRanges(tt.ranges)
					}
					for _, i := range order {
						w.SetPod(kubepod.Read(tt.pods[i]))
						w.Commit()
					}
					if rangesLast {
						w.SetPodRanges(tt.ranges)
					}
					s, _ := w.Commit()
					if got := s.Endpoint(netip.MustParseAddr("10.0.0.1")).String(); got != tt.want {
						t.Errorf("the address is %s's, want %s's", got, tt.want)
					}
					text := ""
					for _, c := range w.Clashes() {
						text += c.Addr.String() + " " + c.Pods()
					}
					if text != tt.clash {
						t.Errorf("clashes %q, want %q", text, tt.clash)
					}
				})
			}
		}
	}
}

// The node's own address belongs to no pod, even if pods claim it.
func TestClaimsOfTheNodesAddressAreNoClash(t *testing.T) {
	w := policy.NewStore()
	w.SetNode([]netip.Addr{netip.MustParseAddr("10.0.0.1")})
	w.SetPod(kubepod.Read(claimant("a", "here", 1)))
	w.SetPod(kubepod.Read(claimant("b", "there", 2)))
	w.Commit()
	if c := w.Clashes(); len(c) != 0 {
		t.Errorf("clashes %v", c)
	}
}
