package clusterpolicy_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"sluice/filter/policy/clusterpolicy"
)

// The Go types of both versions of the API have the same fields, so that one reader can
// read both.
func TestVersionsHaveTheSameTypes(t *testing.T) {
	sameType(t, "ClusterNetworkPolicy", reflect.TypeFor[v1beta1.ClusterNetworkPolicy](), reflect.TypeFor[v1alpha2.ClusterNetworkPolicy]())
	sameType(t, "ClusterNetworkPolicyList", reflect.TypeFor[v1beta1.ClusterNetworkPolicyList](), reflect.TypeFor[v1alpha2.ClusterNetworkPolicyList]())
}

func sameType(t *testing.T, at string, a, b reflect.Type) {
	t.Helper()
	if a == b {
		return
	}
	if a.Kind() != b.Kind() || a.Name() != b.Name() {
		t.Errorf("%s is %v and %v", at, a, b)
		return
	}
	switch a.Kind() {
	case reflect.Pointer, reflect.Slice:
		sameType(t, at, a.Elem(), b.Elem())
	case reflect.Struct:
		if a.NumField() != b.NumField() {
			t.Errorf("%s has %d and %d fields", at, a.NumField(), b.NumField())
			return
		}
		for i := range a.NumField() {
			f, g := a.Field(i), b.Field(i)
			if f.Name != g.Name || f.Tag != g.Tag {
				t.Errorf("%s: field %s %s and %s %s", at, f.Name, f.Tag, g.Name, g.Tag)
			}
			sameType(t, at+"."+f.Name, f.Type, g.Type)
		}
	case reflect.String: // a named string
	default:
		t.Errorf("%s is a %v, which this test does not compare", at, a.Kind())
	}
}

// The CustomResourceDefinitions of both channels serve both versions with the same schema. They
// store objects in the version that clusterpolicy.Version names.
func TestVersionsHaveTheSameSchema(t *testing.T) {
	for _, channel := range []string{"standard", "experimental"} {
		t.Run(channel, func(t *testing.T) {
			var crd struct {
				Spec struct {
					Group    string
					Scope    string
					Versions []struct {
						Name            string
						Served, Storage bool
						Schema          any
					}
				}
			}
			text, err := os.ReadFile(filepath.Join(moduleDir(t), "config", "crd", channel, "policy.networking.k8s.io_clusternetworkpolicies.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			if err := yaml.Unmarshal(text, &crd); err != nil {
				t.Fatal(err)
			}
			if crd.Spec.Group != clusterpolicy.Group || crd.Spec.Scope != "Cluster" || len(crd.Spec.Versions) != 2 {
				t.Fatalf("group %q, scope %q, %d versions", crd.Spec.Group, crd.Spec.Scope, len(crd.Spec.Versions))
			}
			older, newer := crd.Spec.Versions[0], crd.Spec.Versions[1]
			if older.Name != clusterpolicy.OlderVersion || newer.Name != clusterpolicy.Version || !older.Served || !newer.Served || !newer.Storage {
				t.Errorf("the versions are %s and %s", older.Name, newer.Name)
			}
			if older.Schema == nil || !reflect.DeepEqual(older.Schema, newer.Schema) {
				t.Error("the schemas differ")
			}
		})
	}
}

// moduleDir returns the directory of the API's module.
func moduleDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/network-policy-api").Output()
	if err != nil {
		t.Fatalf("find the API's module: %v", err)
	}
	return strings.TrimSpace(string(out))
}
