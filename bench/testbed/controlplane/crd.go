package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"sluice/bench/testbed/goprogram"
)

const (
	policyModule = "sigs.k8s.io/network-policy-api"
	// policyResource is the resource of ClusterNetworkPolicies.
	policyResource = "clusternetworkpolicies"
	crdsPath       = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
	crdPath        = crdsPath + "/" + policyResource + "." + v1beta1.GroupName
	// crdInterval is the interval at which InstallPolicies and RemovePolicies check whether
	// the server has done what they requested.
	crdInterval = 50 * time.Millisecond
)

// InstallPolicies creates or replaces the CustomResourceDefinition of ClusterNetworkPolicies
// and returns when the server serves exactly the given versions. The definition comes from the Go
// module sigs.k8s.io/network-policy-api; channel is "standard" or "experimental".
func InstallPolicies(ctx context.Context, admin kubernetes.Interface, channel string, served ...string) error {
	crd, err := definition(ctx, channel)
	if err == nil {
		err = serveOnly(crd, served)
	}
	if err == nil {
		err = write(ctx, admin.Discovery().RESTClient(), crd)
	}
	if err == nil {
		err = awaitVersions(ctx, admin, served)
	}
	if err != nil {
		return fmt.Errorf("install ClusterNetworkPolicies: %w", err)
	}
	return nil
}

// RemovePolicies deletes the CustomResourceDefinition, and so all ClusterNetworkPolicies, and
// returns when the server does not serve them any more.
func RemovePolicies(ctx context.Context, admin kubernetes.Interface) error {
	err := admin.Discovery().RESTClient().Delete().AbsPath(crdPath).Do(ctx).Error()
	if err == nil {
		err = awaitVersions(ctx, admin, nil)
	}
	if err != nil {
		return fmt.Errorf("remove ClusterNetworkPolicies: %w", err)
	}
	return nil
}

// CreatePolicy creates a ClusterNetworkPolicy in a version of the API.
func CreatePolicy(ctx context.Context, admin kubernetes.Interface, version string, p *v1beta1.ClusterNetworkPolicy) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": v1beta1.GroupName + "/" + version, "kind": "ClusterNetworkPolicy",
		"metadata": map[string]any{"name": p.Name}, "spec": p.Spec,
	})
	if err == nil {
		err = admin.Discovery().RESTClient().Post().AbsPath("/apis", v1beta1.GroupName, version, policyResource).Body(body).Do(ctx).Error()
	}
	if err != nil {
		return fmt.Errorf("create ClusterNetworkPolicy %s: %w", p.Name, err)
	}
	return nil
}

// definition reads the CustomResourceDefinition of a channel.
func definition(ctx context.Context, channel string) (*unstructured.Unstructured, error) {
	out, err := goprogram.Go(ctx, "", "list", "-m", "-f", "{{.Dir}}", policyModule)
	if err != nil {
		return nil, err
	}
	dir := string(out[:max(0, len(out)-1)])
	text, err := os.ReadFile(filepath.Join(dir, "config", "crd", channel, v1beta1.GroupName+"_"+policyResource+".yaml"))
	if err != nil {
		return nil, err
	}
	crd := new(unstructured.Unstructured)
	return crd, yaml.Unmarshal(text, &crd.Object)
}

// serveOnly marks which versions of a definition are served.
func serveOnly(crd *unstructured.Unstructured, served []string) error {
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil {
		return err
	}
	for _, v := range versions {
		v := v.(map[string]any)
		v["served"] = slices.Contains(served, v["name"].(string))
	}
	return unstructured.SetNestedSlice(crd.Object, versions, "spec", "versions")
}

// write creates the definition, or replaces it.
func write(ctx context.Context, client rest.Interface, crd *unstructured.Unstructured) error {
	var now unstructured.Unstructured
	raw, err := client.Get().AbsPath(crdPath).Do(ctx).Raw()
	request := client.Put().AbsPath(crdPath)
	switch {
	case apierrors.IsNotFound(err):
		request = client.Post().AbsPath(crdsPath)
	case err != nil:
		return err
	default:
		if err := now.UnmarshalJSON(raw); err != nil {
			return err
		}
		crd.SetResourceVersion(now.GetResourceVersion())
	}
	body, err := crd.MarshalJSON()
	if err != nil {
		return err
	}
	return request.Body(body).Do(ctx).Error()
}

// awaitVersions waits until the server lists objects of exactly the given versions.
func awaitVersions(ctx context.Context, admin kubernetes.Interface, served []string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, version := range []string{"v1alpha2", "v1beta1"} {
		for {
			err := admin.Discovery().RESTClient().Get().AbsPath("/apis", v1beta1.GroupName, version, policyResource).Do(ctx).Error()
			if err == nil && slices.Contains(served, version) || apierrors.IsNotFound(err) && !slices.Contains(served, version) {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait until the server serves only %v: %w", served, ctx.Err())
			case <-time.After(crdInterval):
			}
		}
	}
	return nil
}
