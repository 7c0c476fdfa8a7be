package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// ReadRoutes reads the kinds that the cluster serves, page by page, in the version that the cluster
// serves. If the user may not list a kind, ReadRoutes lists it in the given namespaces, and reports it.
func TestReadRoutes(t *testing.T) {
	const kinds = `{"kind": "APIGroupDiscoveryList", "items": [
		{"metadata": {"name": "networking.k8s.io"}, "versions": [{"version": "v1", "resources": [
			{"resource": "ingresses", "scope": "Namespaced", "responseKind": {"kind": "Ingress"}}, {"resource": "ingressclasses", "responseKind": {"kind": "IngressClass"}}]}]},
		{"metadata": {"name": "gateway.networking.k8s.io"}, "versions": [
			{"version": "v9", "resources": [{"resource": "gateways", "scope": "Namespaced", "responseKind": {"kind": "Gateway"}}, {"resource": "httproutes", "scope": "Namespaced", "responseKind": {"kind": "HTTPRoute"}}]},
			{"version": "v1", "resources": [{"resource": "gateways", "scope": "Namespaced", "responseKind": {"kind": "Gateway"}}, {"resource": "grpcroutes", "scope": "Namespaced", "responseKind": {"kind": "GRPCRoute"}}]},
			{"version": "v1alpha2", "resources": [{"resource": "tcproutes", "scope": "Namespaced", "responseKind": {"kind": "TCPRoute"}}]}]}]}`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers := map[string]string{
			"/apis": kinds,
			"/apis/networking.k8s.io/v1/namespaces/shop/ingresses":    `{"items": [{"metadata": {"namespace": "shop", "name": "web"}}]}`,
			"/apis/gateway.networking.k8s.io/v1/gateways":             `{"items": [{"metadata": {"namespace": "edge", "name": "public"}}]}`,
			"/apis/gateway.networking.k8s.io/v1/grpcroutes":           `{"metadata": {"continue": "broken"}, "items": [{"metadata": {"namespace": "shop", "name": "lost"}}]}`,
			"/apis/gateway.networking.k8s.io/v1/grpcroutes/broken":    `no JSON`,
			"/apis/gateway.networking.k8s.io/v1alpha2/tcproutes":      `{"metadata": {"continue": "more"}, "items": [{"metadata": {"namespace": "shop", "name": "a"}}]}`,
			"/apis/gateway.networking.k8s.io/v1alpha2/tcproutes/more": `{"items": [{"metadata": {"namespace": "shop", "name": "b"}}]}`,
		}
		path := r.URL.Path
		if more := r.URL.Query().Get("continue"); more != "" {
			path += "/" + more
		}
		if answers[path] == "" {
			w.WriteHeader(http.StatusForbidden)
		}
		fmt.Fprint(w, answers[path])
	}))
	defer server.Close()
	o, unread, err := ReadRoutes(t.Context(), &rest.Config{Host: server.URL}, "shop", "pci")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range o.Routes {
		got = append(got, r.Ref.Object())
	}
	for _, g := range o.Gateways {
		got = append(got, g.Ref.Object())
	}
	for _, u := range unread {
		reason, _, _ := strings.Cut(u.Reason, ": ")
		got = append(got, u.Kind+": "+reason)
	}
	want := "Ingress shop/web, TCPRoute shop/a, TCPRoute shop/b, Gateway edge/public, Ingress: forbidden outside of namespace shop, IngressClass: forbidden, " +
		"HTTPRoute: the cluster serves it only as v9, which this version of Sluice does not know, GRPCRoute: invalid character 'o' in literal null (expecting 'u')"
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("%s\nwant %s", text, want)
	}
}

func TestReadRoutesWithoutServer(t *testing.T) {
	if _, _, err := ReadRoutes(t.Context(), &rest.Config{Host: "http://127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "find routes") {
		t.Errorf("error %v", err)
	}
}
