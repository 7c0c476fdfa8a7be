package kube

import (
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/controlplane"
)

// TestClusterReadRoutes reads Ingresses of a real API server, which lacks the kinds of the Gateway API. A
// user with rights in one namespace gets its Ingresses, and the kinds that are missing as Unread.
func TestClusterReadRoutes(t *testing.T) {
	r := realServer(t)
	r.createNamespace("shop")
	r.createIngress("default")
	r.createIngress("shop")
	r.grantIn("default")
	o, unread, err := ReadRoutes(r.ctx, r.config(controlplane.Admin))
	r.must(err)
	if len(o.Routes) != 2 || len(o.Classes) != 1 || len(unread) != 0 {
		t.Errorf("as an administrator: %d routes, %d classes, not read %v", len(o.Routes), len(o.Classes), unread)
	}
	o, unread, err = ReadRoutes(r.ctx, r.config(controlplane.Agent), "default")
	r.must(err)
	var missing []string
	for _, u := range unread {
		missing = append(missing, u.Kind+" ("+u.Reason+")")
	}
	want := "Ingress (forbidden outside of namespace default), IngressClass (forbidden)"
	if got := strings.Join(missing, ", "); len(o.Routes) != 1 || o.Routes[0].Targets[0].Service.Name != "web" || got != want {
		t.Errorf("%d routes, not read %s; want 1, %s", len(o.Routes), got, want)
	}
}

// createIngress creates an Ingress, and its class if it is the first.
func (r *real) createIngress(namespace string) {
	r.Helper()
	class := "nginx"
	_, err := r.admin.NetworkingV1().Ingresses(namespace).Create(r.ctx, &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: networkingv1.IngressSpec{IngressClassName: &class, DefaultBackend: &networkingv1.IngressBackend{
			Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}},
		}},
	}, metav1.CreateOptions{})
	r.must(err)
	if namespace != "default" {
		return
	}
	_, err = r.admin.NetworkingV1().IngressClasses().Create(r.ctx, &networkingv1.IngressClass{
		ObjectMeta: metav1.ObjectMeta{Name: class}, Spec: networkingv1.IngressClassSpec{Controller: "k8s.io/ingress-nginx"},
	}, metav1.CreateOptions{})
	r.must(err)
}
