package kube

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
)

// CountOthers finds the kinds of other API groups with aggregated discovery and, if the server
// does not support that, with one request for each group. It counts the objects page by page.
func TestCountOthers(t *testing.T) {
	const groups = `{"groups": [
		{"name": "example.org", "preferredVersion": {"groupVersion": "example.org/v2", "version": "v2"}},
		{"name": "projectcalico.org", "preferredVersion": {"groupVersion": "projectcalico.org/v3", "version": "v3"}}]}`
	const aggregated = `{"kind": "APIGroupDiscoveryList", "items": [
		{"metadata": {"name": "example.org"}, "versions": [{"version": "v2", "resources": [{"resource": "things", "responseKind": {"kind": "Thing"}}]}]},
		{"metadata": {"name": "projectcalico.org"}, "versions": [
			{"version": "v3", "resources": [
				{"resource": "networkpolicies", "responseKind": {"kind": "NetworkPolicy"}}, {"resource": "secretpolicies", "responseKind": {"kind": "GlobalNetworkPolicy"}},
				{"resource": "staged", "scope": "Namespaced", "responseKind": {"kind": "StagedNetworkPolicy"}}]},
			{"version": "v1", "resources": [{"resource": "networkpolicies", "responseKind": {"kind": "NetworkPolicy"}}]}]}]}`
	for name, old := range map[string]bool{"aggregated": false, "one by one": true} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				answer := ""
				switch path := r.URL.Path; {
				case path == "/apis" && (old || !strings.Contains(r.Header.Get("Accept"), "APIGroupDiscoveryList")):
					answer = groups
				case path == "/apis":
					answer = aggregated
				case path == "/apis/example.org/v2":
					answer = `{"resources": [{"name": "things", "kind": "Thing"}, {"name": "things/status", "kind": "NetworkPolicy"}]}`
				case path == "/apis/projectcalico.org/v3":
					answer = `{"resources": [{"name": "networkpolicies", "kind": "NetworkPolicy"}, {"name": "secretpolicies", "kind": "GlobalNetworkPolicy"},
						{"name": "staged", "namespaced": true, "kind": "StagedNetworkPolicy"}]}`
				case path == "/apis/projectcalico.org/v3/networkpolicies" && r.URL.Query().Get("continue") == "":
					answer = `{"metadata": {"continue": "more"}, "items": [{}, {}]}`
				case path == "/apis/projectcalico.org/v3/namespaces/shop/staged":
					answer = `{"items": [{}, {}]}`
				case path == "/apis/projectcalico.org/v3/networkpolicies":
					answer = `{"items": [{}]}`
				default:
					w.WriteHeader(http.StatusForbidden)
				}
				fmt.Fprint(w, answer)
			}))
			defer server.Close()
			match := func(_, kind string) bool { return strings.HasSuffix(kind, "NetworkPolicy") }
			found, err := CountOthers(t.Context(), &rest.Config{Host: server.URL}, match, "shop", "pci")
			want := []Others{
				{"projectcalico.org", "NetworkPolicy", 3, ""},
				{"projectcalico.org", "GlobalNetworkPolicy", 0, "forbidden"},
				{"projectcalico.org", "StagedNetworkPolicy", 2, "forbidden outside of namespace shop"},
			}
			if err != nil || !reflect.DeepEqual(found, want) {
				t.Errorf("found %v, want %v; %v", found, want, err)
			}
		})
	}
}
