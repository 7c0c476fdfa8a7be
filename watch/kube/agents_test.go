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
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"sluice/bench/testbed/apiserver"
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
	if err := agents.Run(t.Context(), pods[0], []string{"echo", "a b", "--c=d"}, &out); err != nil || out.String() != "kube-system/p sluice echo|a b|--c=d\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	var failed *kube.CommandError
	if err := agents.Run(t.Context(), pods[0], []string{"fail"}, io.Discard); !errors.As(err, &failed) || failed.Status != 3 || !strings.HasPrefix(failed.Text, "one; two; x") || len(failed.Text) > 5000 {
		t.Errorf("%.100v", err)
	}
	// The input of a command ends when its client ends.
	ctx, stop := context.WithCancel(t.Context())
	in, lines := io.Pipe()
	go func() {
		_, _ = in.Read(make([]byte, 100)) // returns when the command runs
		stop()
	}()
	if err := agents.Run(ctx, pods[0], []string{"stay"}, lines); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	<-ended
	stopped := pods[0]
	stopped.Running = false
	if err := agents.Run(t.Context(), stopped, []string{"echo"}, io.Discard); err == nil || !strings.Contains(err.Error(), "does not run") {
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
	if err := agents.Run(t.Context(), pods[0], []string{"x"}, io.Discard); err == nil || !strings.Contains(err.Error(), "pods/exec") {
		t.Errorf("%v", err)
	}
}
