//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/apiserver"
	"sluice/bench/testbed/lab"
)

// standIn is a fake API server on the testbed's node, with the Node and the objects of the
// testbed's manifests.
type standIn struct {
	*apiserver.Server
	kubeconfig string
}

// serveAPI serves the testbed's objects until the test ends.
func (s *testbed) serveAPI(t *testing.T, node *corev1.Node, refuse func(*http.Request) *metav1.Status) *standIn {
	t.Helper()
	api := &standIn{apiserver.New(apiserver.Options{Refuse: refuse}), filepath.Join(t.TempDir(), "config")}
	setObjects(t, api.Server, s.dir)
	api.Set(node)
	listener, err := s.Nodes[0].ListenTCP(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: api}
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve the API: %v", err)
		}
	})
	t.Cleanup(func() {
		_ = server.Close()
		wait.Wait()
	})
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "http://%s"}}], users: [{name: u, user: {token: t}}]}`, listener.Addr())
	if err := os.WriteFile(api.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return api
}

// startFollowing starts an agent that follows an API server.
func (s *testbed) startFollowing(kubeconfig string, args ...string) {
	s.t.Helper()
	program, err := exec.LookPath("sluice")
	if err != nil {
		s.t.Fatalf("find the command under test: %v", err)
	}
	ctx, cancel := context.WithTimeout(s.t.Context(), waitTimeout)
	defer cancel()
	args = append([]string{"--kubeconfig", kubeconfig, "--node-name", s.Nodes[0].Name, "--socket", s.socket}, args...)
	s.agent, err = agenttest.Start(ctx, agenttest.Options{Sluice: program, Node: s.Nodes[0], Args: args})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(s.agent.Kill)
}

// awaitProblem waits until sluice status reports a problem that contains text.
func (s *testbed) awaitProblem(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(waitTimeout); ; time.Sleep(10 * time.Millisecond) {
		status, out, err := sluice(t, "status", "--socket", s.socket)
		if status == exitFindings && strings.Contains(out, text) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("sluice status: %d\n%s%s\nwant %q", status, out, err, text)
		}
	}
}

// Until the first agent of a node is ready, all connections pass. The agent removes the
// startup taint only when its rules are in place and it has judged the connections that began
// without them.
func TestStartupTaintOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	for _, f := range families {
		// Without a rule that needs conntrack, the kernel tracks nothing.
		if err := s.Nodes[0].Run(f.iptables, "-w", "-t", "filter", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "ACCEPT"); err != nil {
			t.Fatal(err)
		}
	}
	other := corev1.Taint{Key: "dedicated", Value: "db", Effect: corev1.TaintEffectNoSchedule}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.Nodes[0].Name}, Spec: corev1.NodeSpec{
		PodCIDRs: []string{s.Nodes[0].Pods4.String(), s.Nodes[0].Pods6.String()},
		Taints:   []corev1.Taint{{Key: "sluice.dev/agent-not-ready", Effect: corev1.TaintEffectNoSchedule}, other},
	}}
	var granted atomic.Bool
	api := s.serveAPI(t, node, func(req *http.Request) *metav1.Status {
		if req.Method != http.MethodPatch {
			return nil
		}
		if !granted.Load() {
			return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "no patches"}
		}
		for _, f := range families {
			to := netip.AddrPortFrom(f.addr(s.host("default/db")), 6379)
			if r := s.host("default/other").Connect(t.Context(), "tcp", to, probeTimeout); r.Outcome == lab.Reached {
				t.Errorf("over %s a new connection passes when the taint goes", f.name)
			}
		}
		return nil
	})
	var before []*session
	for _, f := range families {
		before = append(before, s.dial(t, "default/other", netip.AddrPortFrom(f.addr(s.host("default/db")), 6379)))
	}
	s.startFollowing(api.kubeconfig, "--startup-taint", "sluice.dev/agent-not-ready")
	s.awaitProblem(t, "taint sluice.dev/agent-not-ready of Node node-1: cannot be removed, so that no pods are scheduled here: no patches: let this user get and patch nodes")
	granted.Store(true)
	for end := time.Now().Add(waitTimeout); ; time.Sleep(time.Millisecond) {
		left := api.Get(node).(*corev1.Node).Spec.Taints
		if len(left) == 1 && left[0] == other {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the Node has the taints %v", left)
		}
	}
	for i, f := range families {
		dropped := s.dropped(f.iptables)
		before[i].write()
		s.awaitDrop(t, f.iptables, dropped)
		before[i].checkStopped()
	}
}

// Where no rules are in place, an agent that may not list ClusterNetworkPolicies enforces the
// NetworkPolicies, but is not ready and keeps the startup taint. Once it may list them, they are
// in force.
func TestRefusedKindOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.write("platform.yaml", `{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: platform},
 spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}}`)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.Nodes[0].Name}, Spec: corev1.NodeSpec{
		PodCIDRs: []string{s.Nodes[0].Pods4.String(), s.Nodes[0].Pods6.String()},
		Taints:   []corev1.Taint{{Key: "sluice.dev/agent-not-ready", Effect: corev1.TaintEffectNoSchedule}},
	}}
	var granted atomic.Bool
	api := s.serveAPI(t, node, func(req *http.Request) *metav1.Status {
		if granted.Load() || !strings.HasSuffix(req.URL.Path, "/clusternetworkpolicies") {
			return nil
		}
		return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "not yours"}
	})
	api.Install("v1beta1")
	s.startFollowing(api.kubeconfig, "--startup-taint", "sluice.dev/agent-not-ready")
	reaches := func(from string, family int, want bool) {
		t.Helper()
		f := families[family]
		to := netip.AddrPortFrom(f.addr(s.host("default/db")), 6379)
		if r := s.host(from).Connect(t.Context(), "tcp", to, probeTimeout); (r.Outcome == lab.Reached) != want {
			t.Errorf("over %s, %s to db: %v", f.name, from, r.Outcome)
		}
	}
	for i := range families {
		reaches("default/web", i, true)
		reaches("default/other", i, false)
	}
	s.awaitProblem(t, "enforces, but is not ready: the list of ClusterNetworkPolicies has not been read yet: ")
	s.awaitProblem(t, "let this user list and watch clusternetworkpolicies of API group")
	if len(api.Get(node).(*corev1.Node).Spec.Taints) != 1 {
		t.Error("the taint is gone")
	}
	granted.Store(true)
	for end := time.Now().Add(waitTimeout); len(api.Get(node).(*corev1.Node).Spec.Taints) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the taint is left")
		}
	}
	for i := range families {
		reaches("default/web", i, false)
	}
}

// Without a rule that needs conntrack, the kernel does not track the connections that begin
// before the agent starts. The agent's rules start the tracking, and the next packet of such a
// connection is judged like the first packet of a new connection.
func TestUntrackedFromBeforeOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	type pair struct{ allowed, denied *session }
	var pairs []pair
	for _, f := range families {
		to := netip.AddrPortFrom(f.addr(s.host("default/db")), 6379)
		pairs = append(pairs, pair{s.dial(t, "default/web", to), s.dial(t, "default/other", to)})
	}
	s.start("--log-verdicts", "denied")
	for i, f := range families {
		mark := s.agent.Mark()
		pairs[i].allowed.write()
		pairs[i].allowed.checkFlows()
		pairs[i].denied.write()
		s.await(mark, "the denial over "+f.name, func(l agenttest.Line) bool {
			return l.Text("verdict") == "deny" && l.Text("src") == f.addr(s.host("default/other")).String()
		})
		pairs[i].denied.checkStopped()
	}
}
