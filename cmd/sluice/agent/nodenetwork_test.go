package agent

import (
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/cmd/sluice/agent/status"
	"sluice/cmd/sluice/agent/telemetry"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/watch/node"
)

// podAt returns a pod with the address addr on the node with the address host.
func podAt(name, addr, host string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: addr}}, HostIPs: []corev1.HostIP{{IP: host}}},
	}
}

// snapshotOf returns a snapshot with pods, as seen by the node with the address self.
func snapshotOf(self string, pods ...*corev1.Pod) *policy.Snapshot {
	return snapshotWith(nil, self, pods...)
}

// snapshotWith is like snapshotOf, and sets the ranges of the node's pods.
func snapshotWith(ranges []netip.Prefix, self string, pods ...*corev1.Pod) *policy.Snapshot {
	w := policy.NewStore()
	w.SetPodRanges(ranges)
	w.SetNode([]netip.Addr{netip.MustParseAddr(self)})
	for _, p := range pods {
		w.SetPod(kubepod.Read(p))
	}
	s, _ := w.Commit()
	return s
}

// bridgeTo returns a network with a bridge that is directly connected to the given range of
// addresses. One port of the bridge leads to a pod.
func bridgeTo(pods string) *node.Network {
	return &node.Network{
		Links:  []node.Link{{Index: 3, Name: "cni0", Kind: "bridge"}, {Index: 4, Name: "veth1", Kind: "veth", Master: 3, InOtherNetns: true}},
		Routes: []node.Route{{To: netip.MustParsePrefix(pods), Link: 3}},
	}
}

// testNetwork returns the nodeNetwork of an agent that follows a cluster. It derives the
// ranges of pods, and reports pods outside of the ranges without delay.
func testNetwork(t *testing.T, network *node.Network) *nodeNetwork {
	n := newNodeNetwork(new(policy.StartingPods), slog.New(slog.DiscardHandler))
	n.cluster, n.derive, n.timeout, n.root, n.network = true, true, 0, t.TempDir(), network
	return n
}

func (n *nodeNetwork) problems(kind string) (found []status.Problem) {
	var s telemetry.State
	n.addTo(&s, UnreadySysctls)
	for _, p := range s.Problems {
		if p.Kind == kind {
			found = append(found, p)
		}
	}
	return found
}

// Without spec.podCIDRs, the agent derives the range of a bridge when it knows a pod behind
// the bridge. The range stays when the pod is gone, and is removed with the bridge's route.
func TestRangesFromABridge(t *testing.T) {
	n := testNetwork(t, bridgeTo("10.42.3.0/24"))
	starting := netip.MustParseAddr("10.42.3.77")
	pending := func(want bool) {
		t.Helper()
		got := slices.ContainsFunc(n.starting.List(), func(r netip.Prefix) bool { return r.Contains(starting) })
		if got != want {
			t.Errorf("%s is in the derived ranges: %v, want %v", starting, got, want)
		}
	}
	n.refresh(snapshotOf("192.0.2.1", podAt("elsewhere", "10.42.4.5", "192.0.2.2")))
	pending(false)
	n.refresh(snapshotOf("192.0.2.1", podAt("here", "10.42.3.5", "192.0.2.1")))
	pending(true)
	n.refresh(snapshotOf("192.0.2.1"))
	pending(true)
	if p := n.problems("ranges"); p != nil {
		t.Errorf("problems %v", p)
	}
	n.network = bridgeTo("10.43.0.0/24") // as if the network plugin was set up again with a different range
	n.refresh(nil)
	pending(false)
}

// Pods of this node outside of all ranges are reported after the timeout as one problem, which
// names them and has a hint.
func TestPodsOutsideOfRanges(t *testing.T) {
	n := testNetwork(t, new(node.Network))
	ranges := []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")}
	n.timeout = time.Hour
	outside := []*corev1.Pod{podAt("a", "10.9.0.1", "192.0.2.1"), podAt("b", "fd00::9", "192.0.2.1"), podAt("c", "10.9.0.3", "192.0.2.1"), podAt("d", "10.9.0.4", "192.0.2.1"),
		podAt("inside", "10.1.0.5", "192.0.2.1"), podAt("elsewhere", "10.9.0.7", "192.0.2.2")}
	n.refresh(snapshotWith(ranges, "192.0.2.1", outside...))
	if p := n.problems("ranges"); p != nil {
		t.Errorf("problems before the timeout: %v", p)
	}
	n.timeout = 0
	n.refresh(nil)
	p := n.problems("ranges")
	if len(p) != 1 {
		t.Fatalf("%d problems, want 1: %v", len(p), p)
	}
	for _, want := range []string{"10.9.0.1 of default/a", "and 1 more", "they are 10.1.0.0/24", "--pod-cidrs", "is open until the API reports it"} {
		if !strings.Contains(p[0].String(), want) {
			t.Errorf("%q lacks %q", p[0], want)
		}
	}
	var s telemetry.State
	if n.addTo(&s, ReportSysctls); s.PodsOutside != 4 {
		t.Errorf("%d addresses are outside of the ranges, want 4", s.PodsOutside)
	}
	n.refresh(snapshotWith(ranges, "192.0.2.1", outside[4:]...))
	if p := n.problems("ranges"); p != nil {
		t.Errorf("problems after the pods are gone: %v", p)
	}
	n.refresh(snapshotOf("192.0.2.1", outside[4:]...))
	if p := n.problems("ranges"); len(p) != 1 || !strings.Contains(p[0].Detail, "there are none") {
		t.Errorf("problems without any range: %v", p)
	}
}

// With --pod-cidrs, the agent derives no ranges. A pod outside of the ranges is a problem only
// if the agent follows a cluster, not if it reads manifests.
func TestPodCIDRsDisableDerivedRanges(t *testing.T) {
	n := testNetwork(t, bridgeTo("10.42.3.0/24"))
	n.derive = false
	s := snapshotOf("192.0.2.1", podAt("here", "10.42.3.5", "192.0.2.1"))
	n.refresh(s)
	if derived := n.starting.List(); derived != nil {
		t.Errorf("derived the ranges %v, want none", derived)
	}
	if p := n.problems("ranges"); len(p) != 1 {
		t.Errorf("problems %v, want one about the ranges", p)
	}
	n.cluster = false
	n.refresh(nil)
	if p := n.problems("ranges"); p != nil {
		t.Errorf("problems without a cluster: %v", p)
	}
}

// The agent reports a kernel setting that lets packets bypass iptables. Such a setting makes
// the agent unready only with --sysctl-problems unready.
func TestSettingsAreReported(t *testing.T) {
	n := testNetwork(t, bridgeTo("10.42.3.0/24")) // on a kernel without br_netfilter
	n.refresh(snapshotOf("192.0.2.1", podAt("here", "10.42.3.5", "192.0.2.1")))
	for _, on := range []SysctlProblems{ReportSysctls, UnreadySysctls} {
		unready := on == UnreadySysctls
		s := telemetry.State{Ready: time.Now(), Now: time.Now()}
		n.addTo(&s, on)
		if s.SysctlProblems != 1 || len(s.Problems) != 1 || s.Problems[0].Kind != "sysctl" || !strings.Contains(s.Problems[0].String(), "modprobe br_netfilter") {
			t.Errorf("%d problems, want one about br_netfilter: %v", s.SysctlProblems, s.Problems)
		}
		if why := s.Unready(); (why != "") != unready || unready && !strings.Contains(why, "br_netfilter") {
			t.Errorf("unready: %q, want a reason: %v", why, unready)
		}
		if why, bypass := s.NotApplied(); (why != "") != unready || (bypass != "") == unready || !strings.Contains(why+bypass, "br_netfilter") {
			t.Errorf("not applied: %q, %q", why, bypass)
		}
	}
	n.setUncheckedSources()
	if p := n.problems("sysctl"); len(p) != 1 {
		t.Errorf("with route_localnet off, problems %v", p)
	}
	conf := filepath.Join(n.root, "net/ipv4/conf/cni0")
	if err := errors.Join(os.MkdirAll(conf, 0o755), os.WriteFile(filepath.Join(conf, "route_localnet"), []byte("1\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	n.refresh(nil)
	if p := n.problems("sysctl"); len(p) != 2 || !strings.Contains(p[1].String(), "rp_filter=2") {
		t.Errorf("with route_localnet on, problems %v", p)
	}
	n.network = new(node.Network)
	n.refresh(nil)
	if p := n.problems("sysctl"); p != nil {
		t.Errorf("problems without a bridge: %v", p)
	}
}
