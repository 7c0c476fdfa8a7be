package kuberoute

import (
	"fmt"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// Add converts the backends of each kind of routes into targets.
func TestTargets(t *testing.T) {
	tests := map[string]struct{ kind, spec, want string }{
		"Ingress":                   {"Ingress", "{rules: [{host: a, http: {paths: [{path: /p, backend: {service: {name: s, port: {name: http}}}}]}}]}", "TCP [a]/p ns/s http spec.rules[0].http.paths[0].backend"},
		"HTTPRoute":                 {"HTTPRoute", "{hostnames: [a, b], rules: [{matches: [{path: {value: /p}}, {path: {value: /q}}], backendRefs: [{name: s, port: 80}]}]}", "TCP [a b]/p ns/s 80 spec.rules[0].backendRefs[0]\nTCP [a b]/q ns/s 80 spec.rules[0].backendRefs[0]"},
		"without matches":           {"HTTPRoute", "{rules: [{backendRefs: [{name: s, namespace: other, port: 80}]}]}", "TCP [] other/s 80 spec.rules[0].backendRefs[0]"},
		"a header":                  {"HTTPRoute", "{rules: [{matches: [{headers: [{name: a, value: b}]}], backendRefs: [{name: s, port: 80}]}]}", "TCP [] ns/s 80 spec.rules[0].backendRefs[0]"},
		"GRPCRoute":                 {"GRPCRoute", "{rules: [{matches: [{method: {service: a.B, method: C}}, {method: {service: a.D}}], backendRefs: [{name: s, port: 80}]}]}", "TCP []/a.B/C ns/s 80 spec.rules[0].backendRefs[0]\nTCP []/a.D ns/s 80 spec.rules[0].backendRefs[0]"},
		"a path, and a header":      {"HTTPRoute", "{rules: [{matches: [{path: {value: /p}}, {headers: [{name: a, value: b}]}], backendRefs: [{name: s, port: 80}]}]}", "TCP []/p ns/s 80 spec.rules[0].backendRefs[0]\nTCP [] ns/s 80 spec.rules[0].backendRefs[0]"},
		"a method, and a header":    {"GRPCRoute", "{rules: [{matches: [{method: {service: a.B}}, {headers: [{name: a, value: b}]}], backendRefs: [{name: s, port: 80}]}]}", "TCP []/a.B ns/s 80 spec.rules[0].backendRefs[0]\nTCP [] ns/s 80 spec.rules[0].backendRefs[0]"},
		"TLSRoute":                  {"TLSRoute", "{hostnames: [a], rules: [{backendRefs: [{name: s, port: 443}]}]}", "TCP [a] ns/s 443 spec.rules[0].backendRefs[0]"},
		"TCPRoute":                  {"TCPRoute", "{rules: [{backendRefs: [{name: s, port: 443}, {name: r}]}]}", "TCP [] ns/s 443 spec.rules[0].backendRefs[0]\nTCP [] ns/r  spec.rules[0].backendRefs[1]"},
		"UDPRoute":                  {"UDPRoute", "{rules: [{backendRefs: [{name: s, port: 53}]}]}", "UDP [] ns/s 53 spec.rules[0].backendRefs[0]"},
		"a backend of another kind": {"HTTPRoute", "{rules: [{backendRefs: [{group: net.example.com, kind: Import, name: s, port: 80}]}]}", "TCP []  80 spec.rules[0].backendRefs[0]"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var lines []string
			for _, r := range readAs(t, tt.kind, tt.spec).Routes {
				for _, target := range r.Targets {
					lines = append(lines, fmt.Sprint(r.Protocol, " ", target.Hosts, target.Path, " ", target.Service, " ", target.Port, " ", target.Field))
				}
			}
			if got := strings.Join(lines, "\n"); got != tt.want {
				t.Errorf("%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

// readAs converts an object with this kind and spec.
func readAs(t *testing.T, kind, spec string) (o Objects) {
	t.Helper()
	for _, k := range Kinds() {
		if k.Name != kind {
			continue
		}
		object := k.New()
		if err := yaml.UnmarshalStrict([]byte("{metadata: {namespace: ns, name: r}, spec: "+spec+"}"), object); err != nil {
			t.Fatal(err)
		}
		o.Add(object)
	}
	return o
}

// Add converts every kind that Kinds returns.
func TestAddKnowsTheKinds(t *testing.T) {
	for _, k := range Kinds() {
		var o Objects
		if o.Add(k.New()); len(o.Routes)+len(o.Classes)+len(o.Gateways)+len(o.Grants) != 1 {
			t.Errorf("%s is not read", k.Name)
		}
	}
}
