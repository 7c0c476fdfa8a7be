package controlplane

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"
)

const (
	operatorModule = "github.com/prometheus-operator/prometheus-operator"
	// operatorVersion is the version of the Prometheus Operator whose definitions are installed.
	operatorVersion = "v0.85.0"
	// OperatorGroup is the API version of the kinds that InstallOperator installs.
	OperatorGroup = "monitoring.coreos.com/v1"
)

// InstallOperator creates the CustomResourceDefinitions of the Prometheus Operator's PodMonitors,
// ServiceMonitors and PrometheusRules, and returns when the server serves them. The definitions come from
// the operator's Go module. The operator itself does not run.
func InstallOperator(ctx context.Context, admin kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var module struct{ Dir string }
	if err := goJSON(ctx, os.TempDir(), &module, "mod", "download", "-json", operatorModule+"@"+operatorVersion); err != nil {
		return fmt.Errorf("install the kinds of the Prometheus Operator: %w", err)
	}
	for _, resource := range []string{"podmonitors", "servicemonitors", "prometheusrules"} {
		if err := installKind(ctx, admin, module.Dir, resource); err != nil {
			return fmt.Errorf("install the %s of the Prometheus Operator: %w", resource, err)
		}
	}
	return nil
}

// installKind creates the definition of a resource, and waits until the server serves it.
func installKind(ctx context.Context, admin kubernetes.Interface, dir, resource string) error {
	text, err := os.ReadFile(filepath.Join(dir, "example", "prometheus-operator-crd", "monitoring.coreos.com_"+resource+".yaml"))
	if err != nil {
		return err
	}
	var crd unstructured.Unstructured
	if err := yaml.Unmarshal(text, &crd.Object); err != nil {
		return err
	}
	body, err := crd.MarshalJSON()
	if err != nil {
		return err
	}
	client := admin.Discovery().RESTClient()
	if err := client.Post().AbsPath(crdsPath).Body(body).Do(ctx).Error(); err != nil {
		return err
	}
	for {
		err := client.Get().AbsPath("/apis", OperatorGroup, resource).Do(ctx).Error()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until the server lists them: %w", err)
		case <-time.After(crdInterval):
		}
	}
}
