package kube

import (
	"context"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/controlplane"
)

// TestClusterReadOneNamespace reads a real API server as a user with a Role in one namespace. Read
// returns the objects of the namespace, and the reasons why others are missing. An administrator gets
// all objects.
func TestClusterReadOneNamespace(t *testing.T) {
	r := realServer(t)
	r.install("standard", "v1beta1")
	r.small()
	r.createWorkload()
	r.createNamespace("shop")
	r.grantIn("default")
	o, err := Read(r.ctx, r.config(controlplane.Agent), "default")
	r.must(err)
	if len(o.Pods) != 3 || len(o.Policies) != 1 || len(o.Services) != 1 || len(o.Namespaces) != 0 || len(o.Workloads) != 1 {
		t.Errorf("%d pods, %d policies, %d Services, %d Namespaces, %d workloads; want 3, 1, 1, 0, 1", len(o.Pods), len(o.Policies), len(o.Services), len(o.Namespaces), len(o.Workloads))
	}
	for _, want := range []string{
		"Namespace (forbidden): ", "Pod (forbidden outside of namespace default): ", "ClusterNetworkPolicy (forbidden): ", "Node (forbidden): ",
		"Deployment (forbidden outside of namespace default): ", "EndpointSlice (forbidden): ",
	} {
		if !strings.Contains(unreadOf(o), want) {
			t.Errorf("not read:\n%s\nlacks %s", unreadOf(o), want)
		}
	}
	if _, err := Read(r.ctx, r.config(controlplane.Agent), "shop"); err == nil || !strings.Contains(err.Error(), "in namespace shop (Role)") {
		t.Errorf("a namespace without rights: %v", err)
	}
	if o, err = Read(r.ctx, r.config(controlplane.Admin)); err != nil || len(o.Unread) > 0 || len(o.Workloads) != 1 || len(o.Namespaces) < 2 {
		t.Errorf("as an administrator: not read: %s; %d workloads, %d Namespaces; %v", unreadOf(o), len(o.Workloads), len(o.Namespaces), err)
	}
}

func (r *real) createWorkload() {
	r.Helper()
	labels := map[string]string{"app": "a"}
	_, err := r.admin.AppsV1().Deployments("default").Create(r.ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "a"},
		Spec: appsv1.DeploymentSpec{Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{
			ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "image.invalid"}}},
		}},
	}, metav1.CreateOptions{})
	r.must(err)
}

func (r *real) createNamespace(name string) {
	r.Helper()
	_, err := r.admin.CoreV1().Namespaces().Create(r.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	r.must(err)
}

// grantIn lets the agent's user list most kinds in a namespace, but not EndpointSlices.
func (r *real) grantIn(namespace string) {
	r.Helper()
	meta := metav1.ObjectMeta{Name: "reader", Namespace: namespace}
	_, err := r.admin.RbacV1().Roles(namespace).Create(context.Background(), &rbacv1.Role{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{{
		Verbs: []string{"list"}, APIGroups: []string{"", "apps", "batch", "networking.k8s.io"}, Resources: []string{"*"},
	}}}, metav1.CreateOptions{})
	r.must(err)
	_, err = r.admin.RbacV1().RoleBindings(namespace).Create(context.Background(), &rbacv1.RoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "reader"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: controlplane.Agent}},
	}, metav1.CreateOptions{})
	r.must(err)
}
