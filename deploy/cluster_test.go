package deploy

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"sluice/bench/testbed/controlplane"
)

// A real API server accepts the chart, with its default values and with all values set. The commands in
// the notes work: the upgrade before an uninstallation, and the uninstallation.
func TestClusterTakesTheChart(t *testing.T) {
	server := controlplane.ForTest(t, nil)
	kubeconfig, err := server.Kubeconfig(controlplane.Admin)
	if err != nil {
		t.Fatal(err)
	}
	client, err := server.Client(controlplane.Admin)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range map[string][]string{
		"defaults": nil,
		// the cluster lacks the Prometheus Operator's kinds
		"all values": {"--values", fullValues, "--set", "metrics.serviceMonitor.enabled=false,metrics.prometheusRule.enabled=false"},
	} {
		t.Run(name, func(t *testing.T) {
			helm := func(args ...string) string {
				t.Helper()
				out, err := tool(t, "helm", append(args, "--namespace", "kube-system", "--kubeconfig", kubeconfig)...)
				if err != nil {
					t.Fatalf("helm %s: %v", strings.Join(args, " "), err)
				}
				return string(out)
			}
			if out := helm(append([]string{"install", "sluice", chartDir, "--set", "onExit=keep"}, values...)...); !strings.Contains(out, "TO UNINSTALL") {
				t.Errorf("the notes do not tell how to uninstall:\n%s", out)
			}
			helm("upgrade", "sluice", chartDir, "--reset-then-reuse-values", "--set", "onExit=remove")
			list, err := client.AppsV1().DaemonSets("kube-system").List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(list.Items) != 1 || argument(t, list.Items[0].Spec.Template.Spec.Containers[0].Args, "--on-exit") != "remove" {
				t.Errorf("after the upgrade the DaemonSets are %+v", list.Items)
			}
			helm("uninstall", "sluice")
			if list, err = client.AppsV1().DaemonSets("kube-system").List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
				t.Errorf("after the uninstallation: %d DaemonSets, %v", len(list.Items), err)
			}
		})
	}
}

// A real API server accepts the DaemonSet of the base, of each component, and of the chart.
func TestClusterTakesTheDaemonSets(t *testing.T) {
	client, err := controlplane.ForTest(t, nil).Client(controlplane.Admin)
	if err != nil {
		t.Fatal(err)
	}
	eachRendering(t, func(t *testing.T, o *objects) {
		dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}, FieldValidation: metav1.FieldValidationStrict}
		if _, err := client.AppsV1().DaemonSets("kube-system").Create(t.Context(), &o.daemonSet, dry); err != nil {
			t.Error(err)
		}
		if _, err := client.RbacV1().ClusterRoles().Create(t.Context(), &o.role, dry); err != nil {
			t.Error(err)
		}
	})
}

// A real API server that has the definitions of the Prometheus Operator accepts the monitors and the
// alerts of the chart and of the kustomize component. The server refuses unknown fields.
func TestClusterTakesTheMonitors(t *testing.T) {
	client, err := controlplane.ForTest(t, nil).Client(controlplane.Admin)
	if err != nil {
		t.Fatal(err)
	}
	if err := controlplane.InstallOperator(t.Context(), client); err != nil {
		t.Fatal(err)
	}
	create := func(resource string, object any) error {
		body, err := json.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		return client.Discovery().RESTClient().Post().AbsPath("/apis", controlplane.OperatorGroup, "namespaces/kube-system", resource).
			Param("dryRun", metav1.DryRunAll).Param("fieldValidation", metav1.FieldValidationStrict).Body(body).Do(t.Context()).Error()
	}
	resources := map[string]string{"PodMonitor": "podmonitors", "ServiceMonitor": "servicemonitors", "PrometheusRule": "prometheusrules"}
	accept := func(t *testing.T, text string, kinds ...string) {
		t.Helper()
		o := read(t, []byte(text))
		for _, kind := range kinds {
			if err := create(resources[kind], o.others[controlplane.OperatorGroup+" "+kind]); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
	}
	accept(t, string(render(t, fullValues)), "ServiceMonitor", "PrometheusRule")
	for _, values := range []string{
		"{httpAddress: ':10301', metrics: {podMonitor: {enabled: true}}}",
		"{httpAddress: ':10301', updateStrategy: {type: OnDelete}, metrics: {declarePort: true, podMonitor: {enabled: true}}}",
	} {
		accept(t, manifestsOf(t, values), "PodMonitor")
	}
	for file, resource := range map[string]string{"prometheusrule.yaml": "prometheusrules", "servicemonitor.yaml": "servicemonitors"} {
		var object map[string]any
		readYAML(t, filepath.Join("kustomize/monitoring", file), &object)
		if err := create(resource, object); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	var wrong map[string]any
	if err := yaml.Unmarshal([]byte("{apiVersion: monitoring.coreos.com/v1, kind: PodMonitor, metadata: {name: wrong}, spec: {selector: {}, podMetricsEndpoint: []}}"), &wrong); err != nil {
		t.Fatal(err)
	}
	if err := create("podmonitors", wrong); err == nil {
		t.Error("a PodMonitor with an unknown field is accepted, so that this test finds nothing")
	}
}
