//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/bench/testbed/apiserver"
	"sluice/cmd/sluice/agent/status"
	"sluice/filter/flow"
)

// testFleet is a cluster whose API server executes commands of sluice in the pods of agents. The commands
// and the connections are real. The agents are fakes that answer on sockets, and the API server is the
// stand-in of the testbed.
type testFleet struct {
	t          *testing.T
	api        *apiserver.Server
	kubeconfig string
	refuse     func(*http.Request) *metav1.Status // as apiserver.Options.Refuse; may be nil

	mu     sync.Mutex
	agents map[string]*testAgent // by the name of the pod
	broken map[string]string     // by the names of pods in which commands fail: the error that they print
	runs   []string              // the commands that were run
	silent int                   // if not 0, all commands end with this status, without output

	running atomic.Int64 // number of commands that run now
}

// testAgent is a fake agent that answers on a socket.
type testAgent struct {
	mu       sync.Mutex
	versions status.Versions
	status   status.Status
	denials  []*flow.DenialRecord
	flows    chan *flow.Record
	socket   string
	answered func() // called when the agent answers with its status; may be nil
}

// newTestFleet starts a cluster with an agent on each of the given nodes.
func newTestFleet(t *testing.T, nodes ...string) *testFleet {
	t.Helper()
	f := &testFleet{t: t, agents: make(map[string]*testAgent), broken: make(map[string]string)}
	f.api = apiserver.New(apiserver.Options{Exec: f.exec, Refuse: func(r *http.Request) *metav1.Status {
		if f.refuse == nil {
			return nil
		}
		return f.refuse(r)
	}})
	f.api.Install("v1beta1")
	server := httptest.NewServer(f.api)
	t.Cleanup(server.Close)
	f.kubeconfig = filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "%s"}}], users: [{name: u, user: {token: t}}]}`, server.URL)
	if err := os.WriteFile(f.kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, node := range nodes {
		f.addAgent(node)
	}
	return f
}

// addAgent adds a node with its agent.
func (f *testFleet) addAgent(node string) *testAgent {
	f.t.Helper()
	a := &testAgent{socket: filepath.Join(f.t.TempDir(), "s"), flows: make(chan *flow.Record, 100)}
	a.versions.Enforcing, a.status.Node, a.status.Ready = true, node, true
	l, err := net.Listen("unix", a.socket)
	if err != nil {
		f.t.Fatal(err)
	}
	mux := http.NewServeMux()
	answer := func(path string, what func() any) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) {
			a.mu.Lock()
			defer a.mu.Unlock()
			_ = json.NewEncoder(w).Encode(what())
		})
	}
	answer("POST /versions", func() any { return a.versions })
	answer("GET /status", func() any {
		s := a.status
		if a.answered != nil {
			a.answered()
		}
		return s
	})
	answer("GET /denials", func() any { return flow.DenialTable{Denials: a.denials} })
	mux.HandleFunc("GET /flows", a.serveFlows)
	server := &http.Server{Handler: mux}
	go func() { _ = server.Serve(l) }()
	f.t.Cleanup(func() { server.Close() })
	f.api.Set(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
	f.addPod(a, "sluice-"+node, node)
	return a
}

// addPod adds a pod of an agent.
func (f *testFleet) addPod(a *testAgent, name, node string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name, Labels: map[string]string{"app.kubernetes.io/name": "sluice"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "sluice"}}}, Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
	f.mu.Lock()
	f.agents[pod.Name] = a
	f.mu.Unlock()
	f.api.Set(pod)
	return pod
}

// serveFlows streams the records that are there and, with follow=true, those that come later.
func (a *testAgent) serveFlows(w http.ResponseWriter, r *http.Request) {
	_ = http.NewResponseController(w).Flush()
	for {
		var record *flow.Record
		select {
		case record = <-a.flows:
		default:
			if r.FormValue("follow") != "true" {
				return
			}
			select {
			case record = <-a.flows:
			case <-r.Context().Done():
				return
			}
		}
		if record == nil || json.NewEncoder(w).Encode(record) != nil {
			return // the agent ends the stream
		}
		_ = http.NewResponseController(w).Flush()
	}
}

// exec runs a command of sluice in the pod of an agent.
func (f *testFleet) exec(c apiserver.Command) int {
	f.running.Add(1)
	defer f.running.Add(-1)
	f.mu.Lock()
	a, broken := f.agents[c.Pod.Name], f.broken[c.Pod.Name]
	f.runs = append(f.runs, c.Pod.Name+": "+strings.Join(c.Args, " "))
	f.mu.Unlock()
	switch {
	case broken != "":
		fmt.Fprintln(c.Stderr, broken)
		return 127
	case f.silent != 0:
		return f.silent
	case c.Args[0] != "sluice" || c.Container != "sluice":
		fmt.Fprintln(c.Stderr, "no such program")
		return 127
	}
	args := append(slices.Clone(c.Args[1:]), "--socket", a.socket)
	return run(context.Background(), env{stdin: c.Stdin, stdout: c.Stdout, stderr: c.Stderr, getenv: func(string) string { return "" }}, args)
}

func (f *testFleet) breakAgent(node, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken["sluice-"+node] = text
}

func (f *testFleet) agent(node string) *testAgent {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.agents["sluice-"+node]
}

// set puts versions of NetworkPolicies of the namespace default in force, as in "web@12".
func (a *testAgent) set(names ...string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.versions.Policies = nil
	for _, name := range names {
		name, version, _ := strings.Cut(name, "@")
		a.versions.Policies = append(a.versions.Policies, status.PolicyInForce{Kind: "NetworkPolicy", Namespace: "default", Name: name, Version: version, Digest: "d" + version})
	}
}

// command runs a command of sluice for the cluster.
func (f *testFleet) command(args ...string) (exit int, stdout, stderr string) {
	return sluice(f.t, append(args, "--kubeconfig", f.kubeconfig)...)
}

func (f *testFleet) setPolicy(name string) (version string) {
	o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	f.api.Set(o)
	return f.api.Get(o).GetResourceVersion()
}

func TestWaitForAllNodes(t *testing.T) {
	f := newTestFleet(t, "n1", "n2")
	f.api.Set(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "bare"}})
	version := f.setPolicy("web")
	f.agent("n1").set("web@" + version)
	f.agent("n2").set("web@1")

	exit, stdout, stderr := f.command("wait", "--for", "default/web", "--timeout", "1s")
	want := "n2: default/web: version 1 is in force, and not " + version + "\n"
	if exit != exitFindings || stdout != want || !strings.Contains(stderr, "after 1s: not in force on 1 of 2 nodes") || !strings.Contains(stderr, "without an agent: bare") {
		t.Errorf("exit %d, %q, %q", exit, stdout, stderr)
	}

	// wait returns when the last node has the version.
	done := make(chan string)
	go func() {
		exit, stdout, stderr := f.command("wait", "--for", "networkpolicy/default/web", "--timeout", "1m")
		done <- fmt.Sprintf("%d %s%s", exit, stdout, stderr)
	}()
	f.agent("n2").set("web@" + version)
	want = "0 default/web (version " + version + ") is in force on 2 nodes\n"
	if got := <-done; !strings.HasPrefix(got, want) {
		t.Errorf("%q, want %q", got, want)
	}

	// wait also accepts a later version.
	f.agent("n1").set("web@" + version + "0")
	if exit, _, stderr := f.command("wait", "--for", "default/web", "--timeout", "1m"); exit != 0 {
		t.Errorf("with a later version: exit %d, %s", exit, stderr)
	}
}

func TestWaitNamesNodesThatDoNotAnswer(t *testing.T) {
	f := newTestFleet(t, "n1", "n2", "n3")
	version := f.setPolicy("web")
	for _, node := range []string{"n1", "n2", "n3"} {
		f.agent(node).set("web@" + version)
	}
	f.breakAgent("n2", "sluice: no agent answers on the socket")
	exit, stdout, _ := f.command("wait", "--for", "default/web", "--timeout", "1s")
	if exit != exitFindings || stdout != "n2: it does not answer: no agent answers on the socket\n" {
		t.Errorf("exit %d, %q", exit, stdout)
	}
	// wait asks a node again that has not answered.
	done := make(chan int)
	go func() {
		exit, _, _ := f.command("wait", "--for", "default/web", "--timeout", "1m")
		done <- exit
	}()
	f.breakAgent("n2", "")
	if exit := <-done; exit != 0 {
		t.Errorf("exit %d", exit)
	}
}

func TestWaitForOtherKinds(t *testing.T) {
	f := newTestFleet(t, "n1")
	o := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "platform"}, Spec: v1beta1.ClusterNetworkPolicySpec{Tier: v1beta1.AdminTier}}
	f.api.Set(o)
	version := f.api.Get(o).GetResourceVersion()
	f.agent("n1").versions.Policies = []status.PolicyInForce{{Kind: "ClusterNetworkPolicy", Name: "platform", Tier: "Admin", Version: version}}
	if exit, stdout, stderr := f.command("wait", "--for", "admin/platform"); exit != 0 || stdout != "admin/platform (version "+version+") is in force on 1 node\n" {
		t.Errorf("exit %d, %q, %q", exit, stdout, stderr)
	}
	if exit, stdout, stderr := f.command("wait", "--for", "default/gone", "--deleted"); exit != 0 || stdout != "default/gone is not in force on 1 node\n" {
		t.Errorf("exit %d, %q, %q", exit, stdout, stderr)
	}
	f.api.Set(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "old"}})
	empty := filepath.Join(t.TempDir(), "empty.yaml")
	if err := os.WriteFile(empty, []byte("{apiVersion: v1, kind: Namespace, metadata: {name: a}}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		want string
		args []string
	}{
		{"NetworkPolicy default/gone does not exist in the cluster", []string{"--for", "default/gone"}},
		{"NetworkPolicy default/old still exists in the cluster: delete it first", []string{"--for", "default/old", "--deleted"}},
		{"there is nothing to wait for", nil},
		{"there is no baseline/platform: the ClusterNetworkPolicy platform is in the tier Admin: write admin/platform", []string{"--for", "baseline/platform"}},
		{"wait takes no arguments: name policies with --for shop/db", []string{"shop/db"}},
		{"wait takes no arguments: give manifests with -f policies/", []string{"policies/"}},
		{"wait takes no arguments: give manifests with -f examples/tiers", []string{"examples/tiers"}},
		{"there are no policies in " + empty + ": give manifests with the policies to wait for", []string{"-f", empty}},
		{"--for - and -f - both read the standard input", []string{"-f", "-", "--for", "-"}},
		{"--timeout -1s is negative", []string{"--for", "default/old", "--timeout", "-1s"}},
		{`"web" is not the name of a policy`, []string{"--for", "web"}},
		{"no pod in namespace other has the labels", []string{"--for", "default/old", "--agent-namespace", "other"}},
		{"no pod in namespace kube-system has the labels app=x", []string{"--for", "default/old", "--agent-selector", "app=x"}},
	} {
		if exit, stdout, stderr := f.command(append([]string{"wait"}, tt.args...)...); exit != exitFailed || stdout != "" || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: exit %d, %q, %q, want %q", tt.args, exit, stdout, stderr, tt.want)
		}
	}
}

// On a node with manifests, wait compares the policy in force with the one in the file.
func TestWaitOnThisNode(t *testing.T) {
	f := newTestFleet(t, "n1")
	dir := t.TempDir()
	write := func(app string) {
		text := fmt.Sprintf("{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: web}, spec: {podSelector: {matchLabels: {app: %s}}}}", app)
		if err := os.WriteFile(filepath.Join(dir, "web.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a")
	opts := waitOptions{paths: []string{dir}}
	wanted, err := opts.wantedPolicies(nil, true)
	if err != nil || len(wanted) != 1 || len(wanted[0].Digest) != 32 {
		t.Fatalf("%+v, %v", wanted, err)
	}
	a := f.agent("n1")
	a.versions.Policies = []status.PolicyInForce{{Kind: "NetworkPolicy", Namespace: "default", Name: "web", Digest: wanted[0].Digest}}
	here := []string{"wait", "--socket", a.socket, "-f", dir, "--timeout", "100ms"}
	if exit, stdout, stderr := sluice(t, here...); exit != 0 || stdout != "default/web is in force\n" {
		t.Errorf("exit %d, %q, %q", exit, stdout, stderr)
	}
	write("b")
	if exit, _, stderr := sluice(t, here...); exit != exitFindings || !strings.Contains(stderr, "after 100ms: default/web: digest "+wanted[0].Digest[:12]+" is in force, and not") {
		t.Errorf("exit %d, %q", exit, stderr)
	}
	a.versions.Policies = []status.PolicyInForce{{Kind: "ClusterNetworkPolicy", Name: "platform", Tier: "Admin"}}
	for name, want := range map[string]string{
		"cnp/platform": "0 admin/platform is in force\n", "admin/platform": "0 admin/platform is in force\n",
		"baseline/platform": "1 sluice: baseline/platform is not in force, and admin/platform is\n",
		"baseline/none":     "1 sluice: baseline/none is not in force\n",
	} {
		exit, stdout, stderr := sluice(t, "wait", "--socket", a.socket, "--for", name, "--timeout", "0")
		if got := fmt.Sprint(exit, " ", stdout, stderr); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	t.Setenv("KUBECONFIG", filepath.Join(dir, "none"))
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	if exit, _, stderr := sluice(t, "wait", "--for", "a/b"); exit != exitFailed || !strings.Contains(stderr, "give --kubeconfig FILE, or --socket /run/sluice/sluice.sock to ask only") {
		t.Errorf("exit %d, %q", exit, stderr)
	}
	if exit, _, stderr := sluice(t, "wait", "--socket", filepath.Join(dir, "none"), "--for", "a/b"); exit != exitFailed || !strings.Contains(stderr, "no agent answers") {
		t.Errorf("exit %d, %q", exit, stderr)
	}
}
