package manifests

import (
	"log/slog"
	"strings"
	"testing"
)

// Read reads routes of each version that has the same fields. A value that the API server would refuse
// is a problem. Unknown fields and other versions are notes, because packets do not depend on routes.
func TestRoutes(t *testing.T) {
	tests := map[string]struct{ object, routes, problem, note string }{
		"an Ingress":       {"{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}}", "Ingress default/a", "", ""},
		"version v1":       {"{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: a}}", "HTTPRoute default/a", "", ""},
		"an older version": {"{apiVersion: gateway.networking.k8s.io/v1alpha2, kind: TLSRoute, metadata: {name: a}}", "TLSRoute default/a", "", ""},
		"of OpenShift":     {"{apiVersion: route.openshift.io/v1, kind: Route, metadata: {name: a}, spec: {to: {kind: Service, name: b, weight: 1}, tls: {termination: edge}, hots: b}}", "Route default/a", "", "spec.hots: there is no such field; it is ignored: write host"},
		"in a list":        {"{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRouteList, items: [{metadata: {name: a}}]}", "HTTPRoute default/a", "", ""},
		"another version":  {"{apiVersion: networking.k8s.io/v2, kind: Ingress, metadata: {name: a}}", "", "", `Ingress default/a, apiVersion: "networking.k8s.io/v2" is not read, and answers lack the way in from outside that it opens: write networking.k8s.io/v1`},
		"an unknown field": {"{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: a}, spec: {hostNames: [b]}}", "HTTPRoute default/a", "", "spec.hostNames: there is no such field; it is ignored: write hostnames"},
		"a wrong type":     {"{apiVersion: gateway.networking.k8s.io/v1, kind: TCPRoute, metadata: {name: a}, spec: {rules: {}}}", "TCPRoute default/a", "spec.rules: it is an object: write a list", ""},
		"no port":          {"{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: {rules: [{http: {paths: [{backend: {service: {name: b}}}]}}]}}", "Ingress default/a", "spec.rules[0].http.paths[0].backend.service.port: it is missing", ""},
		"two ports":        {"{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: {defaultBackend: {service: {name: b, port: {name: c, number: 1}}}}}", "Ingress default/a", "it has a number and a name: remove one of them", ""},
		"no Service":       {"{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: {defaultBackend: {}}}", "Ingress default/a", "spec.defaultBackend: it has neither a service nor a resource", ""},
		"no name":          {"{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: {defaultBackend: {service: {port: {number: 1}}}}}", "Ingress default/a", "spec.defaultBackend.service.name: it is missing", ""},
		"no class":         {"{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: a}, spec: {listeners: []}}", "", "spec.gatewayClassName: it is missing", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			objects, problems := read(t, map[string]string{"a.yaml": tt.object, "shop.yaml": shop})
			var routes, wrong, notes []string
			for _, r := range objects.Routing.Routes {
				routes = append(routes, r.Ref.Object())
			}
			for _, p := range problems {
				wrong = append(wrong, p.Error())
			}
			for _, n := range objects.Notes {
				notes = append(notes, n.Error())
			}
			has := func(lines []string, want string) bool {
				return len(lines) == 0 && want == "" || want != "" && strings.Contains(strings.Join(lines, "\n"), want)
			}
			if got := strings.Join(routes, ", "); got != tt.routes || !has(wrong, tt.problem) || !has(notes, tt.note) {
				t.Errorf("routes %q, problems %q, notes %q", got, wrong, notes)
			}
		})
	}
}

// The agent does not read routes: a mistake in a route must not hold up the policies of its file.
func TestFollowSkipsRoutes(t *testing.T) {
	c := parse("a.yaml", []byte("{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: a}, spec: {defaultBackend: {}}}"), reading{}, slog.New(slog.DiscardHandler))
	if len(c.items)+len(c.problems)+len(c.notes) != 0 {
		t.Errorf("items %v, problems %v, notes %v", c.items, c.problems, c.notes)
	}
}

// A route in a file replaces the route of the cluster with the same name.
func TestOverlayRoutes(t *testing.T) {
	const route = "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: %}, spec: {ingressClassName: $}}\n---\n"
	of := func(name, class string) string { return strings.NewReplacer("%", name, "$", class).Replace(route) }
	cluster, _ := read(t, map[string]string{"a.yaml": shop + "\n---\n" + of("a", "old") + of("b", "old")})
	files, _ := read(t, map[string]string{"a.yaml": shop + "\n---\n" + of("a", "new")})
	var got []string
	for _, r := range Overlay(FromCluster("c", cluster), "c", files).Routing.Routes {
		got = append(got, r.Ref.Name+" "+r.Class)
	}
	if text := strings.Join(got, ", "); text != "b old, a new" {
		t.Errorf("routes %s", text)
	}
}
