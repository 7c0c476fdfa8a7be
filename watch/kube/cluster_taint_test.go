package kube

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/controlplane"
)

// updateNode changes this node's Node with the rights of an administrator. It retries after
// concurrent changes.
func (r *real) updateNode(change func(*corev1.Node)) {
	r.Helper()
	for {
		n, err := r.admin.CoreV1().Nodes().Get(r.ctx, "here", metav1.GetOptions{})
		r.must(err)
		change(n)
		_, err = r.admin.CoreV1().Nodes().Update(r.ctx, n, metav1.UpdateOptions{})
		if !apierrors.IsConflict(err) {
			r.must(err)
			return
		}
	}
}

// taints returns the keys of the Node's taints, except for the one that the API server adds
// to every new Node.
func (r *real) taints() (keys []string) {
	r.Helper()
	n, err := r.admin.CoreV1().Nodes().Get(r.ctx, "here", metav1.GetOptions{})
	r.must(err)
	for _, t := range n.Spec.Taints {
		if t.Key != corev1.TaintNodeNotReady {
			keys = append(keys, t.Key)
		}
	}
	return keys
}

// TestClusterStartupTaint checks against a real API server that the agent can remove the startup
// taint if it has the right to patch Nodes, and reports an error if it lacks this right. Other
// clients change the Node all the time; the agent still removes the startup taint, and never
// removes another taint.
func TestClusterStartupTaint(t *testing.T) {
	r := realServer(t)
	r.grant()
	r.small()
	_, err := r.admin.CoreV1().Nodes().Create(r.ctx, tainted("here", others[0], startup, others[1:], evict), metav1.CreateOptions{})
	r.must(err)
	f := follow(t, r.config(controlplane.Agent), Options{NodeName: "here", StartupTaint: &StartupTaint{Key: taintKeyOfTest, Ready: func() bool { return true }}})
	await(t, "the agent's user is refused", func() bool {
		err := f.source.StartupTaintError()
		return err != nil && strings.Contains(err.Error(), "get and patch nodes") && strings.Contains(err.Error(), `User "sluice" cannot patch`)
	})
	if got := r.taints(); len(got) != 5 {
		t.Fatalf("without the right to patch, the Node has the taints %v", got)
	}
	role, err := r.admin.RbacV1().ClusterRoles().Get(r.ctx, "sluice", metav1.GetOptions{})
	r.must(err)
	role.Rules = append(role.Rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"nodes"}, Verbs: []string{"patch"}})
	_, err = r.admin.RbacV1().ClusterRoles().Update(r.ctx, role, metav1.UpdateOptions{})
	r.must(err)
	var want []string
	for _, o := range others {
		want = append(want, o.Key)
	}
	await(t, "the taint is gone", func() bool { return slices.Equal(r.taints(), want) })
	await(t, "the failure is over", func() bool { return f.source.StartupTaintError() == nil })

	t.Log("other clients change the Node all the time, and their changes stay")
	stop, wait := make(chan struct{}), sync.WaitGroup{}
	wait.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			r.updateNode(func(n *corev1.Node) {
				n.Labels = map[string]string{"round": fmt.Sprint(i)}
				// The taint's index changes in each round.
				n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, func(t corev1.Taint) bool { return strings.HasPrefix(t.Key, "round-") })
				n.Spec.Taints = slices.Insert(n.Spec.Taints, i%len(others), corev1.Taint{Key: fmt.Sprintf("round-%d", i), Effect: corev1.TaintEffectNoSchedule})
			})
		}
	})
	for i := range 20 {
		r.updateNode(func(n *corev1.Node) {
			n.Spec.Taints = slices.Insert(n.Spec.Taints, i%(len(n.Spec.Taints)+1), startup)
		})
		await(t, "the taint is gone again", func() bool { return !slices.Contains(r.taints(), taintKeyOfTest) })
	}
	close(stop)
	wait.Wait()
	got := slices.DeleteFunc(r.taints(), func(key string) bool { return strings.HasPrefix(key, "round-") })
	if !slices.Equal(got, want) {
		t.Errorf("other taints: %v, want %v", got, want)
	}
}
