package kube

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/bench/testbed/apiserver"
)

// TestRead checks which objects Read returns, and what happens if the user may not read some
// kinds, or if the cluster lacks ClusterNetworkPolicies.
func TestRead(t *testing.T) {
	both := []string{"v1alpha2", "v1beta1"}
	forbid := func(what func(*http.Request) bool) func(*http.Request) *metav1.Status {
		return func(req *http.Request) *metav1.Status {
			if what(req) {
				return statusOf(http.StatusForbidden)
			}
			return nil
		}
	}
	isOfNodes := func(req *http.Request) bool { return strings.HasSuffix(req.URL.Path, "/nodes") }
	withNodes := makeClusterPolicy("nodes", "frontend")
	withNodes.Spec.Egress = []v1beta1.ClusterNetworkPolicyEgressRule{{
		Action: v1beta1.ClusterNetworkPolicyRuleActionDeny, To: []v1beta1.ClusterNetworkPolicyEgressPeer{{Nodes: &metav1.LabelSelector{}}},
	}}
	for name, test := range map[string]struct {
		installed []string
		refuse    func(*http.Request) *metav1.Status
		also      apiserver.Object
		policies  int
		nodes     int
		hint      string // of the error
	}{
		"both versions":         {installed: both, policies: 2, nodes: 1},
		"only the older":        {installed: both[:1], policies: 2, nodes: 1},
		"not installed":         {policies: 1, nodes: 1},
		"other versions only":   {installed: []string{"v1"}, hint: "update Sluice"},
		"policies refused":      {installed: both, refuse: forbid(isOfPolicies), hint: "let this user list and watch clusternetworkpolicies"},
		"refused, but no such":  {refuse: forbid(isOfPolicies), policies: 1, nodes: 1},
		"discovery refused":     {installed: both, refuse: forbid(isDiscovery), hint: "system:discovery"},
		"nodes refused":         {installed: both, refuse: forbid(isOfNodes), policies: 2},
		"needed nodes refused":  {installed: both, refuse: forbid(isOfNodes), also: withNodes, hint: "let this user list and watch nodes"},
		"nodes in peers":        {installed: both, also: withNodes, policies: 3, nodes: 1},
		"removed meanwhile":     {installed: both, refuse: firstly(2, http.StatusNotFound), policies: 2, nodes: 1},
		"server in the middle":  {installed: both, refuse: forbid(func(*http.Request) bool { return true }), hint: "let this user list and watch namespaces"},
		"discovery unavailable": {installed: both, refuse: firstly(1000, http.StatusServiceUnavailable), hint: "see the API server's log"},
	} {
		t.Run(name, func(t *testing.T) {
			s, config := serve(t, apiserver.Options{Refuse: test.refuse})
			denied(s)
			s.Set(makeNode("one", nil, "192.0.2.1"))
			if test.also != nil {
				s.Set(test.also)
			}
			s.Install(test.installed...)
			o, err := Read(t.Context(), config)
			var failure *APIError
			if test.hint != "" {
				if !errors.As(err, &failure) || !strings.Contains(failure.Hint, test.hint) {
					t.Errorf("error %v, want the hint %q", err, test.hint)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(o.Pods) != 3 || len(o.Namespaces) != 1 || len(o.Policies) != test.policies || len(o.Nodes) != test.nodes {
				t.Errorf("%d pods, %d namespaces, %d policies, %d nodes; want 3, 1, %d, %d", len(o.Pods), len(o.Namespaces), len(o.Policies), len(o.Nodes), test.policies, test.nodes)
			}
			if (o.NodesErr != nil) != (test.nodes == 0) {
				t.Errorf("nodes: %v", o.NodesErr)
			}
		})
	}
}

// firstly returns a function that refuses the first n requests about ClusterNetworkPolicies in
// v1beta1 with the given code: requests for discovery if the code is 503, and otherwise requests
// for objects.
func firstly(n int32, code int32) func(*http.Request) *metav1.Status {
	var requests atomic.Int32
	return func(req *http.Request) *metav1.Status {
		if strings.HasPrefix(req.URL.Path, "/apis/"+v1beta1.GroupName+"/v1beta1") && isOfPolicies(req) != (code == http.StatusServiceUnavailable) && requests.Add(1) <= n {
			return statusOf(code)
		}
		return nil
	}
}
