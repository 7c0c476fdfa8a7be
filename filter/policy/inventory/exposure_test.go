package inventory

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/kuberoute"
	"sluice/filter/policy/netpol"
)

// outside has the objects of a cluster with ways from outside.
type outside struct {
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
	Services   []*corev1.Service
	Ingresses  []*networkingv1.Ingress
	Classes    []*networkingv1.IngressClass
	Gateways   []*gatewayv1.Gateway
	HTTPRoutes []*gatewayv1.HTTPRoute
	TLSRoutes  []*gatewayv1.TLSRoute
	Grants     []*gatewayv1.ReferenceGrant
	OpenShift  []json.RawMessage
}

func (o outside) inventory() *Inventory {
	out := Objects{Pods: kubepod.ReadAll(o.Pods), Policies: netpol.ReadAll(o.Policies), Services: o.Services}
	for _, x := range o.Ingresses {
		out.Routing.Add(x)
	}
	for _, x := range o.Classes {
		out.Routing.Add(x)
	}
	for _, x := range o.Gateways {
		out.Routing.Add(x)
	}
	for _, x := range o.HTTPRoutes {
		out.Routing.Add(x)
	}
	for _, x := range o.TLSRoutes {
		out.Routing.Add(x)
	}
	for _, text := range o.OpenShift {
		for _, k := range kuberoute.Kinds() {
			if route := k.New(); k.Name == "Route" && json.Unmarshal(text, route) == nil {
				out.Routing.Add(route)
			}
		}
	}
	for _, x := range o.Grants {
		out.Routing.Add(x)
	}
	return New(out)
}

func parseOutside(t *testing.T, texts ...string) *Inventory {
	t.Helper()
	var o outside
	if err := yaml.UnmarshalStrict([]byte(strings.Join(texts, "")), &o); err != nil {
		t.Fatal(err)
	}
	return o.inventory()
}

const webService = `
services:
- {metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP}]}}
- {metadata: {namespace: edge, name: lb}, spec: {type: LoadBalancer, selector: {edge: "yes"}, ports: [{port: 443}]}, status: {loadBalancer: {ingress: [{ip: 203.0.113.7}, {hostname: LB.example.net}]}}}
- {metadata: {namespace: shop, name: none}, spec: {selector: {app: none}, ports: [{port: 80}]}}
- {metadata: {namespace: shop, name: other}, spec: {type: ExternalName, externalName: example.com}}
`

const webPods = `
pods:
- {metadata: {namespace: shop, name: web, labels: {app: web}}, status: {podIPs: [{ip: 10.0.0.1}]}}
- {metadata: {namespace: edge, name: proxy, labels: {edge: "yes"}}, status: {podIPs: [{ip: 10.0.0.2}]}}
- {metadata: {namespace: edge, name: nginx, labels: {app.kubernetes.io/name: ingress-nginx, app.kubernetes.io/component: controller}}, status: {podIPs: [{ip: 10.0.0.3}]}}
- {metadata: {namespace: edge, name: nginx-hook, labels: {app.kubernetes.io/name: ingress-nginx, app.kubernetes.io/component: admission-webhook}}, status: {podIPs: [{ip: 10.0.0.4}]}}
- {metadata: {namespace: edge, name: mine, labels: {app.kubernetes.io/name: mine, app.kubernetes.io/instance: a}}, status: {podIPs: [{ip: 10.0.0.5}]}}
- {metadata: {namespace: edge, name: mine-b, labels: {app.kubernetes.io/name: mine, app.kubernetes.io/instance: b}}, status: {podIPs: [{ip: 10.0.0.6}]}}
- {metadata: {namespace: edge, name: gw, labels: {gateway.networking.k8s.io/gateway-name: public}}, status: {podIPs: [{ip: 10.0.0.7}]}}
- {metadata: {namespace: edge, name: router, labels: {ingresscontroller.operator.openshift.io/deployment-ingresscontroller: default}}, status: {podIPs: [{ip: 10.0.0.9}]}}
- {metadata: {namespace: shop, name: not-gw, labels: {gateway.networking.k8s.io/gateway-name: public}}, status: {podIPs: [{ip: 10.0.0.8}]}}
`

// texts describes exposures: their requests, backends and senders.
func texts(all []*Exposure) string {
	var lines []string
	for _, x := range all {
		if !x.IsRoute() {
			continue
		}
		line := x.String() + " " + x.Service
		for _, b := range x.Backends {
			line += fmt.Sprintf(" %s:%d", b.Name, b.Port)
		}
		if x.Broken != "" {
			line += " broken: " + x.Broken
		}
		if x.Senders.Known() {
			line += " by " + x.Senders.Name()
		} else {
			line += " not known: " + x.Senders.How
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func ingress(spec, status string) string {
	return "\ningresses:\n- {metadata: {namespace: shop, name: web}, spec: " + spec + ", status: {loadBalancer: {ingress: [" + status + "]}}}\n"
}

func TestExposures(t *testing.T) {
	const backend = "{service: {name: web, port: {number: 80}}}"
	tests := map[string]struct{ objects, want string }{
		"a port by name": {
			ingress("{defaultBackend: {service: {name: web, port: {name: http}}}}", ""),
			"Ingress shop/web (any host name) shop/web shop/web:8080 not known: it names no class, and there is no default one",
		},
		"a path of a host": {
			ingress("{ingressClassName: nginx, rules: [{host: a.example.com, http: {paths: [{path: /x, backend: "+backend+"}]}}, {host: b.example.com}]}", ""),
			"Ingress shop/web (a.example.com/x) shop/web shop/web:8080 by edge/nginx",
		},
		"the class in an annotation": {
			"\ningresses:\n- {metadata: {namespace: shop, name: web, annotations: {kubernetes.io/ingress.class: nginx}}, spec: {defaultBackend: " + backend + "}}\n",
			"Ingress shop/web (any host name) shop/web shop/web:8080 by edge/nginx",
		},
		"the labels of the class": {
			ingress("{ingressClassName: in, defaultBackend: "+backend+"}", "") +
				"\nclasses:\n- {metadata: {name: in, labels: {app.kubernetes.io/name: mine, app.kubernetes.io/instance: b}}, spec: {controller: example.com/x}}\n",
			"Ingress shop/web (any host name) shop/web shop/web:8080 by edge/mine-b",
		},
		"the default class": {
			ingress("{defaultBackend: "+backend+"}", "") +
				"\nclasses:\n- {metadata: {name: in, annotations: {ingressclass.kubernetes.io/is-default-class: \"true\"}}, spec: {controller: k8s.io/ingress-nginx}}\n",
			"Ingress shop/web (any host name) shop/web shop/web:8080 by edge/nginx",
		},
		"a controller that is not known": {
			ingress("{ingressClassName: alb, defaultBackend: "+backend+"}", "") + "\nclasses:\n- {metadata: {name: alb}, spec: {controller: ingress.k8s.aws/alb}}\n",
			"Ingress shop/web (any host name) shop/web shop/web:8080 not known: it is not known which pods are ingress.k8s.aws/alb, the controller of IngressClass alb",
		},
		"the address in the status": {
			ingress("{ingressClassName: nginx, defaultBackend: "+backend+"}", "{ip: 203.0.113.7}"),
			"Ingress shop/web (any host name) shop/web shop/web:8080 by edge/proxy",
		},
		"the host name in the status": {
			ingress("{ingressClassName: nginx, defaultBackend: "+backend+"}", "{hostname: lb.example.net}"),
			"Ingress shop/web (any host name) shop/web shop/web:8080 by edge/proxy",
		},
		"no Service": {
			ingress("{ingressClassName: nginx, defaultBackend: {service: {name: wbe, port: {number: 80}}}}", ""),
			"Ingress shop/web (any host name) shop/wbe broken: there is no Service shop/wbe by edge/nginx",
		},
		"no such port": {
			ingress("{ingressClassName: nginx, defaultBackend: {service: {name: web, port: {number: 53}}}}", ""),
			`Ingress shop/web (any host name) shop/web broken: the Service shop/web has no TCP port "53": write one of TCP 80 http, UDP 53 dns by edge/nginx`,
		},
		"no pods": {
			ingress("{ingressClassName: nginx, defaultBackend: {service: {name: none, port: {number: 80}}}}", ""),
			"Ingress shop/web (any host name) shop/none broken: no ready pod matches its selector (app=none) and has this port by edge/nginx",
		},
		"another name": {
			ingress("{ingressClassName: nginx, defaultBackend: {service: {name: other, port: {number: 80}}}}", ""),
			"Ingress shop/web (any host name) shop/other broken: Service shop/other is another name for example.com, which is outside the cluster by edge/nginx",
		},
		"a resource": {
			ingress("{ingressClassName: nginx, defaultBackend: {resource: {kind: Bucket, name: a}}}", ""),
			"Ingress shop/web (any host name)  broken: its target is not a Service by edge/nginx",
		},
		"the pods of a Gateway, and the names of its listener": {
			"\nhttproutes:\n- {metadata: {namespace: shop, name: r}, spec: {parentRefs: [{namespace: edge, name: public, sectionName: b}], rules: [{backendRefs: [{name: web, port: 80}]}]}}\n" +
				"\ngateways:\n- {metadata: {namespace: edge, name: public}, spec: {gatewayClassName: x, listeners: [{name: a, port: 80, protocol: HTTP}, {name: b, hostname: b.example.com, port: 80, protocol: HTTP}]}}\n",
			"HTTPRoute shop/r (b.example.com) shop/web shop/web:8080 by edge/gw",
		},
		"a Gateway of the route's namespace": {
			"\nhttproutes:\n- {metadata: {namespace: shop, name: r}, spec: {hostnames: [a.example.com], parentRefs: [{name: public}], rules: [{backendRefs: [{name: web, port: 80}]}]}}\n",
			"HTTPRoute shop/r (a.example.com) shop/web shop/web:8080 by shop/not-gw",
		},
		"the address of a Gateway": {
			"\nhttproutes:\n- {metadata: {namespace: shop, name: r}, spec: {parentRefs: [{name: g}], rules: [{backendRefs: [{name: web, port: 80}]}]}}\n" +
				"\ngateways:\n- {metadata: {namespace: shop, name: g}, spec: {gatewayClassName: x, listeners: [{name: a, port: 80, protocol: HTTP}]}, status: {addresses: [{value: 203.0.113.7}]}}\n",
			"HTTPRoute shop/r (any host name) shop/web shop/web:8080 by edge/proxy",
		},
		"a parent that is no Gateway": {
			"\nhttproutes:\n- {metadata: {namespace: shop, name: r}, spec: {parentRefs: [{group: \"\", kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}}\n",
			"HTTPRoute shop/r (any host name) shop/web shop/web:8080 not known: HTTPRoute shop/r names no Gateway",
		},
		"another namespace without a grant": {
			"\ntlsroutes:\n- {metadata: {namespace: edge, name: r}, spec: {parentRefs: [{name: public}], hostnames: [a.example.com], rules: [{backendRefs: [{namespace: shop, name: web, port: 80}]}]}}\n",
			"TLSRoute edge/r (a.example.com) shop/web broken: no ReferenceGrant in namespace shop lets TLSRoutes of namespace edge refer to Service web by edge/gw",
		},
		"another namespace with a grant": {
			"\ntlsroutes:\n- {metadata: {namespace: edge, name: r}, spec: {parentRefs: [{name: public}], hostnames: [a.example.com], rules: [{backendRefs: [{namespace: shop, name: web, port: 80}]}]}}\n" +
				"\ngrants:\n- {metadata: {namespace: shop, name: g}, spec: {from: [{group: gateway.networking.k8s.io, kind: TLSRoute, namespace: edge}], to: [{group: \"\", kind: Service}]}}\n",
			"TLSRoute edge/r (a.example.com) shop/web shop/web:8080 by edge/gw",
		},
		"OpenShift, by the targetPort": {
			"\nopenshift: [{metadata: {namespace: shop, name: r}, spec: {host: a.example.com, path: /x, to: {kind: Service, name: web}, port: {targetPort: 8080}, alternateBackends: [{kind: Service, name: none}]}}]\n",
			"Route shop/r (a.example.com/x) shop/web shop/web:8080 by edge/router\n" +
				`Route shop/r (a.example.com/x) shop/none broken: the Service shop/none has no TCP port "8080": write one of TCP 80 by edge/router`,
		},
		"OpenShift, the first port, and the host of the status": {
			"\nopenshift: [{metadata: {namespace: shop, name: r}, spec: {to: {name: web}}, status: {ingress: [{host: b.example.com}]}}]\n",
			"Route shop/r (b.example.com) shop/web shop/web:8080 by edge/router",
		},
		"a grant in another namespace": {
			"\ntlsroutes:\n- {metadata: {namespace: edge, name: r}, spec: {parentRefs: [{name: public}], hostnames: [a.example.com], rules: [{backendRefs: [{namespace: shop, name: web, port: 80}]}]}}\n" +
				"\ngrants:\n- {metadata: {namespace: edge, name: g}, spec: {from: [{group: gateway.networking.k8s.io, kind: TLSRoute, namespace: edge}], to: [{group: \"\", kind: Service}]}}\n",
			"TLSRoute edge/r (a.example.com) shop/web broken: no ReferenceGrant in namespace shop lets TLSRoutes of namespace edge refer to Service web by edge/gw",
		},
		"a grant of another kind": {
			"\ntlsroutes:\n- {metadata: {namespace: edge, name: r}, spec: {parentRefs: [{name: public}], hostnames: [a.example.com], rules: [{backendRefs: [{namespace: shop, name: web, port: 80}]}]}}\n" +
				"\ngrants:\n- {metadata: {namespace: shop, name: g}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: edge}], to: [{group: \"\", kind: Service, name: web}]}}\n",
			"TLSRoute edge/r (a.example.com) shop/web broken: no ReferenceGrant in namespace shop lets TLSRoutes of namespace edge refer to Service web by edge/gw",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := texts(parseOutside(t, webPods, webService, tt.objects).Exposures()); got != tt.want {
				t.Errorf("%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

// A Service is exposed by its type or by external addresses. The source of the packets is a client
// outside the cluster or, unless externalTrafficPolicy is Local, a node.
func TestServiceExposures(t *testing.T) {
	v := parseOutside(t, `
pods:
- {metadata: {namespace: a, name: p, labels: {a: b}}, status: {podIPs: [{ip: 10.0.0.1}], hostIP: 192.168.0.1}}
services:
- {metadata: {namespace: a, name: cluster}, spec: {selector: {a: b}, ports: [{port: 80}]}}
- {metadata: {namespace: a, name: external}, spec: {externalIPs: [192.0.2.4], selector: {a: b}, ports: [{port: 80}]}}
- {metadata: {namespace: a, name: local}, spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {a: b}, ports: [{port: 80}]}}
- {metadata: {namespace: a, name: node}, spec: {type: NodePort, selector: {a: b}, ports: [{port: 80, nodePort: 30080, protocol: UDP}]}}
`)
	var got []string
	for _, x := range v.Exposures() {
		access, _ := v.Access(x)
		got = append(got, fmt.Sprintf("%v %s %d from %s", x, x.Protocol(), access, x.Senders.Name()))
	}
	want := "Service a/external (externalIPs 192.0.2.4) TCP 2 from world, 192.168.0.1\n" +
		"Service a/local (LoadBalancer) TCP 2 from world\n" +
		"Service a/node (NodePort 30080) UDP 2 from world, 192.168.0.1"
	if text := strings.Join(got, "\n"); text != want {
		t.Errorf("%s\nwant:\n%s", text, want)
	}
}

// The access through an Ingress depends on whether policies allow its controller. Allowing the clients
// does not help, because they do not send packets to the pods.
func TestAccess(t *testing.T) {
	const policies = "\npolicies:\n- {metadata: {namespace: shop, name: web}, spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [%s]}]}}\n"
	ingress := ingress("{ingressClassName: nginx, defaultBackend: {service: {name: web, port: {number: 80}}}}", "")
	tests := map[string]struct {
		peers, objects string
		want           Access
	}{
		"the controller":                                  {"{namespaceSelector: {}}", ingress, Reached},
		"not the controller":                              {"{podSelector: {}}", ingress, Denied},
		"the controller is not known":                     {"{podSelector: {}}", strings.Replace(ingress, "nginx", "other", 1), Unknown},
		"the world, which does not reach the pods itself": {"{ipBlock: {cidr: 203.0.113.0/24}}", ingress, Denied},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			v := parseOutside(t, webPods, webService, tt.objects, fmt.Sprintf(policies, tt.peers))
			if got, _ := v.Access(v.Exposures()[0]); got != tt.want {
				t.Errorf("access %d, want %d", got, tt.want)
			}
		})
	}
}

// A NodePort is denied although its own node always reaches a pod: packets from outside do not have the
// pod's own node as their source.
func TestAccessWithoutOwnNode(t *testing.T) {
	v := parseOutside(t, `
pods:
- {metadata: {namespace: a, name: p, labels: {a: b}}, status: {podIPs: [{ip: 10.0.0.1}], hostIP: 192.168.0.1}}
services:
- {metadata: {namespace: a, name: node}, spec: {type: NodePort, selector: {a: b}, ports: [{port: 80}]}}
policies:
- {metadata: {namespace: a, name: closed}, spec: {podSelector: {}, ingress: []}}
`)
	if got, _ := v.Access(v.Exposures()[0]); got != Denied {
		t.Errorf("access %d, want %d", got, Denied)
	}
}

func TestURLs(t *testing.T) {
	v := parseOutside(t, webPods, webService, `
ingresses:
- metadata: {namespace: shop, name: web}
  spec:
    ingressClassName: nginx
    rules:
    - {host: a.example.com, http: {paths: [{path: /, backend: {service: {name: web, port: {number: 80}}}}, {path: /x/, backend: {service: {name: none, port: {number: 80}}}}]}}
    - {host: "*.example.com", http: {paths: [{path: /w, backend: {service: {name: web, port: {number: 80}}}}]}}
    defaultBackend: {service: {name: web, port: {number: 80}}}
gateways:
- {metadata: {namespace: edge, name: public}, spec: {gatewayClassName: x, listeners: []}}
tlsroutes:
- {metadata: {namespace: shop, name: empty}, spec: {rules: []}}
httproutes:
- {metadata: {namespace: shop, name: deep}, spec: {hostnames: ["*.example.org"], rules: [{backendRefs: [{name: web, port: 80}]}]}}
`)
	tests := map[string]string{
		"https://a.example.com":         "spec.rules[0].http.paths[0].backend spec.rules[0].http.paths[1].backend",
		"a.example.com":                 "spec.rules[0].http.paths[0].backend spec.rules[0].http.paths[1].backend",
		"HTTP://A.EXAMPLE.COM:80/x/y#z": "spec.rules[0].http.paths[1].backend",
		"http://a.example.com/x":        "spec.rules[0].http.paths[1].backend",
		"http://a.example.com/xy":       "spec.rules[0].http.paths[0].backend",
		"b.example.com/w":               "spec.rules[1].http.paths[0].backend",
		"http://b.example.com/v":        "error: no route of b.example.com has a path for /v: write one of /w",
		"http://b.b.example.com":        "spec.defaultBackend",
		"http://b.b.example.org":        "spec.rules[0].backendRefs[0]",
		"http://elsewhere.net/":         "spec.defaultBackend",
		"elsewhere.net":                 "error: there is no pod or workload",
		"shop/ingress/web":              "spec.rules[0].http.paths[0].backend spec.rules[0].http.paths[1].backend spec.rules[1].http.paths[0].backend spec.defaultBackend",
		"shop/httproute/deap":           "error: there is no HTTPRoute shop/deap: did you mean shop/deep?",
		"shop/tcproute/deep":            "error: there is no TCPRoute shop/deep, nor any other TCPRoute",
		"web.shop":                      "a Service",
		"shop/tlsroute/empty":           "error: TLSRoute shop/empty has no backend",
		"edge/gateway/public":           "error: no route here names Gateway edge/public",
		"edge/gateway/publik":           "error: there is no Gateway edge/publik: did you mean edge/public?",
		"edge/gateway/other":            "error: there is no Gateway edge/other: the names here are edge/public",
	}
	for text, want := range tests {
		target, err := v.Find(text, "shop", true)
		var fields []string
		for _, x := range target.exposures {
			fields = append(fields, x.Field)
		}
		got := strings.Join(fields, " ")
		switch {
		case err != nil:
			got = "error: " + err.Error()
		case target.service != nil:
			got = "a Service"
		}
		if got != want && (err == nil || !strings.HasPrefix(got, want)) {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}
