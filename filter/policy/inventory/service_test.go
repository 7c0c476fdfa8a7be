package inventory

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"sluice/filter/policy/kubepod"
)

// The endpoints of a Service are those in its EndpointSlices or, without any, the pods that it selects.
// The name of a headless Service leads to the addresses of the endpoints, and nothing translates the
// port.
func TestServicePorts(t *testing.T) {
	const objects = `
pods:
- {metadata: {namespace: shop, name: web, labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}, status: {podIPs: [{ip: 10.0.0.1}]}}
- {metadata: {namespace: shop, name: web-2, labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 8081}]}]}, status: {podIPs: [{ip: 10.0.0.2}]}}
- {metadata: {namespace: shop, name: cli}, status: {podIPs: [{ip: 10.0.0.3}]}}
services:
- {metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: web, port: 80, targetPort: http}, {name: plain, port: 90}]}}
- {metadata: {namespace: shop, name: headless}, spec: {clusterIP: None, selector: {app: web}, ports: [{name: web, port: 80, targetPort: http}, {name: plain, port: 90, targetPort: 90}]}}
- {metadata: {namespace: shop, name: no-ports}, spec: {clusterIP: None, selector: {app: web}}}
- {metadata: {namespace: shop, name: outside}, spec: {clusterIP: 10.96.0.2, ports: [{name: sql, port: 5432, targetPort: 9}]}}
- {metadata: {namespace: shop, name: outside-headless}, spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}}
- {metadata: {namespace: shop, name: empty}, spec: {clusterIP: 10.96.0.3, ports: [{port: 80}]}}
- {metadata: {namespace: shop, name: alias}, spec: {type: ExternalName, externalName: web.shop.svc.cluster.local}}
- {metadata: {namespace: shop, name: circle}, spec: {type: ExternalName, externalName: circle.shop.svc.cluster.local}}
- {metadata: {namespace: shop, name: legacy}, spec: {type: ExternalName, externalName: db.example.com}}
slices:
- {metadata: {namespace: shop, name: outside-1, labels: {kubernetes.io/service-name: outside}}, addressType: IPv4, ports: [{name: sql, port: 6432}], endpoints: [{addresses: [192.0.2.10]}, {addresses: [192.0.2.11], conditions: {ready: false}}]}
- {metadata: {namespace: shop, name: outside-2, labels: {kubernetes.io/service-name: outside-headless}}, addressType: IPv4, ports: [{name: sql, port: 6432}], endpoints: [{addresses: [192.0.2.10]}, {addresses: [10.0.0.1]}]}
`
	tests := map[string]struct{ to, port, want string }{
		"a named targetPort":            {"svc/web", "80", "shop/web 8080, shop/web-2 8081"},
		"by the name of the port":       {"svc/web", "web", "shop/web 8080, shop/web-2 8081"},
		"without a targetPort":          {"svc/web", "90", "shop/web 90, shop/web-2 90"},
		"no such port":                  {"svc/web", "8080", "port: the Service shop/web has no TCP port"},
		"headless":                      {"svc/headless", "80", "shop/web 80 not 80→http, shop/web-2 80 not 80→http"},
		"headless, by name, as in SRV":  {"svc/headless", "web", "shop/web 8080, shop/web-2 8081"},
		"headless, the same targetPort": {"svc/headless", "90", "shop/web 90, shop/web-2 90"},
		"headless, any port":            {"headless.shop.svc:8080", "", "shop/web 8080, shop/web-2 8080"},
		"headless without ports":        {"svc/no-ports", "8080", "shop/web 8080, shop/web-2 8080"},
		"outside the cluster":           {"svc/outside", "5432", "192.0.2.10 6432"},
		"its address":                   {"10.96.0.2:5432", "", "192.0.2.10 6432"},
		"headless, of EndpointSlices":   {"svc/outside-headless", "5432", "10.0.0.1 5432, 192.0.2.10 5432"},
		"nothing behind":                {"svc/empty", "80", "to: shop/empty is a Service, and decisions see only the endpoints behind it; it has no selector and no EndpointSlices"},
		"another name of a Service":     {"svc/alias", "80", "shop/web 8080, shop/web-2 8081"},
		"another name of itself":        {"svc/circle", "80", "to: Service shop/circle is another name for circle.shop.svc.cluster.local, and Sluice cannot know its addresses"},
		"a name outside the cluster":    {"svc/legacy", "80", "to: Service shop/legacy is another name for db.example.com, and Sluice cannot know its addresses: ask for one of them"},
	}
	var o struct {
		Pods     []*corev1.Pod
		Services []*corev1.Service
		Slices   []*discoveryv1.EndpointSlice
	}
	if err := yaml.UnmarshalStrict([]byte(objects), &o); err != nil {
		t.Fatal(err)
	}
	v := New(Objects{Pods: kubepod.ReadAll(o.Pods), Services: o.Services, EndpointSlices: o.Slices})
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			flows, err := v.Flows(Question{From: "cli", To: tt.to, Port: tt.port, Namespace: "shop"})
			var got []string
			for _, f := range flows {
				text := fmt.Sprintf("%s %d", f.To.Name, f.Key.Port)
				if f.Via.Untranslated != "" {
					text += fmt.Sprintf(" not %d→%s", f.Via.Port, f.Via.Untranslated)
				}
				got = append(got, text)
			}
			text := strings.Join(got, ", ")
			if err != nil {
				text = err.Error()
			}
			if text != tt.want && (err == nil || !strings.HasPrefix(text, tt.want)) {
				t.Errorf("%s, want %s", text, tt.want)
			}
		})
	}
}
