package deploy

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"
)

// valuesOf reads values as YAML.
func valuesOf(t *testing.T, text string) map[string]any {
	t.Helper()
	var values map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// manifestsOf renders the chart with values that are given as YAML.
func manifestsOf(t *testing.T, values string) string {
	t.Helper()
	text, err := renderWith(t, valuesOf(t, values))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Each value has the effect that its description states.
func TestChartValues(t *testing.T) {
	for name, tt := range map[string]struct {
		values        string
		want, without []string
	}{
		"a digest":                  {"image: {digest: 'sha256:12'}", []string{`image: "localhost/sluice:dev@sha256:12"`}, nil},
		"a name":                    {"nameOverride: policies", []string{"  name: sluice-policies\n", "app.kubernetes.io/name: policies\n"}, []string{"name: sluice\n  namespace"}},
		"a name within the release": {"nameOverride: slu", []string{"  name: sluice\n", "app.kubernetes.io/name: slu\n"}, []string{"sluice-slu"}},
		"a full name":               {"fullnameOverride: x", []string{"  name: x\n", "serviceAccountName: x\n", "app.kubernetes.io/name: sluice\n"}, []string{"  name: sluice\n"}},
		"an account of others":      {"serviceAccount: {create: false, name: given}", []string{"serviceAccountName: given\n", "  - kind: ServiceAccount\n    name: given\n"}, []string{"kind: ServiceAccount\nmetadata"}},
		"the default account":       {"serviceAccount: {create: false}", []string{"serviceAccountName: default\n"}, []string{"kind: ServiceAccount\nmetadata"}},
		"roles of others":           {"rbac: {create: false}", []string{"kind: ServiceAccount\nmetadata"}, []string{"ClusterRole"}},
		"update on delete":          {"updateStrategy: {type: OnDelete}", []string{"    type: OnDelete\n"}, []string{"maxSurge", "rollingUpdate"}},
		"no address":                {"httpAddress: ''", []string{"- --http-address=\n", "readinessProbe"}, []string{"livenessProbe"}},
		"no scrapes":                {"{}", nil, []string{"kind: Service\n", "monitoring.coreos.com", "kind: ConfigMap"}},
		"a Service":                 {"{httpAddress: ':10301', metrics: {service: {enabled: true}}}", []string{"kind: Service\n", "      port: 10301\n"}, []string{"ServiceMonitor"}},
		"a ServiceMonitor":          {"{httpAddress: ':10301', metrics: {serviceMonitor: {enabled: true}}}", []string{"kind: Service\n", "kind: ServiceMonitor\n"}, []string{"PrometheusRule"}},
		"a PodMonitor": {"{httpAddress: ':10301', metrics: {podMonitor: {enabled: true}}}",
			[]string{"kind: PodMonitor\n", "          replacement: $1:10301\n", "          targetLabel: node\n"}, []string{"kind: Service\n", "ports:", "port: metrics"}},
		"a declared port": {"{httpAddress: ':10301', updateStrategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}, metrics: {declarePort: true, podMonitor: {enabled: true}}}",
			[]string{"          ports:\n            - name: metrics\n              containerPort: 10301\n", "      port: metrics\n", "          targetLabel: node\n"}, []string{"replacement: $1"}},
		"a declared port, update on delete": {"{updateStrategy: {type: OnDelete}, metrics: {declarePort: true}}", []string{"              containerPort: 10301\n"}, []string{"monitoring.coreos.com"}},
		"alerts for all nodes":              {"{httpAddress: ':10301', metrics: {prometheusRule: {enabled: true}}}", []string{" or max(sluice_nodes)) > "}, nil},
		"alerts for some nodes":             {"{httpAddress: ':10301', nodeSelector: {a: b}, metrics: {prometheusRule: {enabled: true}}}", []string{`sum(kube_daemonset_status_desired_number_scheduled{daemonset="sluice"})) > `}, []string{"sluice_nodes"}},
		"alerts without tainted nodes":      {"{httpAddress: ':10301', tolerations: [], metrics: {prometheusRule: {enabled: true}}}", nil, []string{"sluice_nodes"}},
		"alerts for the given names": {"{httpAddress: ':10301', fullnameOverride: x, nameOverride: rules, metrics: {prometheusRule: {enabled: true}}}", []string{`daemonset="x"`, `job="rules"`, "daemonset/x)", "-l app.kubernetes.io/name=rules", "status --all-nodes --agent-selector app.kubernetes.io/name=rules", `the job "rules"`},
			[]string{`="sluice"`, "daemonset/sluice", "name=sluice", `job "sluice"`, "--agent-namespace"}},
		"labels that repeat": {"{commonLabels: {a: common, b: common}, podLabels: {a: pod}}", []string{"        a: pod\n        b: common\n", "    a: common\n    b: common\n"}, nil},
		"no hubble":          {"{}", nil, []string{"hubble"}},
		"hubble with TLS": {"hubble: {enabled: true, tlsSecret: certs}", []string{
			"- --hubble-address=:4244\n", "- --hubble-tls-client-ca=/etc/sluice/hubble/ca.crt\n", "secretName: certs\n", "mountPath: /etc/sluice/hubble\n",
			"  name: hubble-peer\n", "      port: 443\n", "      targetPort: 4244\n"}, []string{"disable-tls"}},
		"hubble without TLS": {"hubble: {enabled: true, port: 4000, disableTLS: true}", []string{
			"- --hubble-address=:4000\n", "- --hubble-disable-tls\n", "      port: 80\n", "      targetPort: 4000\n"}, []string{"hubble-tls", "secretName"}},
		"a capability":             {"securityContext: {capabilities: {add: [SYS_ADMIN]}}", []string{"add:\n              - NET_ADMIN\n              - NET_RAW\n              - BPF\n              - SYS_ADMIN\n"}, nil},
		"a capability that it has": {"{kernelCache: 'off', guard: 'off', securityContext: {capabilities: {add: [NET_RAW, SYS_ADMIN]}}}", []string{"add:\n              - NET_ADMIN\n              - NET_RAW\n              - SYS_ADMIN\n"}, nil},
		"the pod's context":        {"podSecurityContext: {seccompProfile: null}", nil, []string{"RuntimeDefault"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := manifestsOf(t, tt.values)
			for _, want := range tt.want {
				if !strings.Contains(text, want) {
					t.Errorf("the manifests lack %q", want)
				}
			}
			for _, without := range tt.without {
				if strings.Contains(text, without) {
					t.Errorf("the manifests have %q", without)
				}
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}

// Agents show the flows to every client that can connect to a node only if the values say so.
func TestHubbleNeedsTLS(t *testing.T) {
	_, err := renderWith(t, map[string]any{"hubble": map[string]any{"enabled": true}})
	if err == nil || !strings.Contains(err.Error(), "set hubble.tlsSecret, or hubble.disableTLS if you want that") {
		t.Errorf("error %v, want one with a hint", err)
	}
}

// The chart refuses values about Hubble that contradict each other, or that would have no effect.
func TestHubbleValuesThatConflict(t *testing.T) {
	for values, want := range map[string]string{
		"hubble: {enabled: true, tlsSecret: certs, disableTLS: true}": "set only one of them",
		"hubble: {tlsSecret: certs}":                                  "unless hubble.enabled is true",
		"hubble: {disableTLS: true}":                                  "unless hubble.enabled is true",
	} {
		if _, err := renderWith(t, valuesOf(t, values)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", values, err, want)
		}
	}
}

// The commands in the alerts' runbooks name the namespace of the release.
func TestRunbooksNameTheNamespace(t *testing.T) {
	all, data := templates(t, valuesOf(t, "{httpAddress: ':10301', metrics: {prometheusRule: {enabled: true}}}"))
	data["Release"] = map[string]any{"Name": "sluice", "Namespace": "security", "Service": "Helm"}
	var out strings.Builder
	if err := all.ExecuteTemplate(&out, chartDir+"/templates/metrics.yaml", data); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	for _, want := range []string{"kubectl -n security get pods -l app.kubernetes.io/name=sluice", "kubectl -n security rollout", "sluice denied --all-nodes --agent-namespace security --since"} {
		if !strings.Contains(text, want) {
			t.Errorf("the runbooks lack %q", want)
		}
	}
	if strings.Contains(text, "kube-system") {
		t.Errorf("the runbooks name kube-system:\n%s", text)
	}
}

// The chart refuses values with which an update would never end, or with which alerts would count agents
// twice.
func TestMonitoringValuesThatConflict(t *testing.T) {
	for values, want := range map[string]string{
		"metrics: {declarePort: true}":                    "set updateStrategy.rollingUpdate.maxSurge=0 and maxUnavailable=1",
		"{httpAddress: '', metrics: {declarePort: true}}": "set httpAddress",
		"{httpAddress: ':10301', metrics: {serviceMonitor: {enabled: true}, podMonitor: {enabled: true}}}": "enable one of them",
	} {
		if _, err := renderWith(t, valuesOf(t, values)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want one with %q", values, err, want)
		}
	}
}

// A scrape over the network needs an agent that listens there.
func TestMetricsNeedAnAddress(t *testing.T) {
	for _, address := range []string{"", "127.0.0.1:10301", "localhost:10301", "[::1]:10301"} {
		for _, what := range []string{"service", "serviceMonitor", "podMonitor", "prometheusRule"} {
			_, err := renderWith(t, map[string]any{"httpAddress": address, "metrics": map[string]any{what: map[string]any{"enabled": true}}})
			if err == nil || !strings.Contains(err.Error(), "set httpAddress to 0.0.0.0:10301") {
				t.Errorf("%s with the address %q: error %v, want one with a hint", what, address, err)
			}
		}
	}
}

// The chart refuses what the API server refuses: a rolling update without a surge and without
// unavailable pods, or with both.
func TestRollingUpdateNeedsOneNumber(t *testing.T) {
	for values, right := range map[string]bool{
		"{maxSurge: 0, maxUnavailable: 0}": false, "{maxSurge: 0%, maxUnavailable: 0}": false, "{maxSurge: 1, maxUnavailable: 1}": false,
		"{maxSurge: 10%, maxUnavailable: 0}": true, "{maxSurge: 0, maxUnavailable: 1}": true, "{maxSurge: 0, maxUnavailable: 10%}": true,
	} {
		_, err := renderWith(t, valuesOf(t, "updateStrategy: {rollingUpdate: "+values+"}"))
		if refused := err != nil && strings.Contains(err.Error(), "set exactly one of the two to 0"); refused == right {
			t.Errorf("%s: error %v", values, err)
		}
	}
	if _, err := renderWith(t, valuesOf(t, "updateStrategy: {type: OnDelete, rollingUpdate: {maxSurge: 0}}")); err != nil {
		t.Errorf("the numbers do not matter for OnDelete: %v", err)
	}
}

// The Service selects the pods of the DaemonSet, and the ServiceMonitor selects the Service. Neither
// selects the pod of "helm test".
func TestMonitorSelectsTheAgents(t *testing.T) {
	o := read(t, render(t, fullValues))
	for key, value := range selectorOf(t, o, "v1 Service", "spec", "selector") {
		if o.daemonSet.Spec.Template.Labels[key] != value {
			t.Errorf("the Service selects %s=%s, and the pods have %v", key, value, o.daemonSet.Spec.Template.Labels)
		}
	}
	for key, value := range selectorOf(t, o, "v1 Service hubble-peer", "spec", "selector") {
		if o.daemonSet.Spec.Template.Labels[key] != value {
			t.Errorf("hubble-peer selects %s=%s, and the pods have %v", key, value, o.daemonSet.Spec.Template.Labels)
		}
	}
	service := selectorOf(t, o, "v1 Service", "metadata", "labels")
	for key, value := range selectorOf(t, o, "monitoring.coreos.com/v1 ServiceMonitor", "spec", "selector", "matchLabels") {
		if service[key] != value {
			t.Errorf("the ServiceMonitor selects %s=%s, and the Service has %v", key, value, service)
		}
	}
	test := selectorOf(t, o, "v1 Pod", "metadata", "labels")
	if test["app.kubernetes.io/name"] == o.daemonSet.Spec.Selector.MatchLabels["app.kubernetes.io/name"] {
		t.Errorf("the DaemonSet selects the pod of helm test, which has the labels %v", test)
	}
}

// selectorOf returns the map of strings at a path in the object of the given kind.
func selectorOf(t *testing.T, o *objects, kind string, path ...string) map[string]any {
	t.Helper()
	text, err := yaml.Marshal(o.others[kind])
	if err != nil {
		t.Fatal(err)
	}
	at := valuesOf(t, string(text))
	for _, key := range path {
		next, ok := at[key].(map[string]any)
		if !ok {
			t.Fatalf("%s has no %s", kind, strings.Join(path, "."))
		}
		at = next
	}
	return at
}

// "helm test" asks an agent over the agent's socket. Its pod runs on a node with an agent, and has
// fewer rights than the agent.
func TestHelmTestAsksTheAgent(t *testing.T) {
	for name, text := range map[string][]byte{"defaults": render(t), "all values": render(t, fullValues)} {
		t.Run(name, func(t *testing.T) {
			o := read(t, text)
			var pod appsv1.DaemonSet // its field spec.template has the type of the pod
			asYAML, err := yaml.Marshal(map[string]any{"spec": map[string]any{"template": o.others["v1 Pod"]}})
			if err != nil {
				t.Fatal(err)
			}
			if err := yaml.Unmarshal(asYAML, &pod); err != nil {
				t.Fatal(err)
			}
			asks, agent := pod.Spec.Template.Spec, o.daemonSet.Spec.Template.Spec
			c := asks.Containers[0]
			if c.Image != agent.Containers[0].Image || argument(t, c.Args, "--socket") != argument(t, agent.Containers[0].Args, "--socket") {
				t.Errorf("the test runs %s %q", c.Image, c.Args)
			}
			if asks.Volumes[0].HostPath.Path != agent.Volumes[0].HostPath.Path || !c.VolumeMounts[0].ReadOnly || asks.HostNetwork {
				t.Errorf("the test mounts %+v, and the agent %+v", asks.Volumes, agent.Volumes)
			}
			if len(c.SecurityContext.Capabilities.Add) > 0 || !slices.Contains(c.SecurityContext.Capabilities.Drop, "ALL") {
				t.Errorf("the test has capabilities %+v", c.SecurityContext.Capabilities)
			}
		})
	}
}

// The notes name the commands with the release's name: for uninstalling it, and for the case that it
// was uninstalled with rules that should stay.
func TestNotes(t *testing.T) {
	for name, tt := range map[string]struct {
		values        string
		want, without []string
	}{
		"keep": {"{}", []string{
			"helm -n kube-system upgrade sluice sluice-0.1.0.tgz --reset-then-reuse-values --set onExit=remove", "helm -n kube-system uninstall sluice",
			"already gone", "sluice rules --remove", `"fail: closed"`,
		}, nil},
		"remove": {"{onExit: remove, fullnameOverride: x}", []string{"helm -n kube-system uninstall sluice", "daemonset/x"}, []string{"onExit=remove"}},
	} {
		t.Run(name, func(t *testing.T) {
			all, data := templates(t, valuesOf(t, tt.values))
			var out strings.Builder
			if err := all.ExecuteTemplate(&out, chartDir+"/templates/NOTES.txt", data); err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the notes lack %q:\n%s", want, out.String())
				}
			}
			for _, without := range append(tt.without, "CHART", "<no value>") {
				if strings.Contains(out.String(), without) {
					t.Errorf("the notes have %q:\n%s", without, out.String())
				}
			}
		})
	}
}
