package lint

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/yaml"

	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

const reachable = `
pods:
- {metadata: {namespace: shop, name: web, labels: {app: web}}, status: {podIPs: [{ip: 10.0.0.1}], hostIP: 192.168.0.1}}
- {metadata: {namespace: edge, name: nginx, labels: {app.kubernetes.io/name: ingress-nginx, app.kubernetes.io/component: controller}}, status: {podIPs: [{ip: 10.0.0.3}]}}
services:
- {metadata: {namespace: shop, name: web}, spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
`

func TestRoutes(t *testing.T) {
	const (
		ingress = "\ningresses: [{metadata: {namespace: shop, name: web}, spec: {ingressClassName: nginx, rules: [{http: {paths: [{path: /, backend: &b {service: {name: web, port: {number: 80}}}}, {path: /x, backend: *b}]}}]}}]\n"
		outer   = "- {metadata: {namespace: shop, name: outer}, spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}\n"
	)
	policy := func(spec string) string {
		return "\npolicies: [{metadata: {namespace: shop, name: p}, spec: {podSelector: {matchLabels: {app: web}}, " + spec + "}}]\n"
	}
	tests := map[string]struct{ objects, want string }{
		"open":                  {ingress, ""},
		"denied":                {ingress + policy("ingress: [{from: [{podSelector: {}}]}]"), "route-denied Ingress shop/web spec.rules[0].http.paths[0].backend: policies deny what edge/nginx, its controller, sends to shop/web, TCP 8080 (ingress: shop/p)\nroute-denied Ingress shop/web spec.rules[0].http.paths[1].backend: policies deny what edge/nginx, its controller, sends to shop/web, TCP 8080 (ingress: shop/p)"},
		"allowed":               {ingress + policy("ingress: [{from: [{namespaceSelector: {}}]}]"), ""},
		"a class without pods":  {strings.Replace(ingress, "nginx", "alb", 1) + policy("ingress: [{from: [{podSelector: {}}]}]"), ""},
		"no Service":            {strings.Replace(ingress, "name: web, port", "name: wbe, port", 1), "no-backend Ingress shop/web spec.rules[0].http.paths[0].backend: there is no Service shop/wbe\nno-backend Ingress shop/web spec.rules[0].http.paths[1].backend: there is no Service shop/wbe"},
		"no port":               {strings.Replace(ingress, "number: 80", "number: 81", 1), `no-backend Ingress shop/web spec.rules[0].http.paths[0].backend: the Service shop/web has no TCP port "81": write one of TCP 80` + "\n" + `no-backend Ingress shop/web spec.rules[0].http.paths[1].backend: the Service shop/web has no TCP port "81": write one of TCP 80`},
		"Services elsewhere":    {strings.ReplaceAll(ingress, "namespace: shop", "namespace: other"), ""},
		"outside is denied":     {outer + policy("ingress: [{from: [{podSelector: {}}]}]"), "route-denied Service shop/outer spec.type: policies deny everything from outside the cluster to shop/web, TCP 8080 (ingress: shop/p)"},
		"a node is not outside": {outer + policy("ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]"), "client-address Service shop/outer spec.type: policies let some clients outside the cluster reach shop/web, TCP 8080, but no node, and with externalTrafficPolicy Cluster the source is a node unless the packet arrives at that of the pod"},
		"Local":                 {strings.Replace(outer, "type:", "externalTrafficPolicy: Local, type:", 1) + policy("ingress: [{from: [{ipBlock: {cidr: 198.51.100.0/24}}]}]"), ""},
		"nodes are allowed":     {outer + "\n#" + policy("ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]"), ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var lines []string
			for _, f := range Check(outsideInventory(t, reachable+tt.objects)) {
				if f.Check == NoBackend || f.Check == RouteDenied || f.Check == ClientAddress {
					lines = append(lines, f.Check+" "+f.Object+" "+f.Field+": "+f.Detail)
				}
			}
			if got := strings.Join(lines, "\n"); got != tt.want {
				t.Errorf("%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func outsideInventory(t *testing.T, text string) *inventory.Inventory {
	t.Helper()
	var o struct {
		Pods      []*corev1.Pod
		Policies  []*networkingv1.NetworkPolicy
		Services  []*corev1.Service
		Ingresses []*networkingv1.Ingress
		Nodes     []*corev1.Node
	}
	if err := yaml.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	node := kubepod.ReadNode(&corev1.Node{Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.2"}}}})
	node.Name = "n2"
	objects := inventory.Objects{Pods: kubepod.ReadAll(o.Pods), Policies: netpol.ReadAll(o.Policies), Services: o.Services}
	objects.Nodes = append(objects.Nodes, node)
	for _, i := range o.Ingresses {
		objects.Routing.Add(i)
	}
	return inventory.New(objects)
}
