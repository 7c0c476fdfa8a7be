package kube

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/bench/testbed/controlplane"
	"sluice/filter"
	"sluice/filter/event"
)

// noticed fails unless f returns within 30 s.
func (r *real) noticed(what string, f func()) {
	r.Helper()
	begun := time.Now()
	f()
	took := time.Since(begun)
	r.Logf("%s: noticed after %v", what, took.Round(10*time.Millisecond))
	if took > 30*time.Second {
		r.Errorf("%s: noticed after %v, which is more than 30 s", what, took)
	}
}

func (r *real) install(channel string, served ...string) {
	r.Helper()
	r.must(controlplane.InstallPolicies(r.ctx, r.admin, channel, served...))
}

func (r *real) createPolicy(version string, p *v1beta1.ClusterNetworkPolicy) {
	r.Helper()
	r.must(controlplane.CreatePolicy(r.ctx, r.admin, version, p))
}

// TestClusterPolicies checks, with a real API server and the default times, that
// ClusterNetworkPolicies are followed while their CustomResourceDefinition is installed,
// upgraded, downgraded and removed. Each change must be logged once.
func TestClusterPolicies(t *testing.T) {
	r := realServer(t)
	r.grant()
	r.small()
	_, err := r.admin.CoreV1().Nodes().Create(r.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", Labels: role("worker")}}, metav1.CreateOptions{})
	r.must(err)
	_, err = r.admin.CoreV1().Nodes().Patch(r.ctx, "one", "application/merge-patch+json", []byte(`{"status":{"addresses":[{"type":"InternalIP","address":"192.0.2.1"}]}}`), metav1.PatchOptions{}, "status")
	r.must(err)
	f := follow(t, r.config(controlplane.Agent), Options{})
	f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
	f.version("")
	f.logged(map[event.Name]int{event.KindServed: 0, event.KindNotServed: 1})

	r.install("standard", "v1alpha2")
	r.createPolicy("v1alpha2", makeClusterPolicy("admin", "frontend"))
	r.noticed("installed as v1alpha2", f.inForce)
	f.version("v1alpha2")

	r.install("experimental", "v1alpha2", "v1beta1")
	r.noticed("upgraded to v1beta1", func() { f.version("v1beta1") })
	withNodes := makeClusterPolicy("nodes", "unused")
	withNodes.Spec.Egress = []v1beta1.ClusterNetworkPolicyEgressRule{{
		Action: v1beta1.ClusterNetworkPolicyRuleActionDeny, To: []v1beta1.ClusterNetworkPolicyEgressPeer{{Nodes: &metav1.LabelSelector{MatchLabels: role("worker")}}},
	}}
	r.createPolicy("v1beta1", withNodes)
	f.verdict("10.1.0.1", "192.0.2.1", 6443, filter.Deny)
	o, err := Read(r.ctx, r.config(controlplane.Agent))
	r.must(err)
	if len(o.Policies) != 3 || len(o.Nodes) != 1 {
		t.Errorf("Read found %d policies and %d nodes, want 3 and 1", len(o.Policies), len(o.Nodes))
	}

	r.install("experimental", "v1alpha2")
	r.noticed("downgraded to v1alpha2", func() { f.version("v1alpha2") })
	f.inForce()
	r.install("experimental", "v1beta1")
	r.noticed("v1alpha2 replaced by v1beta1", func() { f.version("v1beta1") })
	f.inForce()
	f.logged(map[event.Name]int{event.KindServed: 4, event.KindNotServed: 1, event.APIUnreachable: 0})

	r.must(controlplane.RemovePolicies(r.ctx, r.admin))
	r.noticed("removed", func() { f.version("") })
	f.verdict("10.1.0.2", "10.1.0.1", 6379, filter.Allow)
	f.verdict("10.1.0.1", "192.0.2.1", 6443, filter.Allow)
	f.logged(map[event.Name]int{event.KindServed: 4, event.KindNotServed: 2, event.APIUnreachable: 0})
	o, err = Read(r.ctx, r.config(controlplane.Agent))
	r.must(err)
	if len(o.Policies) != 1 {
		t.Errorf("Read found %d policies, want 1", len(o.Policies))
	}
}

// TestClusterPoliciesStay checks that ClusterNetworkPolicies stay in force while the API
// server is down, while it starts, and while it refuses access to them. Discovery of a
// server that starts is incomplete for a while.
func TestClusterPoliciesStay(t *testing.T) {
	r := realServer(t)
	r.install("experimental", "v1alpha2", "v1beta1")
	r.createPolicy("v1beta1", makeClusterPolicy("admin", "frontend"))
	r.grant()
	r.small()
	f := follow(t, r.config(controlplane.Agent), Options{times: discoveryTimes{interval: quickTimes.interval, confirm: defaultTimes.confirm, conflict: defaultTimes.conflict}})
	f.inForce()
	for range 3 {
		r.must(r.StopServer(syscall.SIGKILL))
		f.health(clusterNetworkPolicyKind, "the server is unreachable", func(h KindHealth) bool { return h.Err != nil })
		f.inForce()
		r.must(r.StartServer(r.ctx))
		f.version("v1beta1")
		f.inForce()
	}
	roles := r.admin.RbacV1().ClusterRoles()
	full, err := roles.Get(r.ctx, controlplane.Agent, metav1.GetOptions{})
	r.must(err)
	less := full.DeepCopy()
	less.Rules = slices.DeleteFunc(less.Rules, func(rule rbacv1.PolicyRule) bool { return slices.Contains(rule.APIGroups, v1beta1.GroupName) })
	less, err = roles.Update(r.ctx, less, metav1.UpdateOptions{})
	r.must(err)
	r.must(r.StopServer(syscall.SIGTERM))
	r.must(r.StartServer(r.ctx))
	f.health(clusterNetworkPolicyKind, "access is refused", func(h KindHealth) bool {
		return apierrors.IsForbidden(h.Err) && strings.Contains(h.Err.Error(), "list and watch clusternetworkpolicies")
	})
	f.inForce()
	less.Rules = full.Rules
	_, err = roles.Update(r.ctx, less, metav1.UpdateOptions{})
	r.must(err)
	f.version("v1beta1")
	f.inForce()
	f.logged(map[event.Name]int{event.KindServed: 1, event.KindNotServed: 0})
}
