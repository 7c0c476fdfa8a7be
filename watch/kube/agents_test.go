package kube_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/bench/testbed/apiserver"
	"sluice/filter/policy"
	"sluice/watch/kube"
)

// agentPod returns the pod of an agent that was created at a Unix time.
func agentPod(name, node string, phase corev1.PodPhase, created int64) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name, Labels: map[string]string{"app": "sluice"}, CreationTimestamp: metav1.Unix(created, 0)},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "proxy"}, {Name: "sluice"}}},
		Status:     corev1.PodStatus{Phase: phase},
	}
}

func agentsOf(t *testing.T, opts apiserver.Options, pods ...*corev1.Pod) *kube.Agents {
	t.Helper()
	api := apiserver.New(opts)
	for _, p := range pods {
		api.Set(p)
	}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	agents, err := kube.NewAgents(&rest.Config{Host: server.URL}, "kube-system", "app=sluice")
	if err != nil {
		t.Fatal(err)
	}
	return agents
}

// Pods returns for each node the pod that runs or, if several run, the youngest.
func TestAgentPods(t *testing.T) {
	ending := agentPod("a-ending", "a", corev1.PodRunning, 9)
	ending.DeletionTimestamp = &metav1.Time{Time: time.Unix(10, 0)}
	other := agentPod("other", "d", corev1.PodRunning, 1)
	other.Labels = nil
	elsewhere := agentPod("elsewhere", "e", corev1.PodRunning, 1)
	elsewhere.Namespace = "default"
	agents := agentsOf(t, apiserver.Options{},
		agentPod("a-old", "a", corev1.PodRunning, 1), agentPod("a-new", "a", corev1.PodRunning, 2), agentPod("a-next", "a", corev1.PodPending, 3), ending,
		agentPod("b", "b", corev1.PodPending, 1), agentPod("nowhere", "", corev1.PodPending, 1), other, elsewhere)
	pods, err := agents.Pods(t.Context())
	var got []string
	for _, p := range pods {
		got = append(got, fmt.Sprint(p.Node, " ", p.Name, " ", p.Container, " ", p.Running))
	}
	if want := []string{"a a-new sluice true", "b b sluice false"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestRunInPod(t *testing.T) {
	ended := make(chan struct{})
	agents := agentsOf(t, apiserver.Options{Exec: func(c apiserver.Command) int {
		fmt.Fprintln(c.Stdout, c.Pod, c.Container, strings.Join(c.Args, "|"))
		switch c.Args[0] {
		case "fail":
			fmt.Fprint(c.Stderr, "sluice: one\nsluice: two\n", strings.Repeat("x", 100_000))
			return 3
		case "stay":
			_, _ = io.Copy(io.Discard, c.Stdin)
			close(ended)
		}
		return 0
	}}, agentPod("p", "n", corev1.PodRunning, 1))
	pods, err := agents.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := agents.Run(t.Context(), pods[0], kube.Command{Args: []string{"echo", "a b", "--c=d"}, Out: &out}); err != nil || out.String() != "kube-system/p sluice echo|a b|--c=d\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	var failed *kube.CommandError
	if err := agents.Run(t.Context(), pods[0], kube.Command{Args: []string{"fail"}, Out: io.Discard}); !errors.As(err, &failed) || failed.Status != 3 || !strings.HasPrefix(failed.Text, "one; two; x") || len(failed.Text) > 5000 {
		t.Errorf("%.100v", err)
	}
	// The input of a command ends when its client ends.
	ctx, stop := context.WithCancel(t.Context())
	in, lines := io.Pipe()
	go func() {
		_, _ = in.Read(make([]byte, 100)) // returns when the command runs
		stop()
	}()
	if err := agents.Run(ctx, pods[0], kube.Command{Args: []string{"stay"}, Out: lines}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-ended
	stopped := pods[0]
	stopped.Running = false
	if err := agents.Run(t.Context(), stopped, kube.Command{Args: []string{"echo"}, Out: io.Discard}); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("%v", err)
	}
}

// The errors name the right that the user lacks.
func TestAgentsNeedRights(t *testing.T) {
	refuse := func(part string) apiserver.Options {
		return apiserver.Options{Exec: func(apiserver.Command) int { return 0 }, Refuse: func(r *http.Request) *metav1.Status {
			if !strings.HasSuffix(r.URL.Path, part) {
				return nil
			}
			return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "it is forbidden"}
		}}
	}
	if _, err := agentsOf(t, refuse("/pods")).Pods(t.Context()); err == nil || !strings.Contains(err.Error(), "let this user list pods") {
		t.Errorf("%v", err)
	}
	agents := agentsOf(t, refuse("/exec"), agentPod("p", "n", corev1.PodRunning, 1))
	pods, err := agents.Pods(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := agents.Run(t.Context(), pods[0], kube.Command{Args: []string{"x"}, Out: io.Discard}); err == nil || !strings.Contains(err.Error(), "pods/exec") {
		t.Errorf("%v", err)
	}
}

// Versions gets few policies, and lists many. If the user may not list them, it gets them as well.
func TestVersionsOfPolicies(t *testing.T) {
	var mu sync.Mutex // guards what the server's goroutines use too
	var lists, gets int
	var forbidden string
	forbid := func(path string) {
		mu.Lock()
		defer mu.Unlock()
		forbidden = path
	}
	api := apiserver.New(apiserver.Options{Refuse: func(r *http.Request) *metav1.Status {
		mu.Lock()
		defer mu.Unlock()
		switch path := r.URL.Path; {
		case forbidden != "" && strings.HasSuffix(path, forbidden):
			return &metav1.Status{Status: metav1.StatusFailure, Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: "it is forbidden"}
		case strings.HasSuffix(path, "policies"):
			lists++
		case strings.Contains(path, "policies/"):
			gets++
		}
		return nil
	}})
	api.Install("v1beta1")
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	agents, err := kube.NewAgents(&rest.Config{Host: server.URL, QPS: -1}, "kube-system", "app=sluice")
	if err != nil {
		t.Fatal(err)
	}
	const count = 1200
	want := make(map[policy.Ref]kube.PolicyVersion)
	var refs []policy.Ref
	add := func(o apiserver.Object, ref policy.Ref, tier string) {
		api.Set(o)
		refs = append(refs, ref)
		want[ref] = kube.PolicyVersion{Resource: api.Get(o).GetResourceVersion(), Tier: tier}
	}
	o := &v1beta1.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "platform"}, Spec: v1beta1.ClusterNetworkPolicySpec{Tier: v1beta1.AdminTier}}
	add(o, policy.Ref{Kind: "ClusterNetworkPolicy", Name: "platform"}, "Admin")
	for i := range count {
		namespace, name := fmt.Sprintf("n%d", i/60), fmt.Sprintf("p%d", i)
		o := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}}
		add(o, policy.Ref{Kind: "NetworkPolicy", Namespace: namespace, Name: name}, "")
	}
	none := policy.Ref{Kind: "NetworkPolicy", Namespace: "n0", Name: "none"}
	check := func(name string, of []policy.Ref, wantLists, wantGets int) {
		t.Helper()
		mu.Lock()
		lists, gets = 0, 0
		mu.Unlock()
		got, err := agents.Versions(t.Context(), append(slices.Clone(of), none, of[0]))
		mu.Lock()
		defer mu.Unlock()
		if err != nil || len(got) != len(of) || lists != wantLists || gets != wantGets {
			t.Fatalf("%s: %d versions, %d lists, %d gets, %v", name, len(got), lists, gets, err)
		}
		for _, ref := range of {
			if got[ref] != want[ref] {
				t.Errorf("%s: %v is %v, want %v", name, ref, got[ref], want[ref])
			}
		}
	}
	check("few", refs[:20], 0, 21)
	check("one namespace", refs[:61], 1, 1)
	check("20 namespaces", refs, 20, 1)
	forbid("/n3/networkpolicies")
	check("no right to list in one", refs, 19, 61)
	forbid("")
	for i := range 10 { // with more namespaces, it lists the policies of the cluster
		namespace := fmt.Sprintf("m%d", i)
		add(&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p"}}, policy.Ref{Kind: "NetworkPolicy", Namespace: namespace, Name: "p"}, "")
	}
	check("30 namespaces", refs, 3, 1)
	// The last step, because requests may still be on their way when this one fails.
	forbid("/networkpolicies/p7")
	if _, err := agents.Versions(t.Context(), refs[:20]); err == nil || !strings.Contains(err.Error(), "let this user get networkpolicies") {
		t.Errorf("%v", err)
	}
}

// Nodes whose operating system is not Linux need no agent.
func TestNodesOfAgents(t *testing.T) {
	api := apiserver.New(apiserver.Options{})
	for name, os := range map[string]string{"a": "linux", "b": "windows", "c": ""} {
		api.Set(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: os}}})
	}
	server := httptest.NewServer(api)
	t.Cleanup(server.Close)
	agents, err := kube.NewAgents(&rest.Config{Host: server.URL}, "kube-system", "app=sluice")
	if err != nil {
		t.Fatal(err)
	}
	if nodes, err := agents.Nodes(t.Context()); err != nil || !slices.Equal(nodes, []string{"a", "c"}) {
		t.Errorf("%q, %v", nodes, err)
	}
}
