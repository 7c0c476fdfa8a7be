package telemetry

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/cache/conntrack"
	"sluice/cmd/sluice/agent/status"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/guard"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
	"sluice/filter/queue"
)

// noon is the time at which the tests read their states.
var noon = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

// snapshot returns a snapshot of two pods, a NetworkPolicy that isolates one of them in
// ingress, and three ClusterNetworkPolicies for both: one of the tier Admin and two of
// Baseline.
func snapshot(t *testing.T) *policy.Snapshot {
	t.Helper()
	w := policy.NewStore()
	add := func(name, role string, ips ...string) {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"role": role}},
			Spec: corev1.PodSpec{Containers: []corev1.Container{{
				Ports: []corev1.ContainerPort{{Name: "redis", ContainerPort: 6379, Protocol: corev1.ProtocolTCP}},
			}}},
		}
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		w.SetPod(kubepod.Read(p))
	}
	add("db", "db", "10.0.0.1", "fd00::1")
	add("web", "frontend", "10.0.0.2")
	w.SetPolicy(netpol.Read(&networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "access-demo1"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"role": "db"}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
		},
	}))
	for name, os := range map[string]string{"node-1": "linux", "node-2": "linux", "old": "", "other": "windows"} {
		n := &policy.Node{Name: name}
		if os != "" {
			n.Labels = labels.Set{corev1.LabelOSStable: os}
		}
		w.SetNodeObject(n)
	}
	for name, tier := range map[string]policy.Tier{"platform": policy.Admin, "closed": policy.Baseline, "open": policy.Baseline} {
		w.SetPolicy(&policy.Policy{
			Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: name}, Tier: tier,
			Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
			Rules:   [2][]policy.Rule{filter.Ingress: {{Action: policy.Deny}}},
		})
	}
	w.SetNamespaceLog("default", policy.ReadNamespaceLog("default", map[string]string{policy.LogAnnotation: "denied"}))
	s, _ := w.Commit()
	return s
}

// busyState returns the state of a healthy agent whose counters are not zero.
func busyState(t *testing.T) *State {
	s := &State{
		Settings: status.Settings{
			Version: "v1.2.3", PID: 42, Sources: []string{"manifests ./policies"},
			Tables: "iptables-nft, ip6tables-nft", Queues: 4, Fail: "closed", OnExit: "keep", DenyWith: "reject", LogVerdicts: "none",
		},
		Now: noon, Started: noon.Add(-3 * time.Hour), Ready: noon.Add(-2*time.Hour - 59*time.Minute),
		Snapshot: snapshot(t), Published: noon.Add(-95 * time.Second),
		Digest: "7a224f61ae470123456789abcdef0123", DigestSince: noon.Add(-95 * time.Second),
		FlowRecords: 25, FlowsLeftOut: 5,
		Flows:       cache.Stats{Hits: 70, Misses: 20, Size: 15},
		Connections: Connections{Open: 4, Displaced: 8},
		Kernel:      &bpf.Stats{Open: 500, Allowed: 400, Denied: 300, Rejected: 30, Failed: 2},
		Guard:       &guard.Stats{Dropped: map[string]uint64{"source": 11, "arp": 0, "tag": 1, "router": 2, "tunnel": 0, "link-local": 3, "group": 4, "stray": 5}, Ports: 5, Unknown: 1},
		Forged:      12,
		Queue:       queue.Stats{Allowed: 90, Denied: 10, Stale: 1, Panics: 2, Restarts: 3, Dropped: 4, Overflow: 30, OverflowDropped: 9, Pending: 5, Held: 50, HoldExpired: 6, HoldRejected: 7},
		Waiting:     5, Repairs: 6, Unlogged: 7,
		Rejudged: conntrack.Result{Evaluated: 20, Allowed: 8, Revoked: 2, Restored: 1, Passes: 3, Duration: 1500 * time.Millisecond},
		Watches: []status.Watch{
			{Kind: "Pod", Synced: true, Since: noon.Add(-3 * time.Hour), Events: 100, Restarts: 1, Errors: 2},
			{Kind: "NetworkPolicy", Synced: true, Since: noon.Add(-3 * time.Hour), Events: 5},
			{Kind: "ClusterNetworkPolicy", Optional: true, Version: "v1beta1", Synced: true, Since: noon.Add(-3 * time.Hour), Events: 1},
		},
	}
	s.Tally.Rejected = 4
	s.Tally.Denials = engine.Denials{
		ByTier: [filter.NumTiers]uint64{policy.Admin: 3, policy.NetworkPolicy: 5},
		ByPolicy: map[engine.Denial]uint64{
			{Tier: policy.Admin, Direction: filter.Ingress, Policy: "platform", Rule: "ingress[0]", Name: "keep-out"}: 3,
			{Tier: policy.NetworkPolicy, Direction: filter.Ingress, Policy: "default/access-demo1"}:                   5,
		},
	}
	v := &s.Tally.Verdicts
	v[filter.Allow][filter.NotIsolated][0] = 60
	v[filter.Allow][filter.RuleAllows][3] = 20
	v[filter.Allow][filter.RuleAllows][2] = 10
	v[filter.Deny][filter.EgressDenied][3] = 3
	v[filter.Deny][filter.EgressDenied][1] = 4
	v[filter.Deny][filter.IngressDenied][2] = 2
	v[filter.Deny][filter.Malformed][0] = 1
	s.KernelDenied.Verdicts[filter.Deny][filter.IngressDenied][2] = 310
	s.KernelDenied.Denials.ByTier[filter.NetworkPolicyTier] = 310
	s.KernelDenied.Denials.ByPolicy = map[engine.Denial]uint64{{Tier: filter.NetworkPolicyTier, Direction: filter.Ingress, Policy: "shop/db"}: 310}
	s.KernelUnknown = 20
	s.Tally.Latency.Buckets[8] = 3 // under 256 ns
	s.Tally.Latency.Buckets[10] = 1
	s.Tally.Latency.Buckets[24] = 1 // the last bucket, which has no upper bound
	s.Tally.Latency.Sum = 20 * time.Millisecond
	return s
}

func TestUnready(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*State)
		want   string
	}{
		"well":             {func(*State) {}, ""},
		"no list":          {func(s *State) { s.Ready, s.Watches[1].Synced = time.Time{}, false }, "the list of NetworkPolicies has not been read yet"},
		"no list, and why": {func(s *State) { s.Ready, s.Watches[0] = time.Time{}, status.Watch{Kind: "Pod", Broken: "refused"} }, "the list of Pods has not been read yet: refused"},
		"a list is missing": {func(s *State) { s.Watches[2].Synced, s.Watches[2].Broken, s.Watches[2].Since = false, "refused", noon },
			"the list of ClusterNetworkPolicies has not been read yet: refused"},
		"no rules":       {func(s *State) { s.Ready = time.Time{} }, "the rules are not in place yet"},
		"rules are lost": {func(s *State) { s.Failing = []string{"mangle: locked"} }, "rules cannot be kept: mangle: locked"},
		"away for a bit": {func(s *State) { s.Watches[0].Broken, s.Watches[0].Since = "gone", noon.Add(-watchTimeout) }, ""},
		"away for long": {func(s *State) { s.Watches[0].Broken, s.Watches[0].Since = "gone", noon.Add(-watchTimeout-time.Second) },
			"the watch of Pods has been broken since 2024-05-01T11:58:59Z: gone"},
	} {
		t.Run(name, func(t *testing.T) {
			s := busyState(t)
			tt.change(s)
			if got := s.Unready(); got != tt.want {
				t.Errorf("unready: %q, want %q", got, tt.want)
			}
		})
	}
}
