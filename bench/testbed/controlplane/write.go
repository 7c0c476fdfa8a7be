package controlplane

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"sluice/bench/testbed/cluster"
)

// writers bounds the number of objects that are written at the same time.
const writers = 8

// Grant lets the user Agent get, list and watch the objects that sluice follows, and
// nothing else.
func Grant(ctx context.Context, admin kubernetes.Interface) error {
	read := []string{"get", "list", "watch"}
	role := &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: Agent}, Rules: []rbacv1.PolicyRule{
		{Verbs: read, APIGroups: []string{""}, Resources: []string{"pods", "namespaces", "nodes"}},
		{Verbs: read, APIGroups: []string{"networking.k8s.io"}, Resources: []string{"networkpolicies"}},
		{Verbs: read, APIGroups: []string{"policy.networking.k8s.io"}, Resources: []string{"clusternetworkpolicies"}},
	}}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: Agent},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: Agent},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: Agent}},
	}
	if _, err := admin.RbacV1().ClusterRoles().Create(ctx, role, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("grant the agent its rights: %w", err)
	}
	if _, err := admin.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("grant the agent its rights: %w", err)
	}
	return nil
}

// CreatePod creates a pod and then writes its status, as its kubelet would.
func CreatePod(ctx context.Context, admin kubernetes.Interface, p *corev1.Pod) error {
	p = p.DeepCopy()
	for i := range p.Spec.Containers {
		p.Spec.Containers[i].Image = "image.invalid"
	}
	status := p.Status
	created, err := admin.CoreV1().Pods(p.Namespace).Create(ctx, p, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	created.Status = status
	if _, err := admin.CoreV1().Pods(p.Namespace).UpdateStatus(ctx, created, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("write the status of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// Fill creates all objects of a cluster.
func Fill(ctx context.Context, admin kubernetes.Interface, c *cluster.Cluster) error {
	for _, o := range c.Namespaces {
		if _, err := admin.CoreV1().Namespaces().Create(ctx, o, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create namespace %s: %w", o.Name, err)
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(writers)
	for _, o := range c.Pods {
		group.Go(func() error { return CreatePod(ctx, admin, o) })
	}
	for _, o := range c.Policies {
		group.Go(func() error {
			if _, err := admin.NetworkingV1().NetworkPolicies(o.Namespace).Create(ctx, o, metav1.CreateOptions{}); err != nil {
				return fmt.Errorf("create policy %s/%s: %w", o.Namespace, o.Name, err)
			}
			return nil
		})
	}
	return group.Wait()
}
