package manifests

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// An object of a version that Kubernetes no longer has is read as one of the present version, and is
// listed as outdated.
func TestFormerVersions(t *testing.T) {
	const template = "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}}"
	for object, want := range map[string]struct{ text, removed, present string }{
		"Deployment a of extensions/v1beta1":          {template, "1.16", "apps/v1"},
		"Deployment a of apps/v1beta1":                {template, "1.16", "apps/v1"},
		"StatefulSet a of apps/v1beta2":               {template, "1.16", "apps/v1"},
		"DaemonSet a of extensions/v1beta1":           {template, "1.16", "apps/v1"},
		"ReplicaSet a of apps/v1beta2":                {template, "1.16", "apps/v1"},
		"CronJob a of batch/v1beta1":                  {"spec: {jobTemplate: {" + template + "}}", "1.25", "batch/v1"},
		"CronJob a of batch/v2alpha1":                 {"spec: {jobTemplate: {" + template + "}}", "1.21", "batch/v1"},
		"NetworkPolicy a of extensions/v1beta1":       {"spec: {podSelector: {}}", "1.16", "networking.k8s.io/v1"},
		"Ingress a of extensions/v1beta1":             {"spec: {backend: {serviceName: web, servicePort: http}}", "1.22", "networking.k8s.io/v1"},
		"Ingress a of networking.k8s.io/v1beta1":      {"spec: {rules: [{host: h, http: {paths: [{backend: {serviceName: web, servicePort: 80}}]}}]}", "1.22", "networking.k8s.io/v1"},
		"IngressClass a of networking.k8s.io/v1beta1": {"spec: {controller: c}", "1.22", "networking.k8s.io/v1"},
		"EndpointSlice a of discovery.k8s.io/v1beta1": {"addressType: IPv4", "1.25", "discovery.k8s.io/v1"},
	} {
		t.Run(object, func(t *testing.T) {
			f := strings.Fields(object)
			kind, version := f[0], f[3]
			text := fmt.Sprintf("apiVersion: %s\nkind: %s\nmetadata: {name: a}\n%s\n", version, kind, want.text)
			objects, problems := read(t, map[string]string{"a.yaml": shop, "b.yaml": text})
			if len(problems)+len(objects.Notes) > 0 || len(objects.Outdated) != 1 {
				t.Fatalf("problems %v, notes %v, outdated %v", problems, objects.Notes, objects.Outdated)
			}
			got := objects.Outdated[0]
			detail := fmt.Sprintf("%q was removed in Kubernetes %s; it is read as %s", version, want.removed, want.present)
			if got.Detail != detail || got.Field != "apiVersion" || !strings.HasPrefix(got.Hint, "write "+want.present) {
				t.Errorf("outdated %+v, want %s", got, detail)
			}
			if line := objects.Lines().Line(got.File, got.Document, got.Object, got.Field); line != 1 {
				t.Errorf("line %d", line)
			}
			read := len(objects.Workloads) + len(objects.Policies) + len(objects.Routing.Routes) + len(objects.Routing.Classes)
			if kind != "EndpointSlice" && read != 1 {
				t.Errorf("%d objects were read", read)
			}
		})
	}
}

// An Ingress of a former version leads to the same Services as one of the present version.
func TestFormerIngress(t *testing.T) {
	const head = "kind: Ingress\nmetadata: {name: a, namespace: shop}\nspec:\n  ingressClassName: nginx\n  tls: [{hosts: [h.example.com]}]\n"
	now, _ := read(t, map[string]string{"a.yaml": shop, "b.yaml": "apiVersion: networking.k8s.io/v1\n" + head +
		"  defaultBackend: {service: {name: d, port: {name: http}}}\n  rules: [{host: h.example.com, http: {paths: [{path: /x, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]\n"})
	old, problems := read(t, map[string]string{"a.yaml": shop, "b.yaml": "apiVersion: extensions/v1beta1\n" + head +
		"  backend: {serviceName: d, servicePort: http}\n  rules: [{host: h.example.com, http: {paths: [{path: /x, pathType: Prefix, backend: {serviceName: web, servicePort: 80}}]}}]\n"})
	if len(problems) > 0 || len(old.Routing.Routes) != 1 || fmt.Sprintf("%+v", *old.Routing.Routes[0]) != fmt.Sprintf("%+v", *now.Routing.Routes[0]) {
		t.Errorf("problems %v, routes %+v, want %+v", problems, old.Routing.Routes, now.Routing.Routes)
	}
	_, problems = read(t, map[string]string{"a.yaml": shop, "b.yaml": "apiVersion: networking.k8s.io/v1beta1\nkind: Ingress\nmetadata: {name: a}\n" +
		"spec: {backend: {servicePort: 80}, rules: [{http: {paths: [{backend: {serviceName: web}}]}}]}\n"})
	var fields []string
	for _, p := range problems {
		fields = append(fields, p.Field)
	}
	if !slices.Equal(fields, []string{"spec.backend.serviceName", "spec.rules[0].http.paths[0].backend.servicePort"}) {
		t.Errorf("problems %v", problems)
	}
}
