package kube

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
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
		unread    string // the beginning of the line about the only unread kind; empty if all kinds are read
	}{
		"both versions":         {installed: both, policies: 2, nodes: 1},
		"only the older":        {installed: both[:1], policies: 2, nodes: 1},
		"not installed":         {policies: 1, nodes: 1},
		"other versions only":   {installed: []string{"v1"}, hint: "update Sluice"},
		"policies refused":      {installed: both, refuse: forbid(isOfPolicies), policies: 1, nodes: 1, unread: "ClusterNetworkPolicy (forbidden): answers lack what these policies deny and allow"},
		"refused, but no such":  {refuse: forbid(isOfPolicies), policies: 1, nodes: 1},
		"discovery refused":     {installed: both, refuse: forbid(isDiscovery), policies: 1, nodes: 1, unread: "ClusterNetworkPolicy (forbidden)"},
		"nodes refused":         {installed: both, refuse: forbid(isOfNodes), policies: 2, unread: "Node (forbidden): a pod's own node is known only"},
		"needed nodes refused":  {installed: both, refuse: forbid(isOfNodes), also: withNodes, policies: 3, unread: "Node (forbidden): rules about nodes match none of them"},
		"nodes in peers":        {installed: both, also: withNodes, policies: 3, nodes: 1},
		"removed meanwhile":     {installed: both, refuse: firstly(2, http.StatusNotFound), policies: 2, nodes: 1},
		"server in the middle":  {installed: both, refuse: forbid(func(*http.Request) bool { return true }), hint: `let this user list pods of API group "", in the whole cluster (ClusterRole) or in namespace default (Role)`},
		"unauthorized":          {refuse: func(*http.Request) *metav1.Status { return statusOf(http.StatusUnauthorized) }, hint: "give credentials"},
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
			o, err := Read(t.Context(), config, "default")
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
			if got := unreadOf(o); !strings.HasPrefix(got, test.unread) || strings.Contains(got, "\n") || got != "" && test.unread == "" {
				t.Errorf("not read: %q, want %q", got, test.unread)
			}
		})
	}
}

// unreadOf returns a line for each kind that was not read.
func unreadOf(o *Objects) string {
	var lines []string
	for _, u := range o.Unread {
		lines = append(lines, u.Kind+" ("+u.Reason+"): "+u.Effect)
	}
	return strings.Join(lines, "\n")
}

// Read also returns the kinds that the agent does not follow: workloads, Services and EndpointSlices.
// It leaves out a Job that has ended, which makes no more pods.
func TestReadAsked(t *testing.T) {
	s, config := serve(t, apiserver.Options{})
	s.Set(workloads()...)
	s.Set(&batchv1.Job{ObjectMeta: named("done"), Status: batchv1.JobStatus{Conditions: []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}}})
	s.Set(&corev1.Service{ObjectMeta: named("svc")}, &discoveryv1.EndpointSlice{ObjectMeta: named("slice")})
	o, err := Read(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, w := range o.Workloads {
		kinds = append(kinds, w.Ref.Object())
		if w.Pod.Labels["app"] != "a" {
			t.Errorf("%s has pods with the labels %v", w.Ref, w.Pod.Labels)
		}
	}
	want := "Deployment shop/w, StatefulSet shop/w, DaemonSet shop/w, ReplicaSet shop/w, Job shop/w, CronJob shop/w, ReplicationController shop/w"
	if got := strings.Join(kinds, ", "); got != want || len(o.Services) != 1 || len(o.EndpointSlices) != 1 || len(o.Unread) != 0 {
		t.Errorf("workloads %s, %d Services, %d EndpointSlices, not read: %s", got, len(o.Services), len(o.EndpointSlices), unreadOf(o))
	}
}

func named(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }

// workloads returns a workload of each kind, in namespace shop.
func workloads() []apiserver.Object {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "a"}}}
	meta := named("w")
	return []apiserver.Object{
		&appsv1.Deployment{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Template: template}},
		&appsv1.StatefulSet{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Template: template}},
		&appsv1.DaemonSet{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Template: template}},
		&appsv1.ReplicaSet{ObjectMeta: meta, Spec: appsv1.ReplicaSetSpec{Template: template}},
		&batchv1.Job{ObjectMeta: meta, Spec: batchv1.JobSpec{Template: template}},
		&batchv1.CronJob{ObjectMeta: meta, Spec: batchv1.CronJobSpec{JobTemplate: batchv1.JobTemplateSpec{Spec: batchv1.JobSpec{Template: template}}}},
		&corev1.ReplicationController{ObjectMeta: meta, Spec: corev1.ReplicationControllerSpec{Template: &template}},
	}
}

// A user with rights in one namespace gets its objects. Unread states which other objects are missing,
// and how this affects answers.
func TestReadOneNamespace(t *testing.T) {
	for name, test := range map[string]struct {
		allowed    func(path string) bool
		namespaces []string
		pods       int
		unread     []string // parts of the lines
		failure    string
	}{
		"all of it": {func(path string) bool { return strings.Contains(path, "/namespaces/shop") }, []string{"other", "shop"}, 1, []string{
			"Namespace (forbidden outside of namespace shop): selectors match these namespaces only by their name",
			"Pod (forbidden outside of namespace shop): the pods there are not known",
			"NetworkPolicy (forbidden outside of namespace shop): answers lack what policies there deny and allow",
			"ClusterNetworkPolicy (forbidden): answers lack", "Node (forbidden)", "Service (forbidden outside of namespace shop): names and addresses",
			"EndpointSlice (forbidden outside", "Deployment (forbidden outside of namespace shop): those there without pods",
		}, ""},
		"pods and policies": {func(path string) bool {
			return strings.HasSuffix(path, "shop/pods") || strings.HasSuffix(path, "shop/networkpolicies")
		}, []string{"shop"}, 1, []string{
			"Namespace (forbidden): selectors", "Service (forbidden): names and addresses of Services are not known", "Job (forbidden): those without pods are not known",
		}, ""},
		"no policies":    {func(path string) bool { return strings.HasSuffix(path, "shop/pods") }, []string{"shop"}, 0, nil, "let this user list networkpolicies"},
		"another":        {func(path string) bool { return strings.Contains(path, "/namespaces/shop") }, []string{"other"}, 0, nil, "in namespace other (Role)"},
		"no namespaces":  {func(path string) bool { return strings.Contains(path, "/namespaces/shop") }, nil, 0, nil, "name it with -n"},
		"two namespaces": {func(path string) bool { return strings.Contains(path, "/namespaces/") }, []string{"other", "shop"}, 2, []string{"Pod (forbidden outside of namespaces other, shop)"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s, config := serve(t, apiserver.Options{Refuse: func(req *http.Request) *metav1.Status {
				if test.allowed(req.URL.Path) || isDiscovery(req) {
					return nil
				}
				return statusOf(http.StatusForbidden)
			}})
			s.Install("v1beta1")
			for _, namespace := range []string{"shop", "other", "third"} {
				s.Set(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p"}})
			}
			o, err := Read(t.Context(), config, test.namespaces...)
			if test.failure != "" {
				if err == nil || !strings.Contains(err.Error(), test.failure) || strings.Contains(err.Error(), "retries") {
					t.Errorf("error %v, want %q", err, test.failure)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(o.Pods) != test.pods {
				t.Errorf("%d pods, want %d", len(o.Pods), test.pods)
			}
			for _, want := range test.unread {
				if !strings.Contains(unreadOf(o), want) {
					t.Errorf("not read:\n%s\nlacks %q", unreadOf(o), want)
				}
			}
		})
	}
}

// A cluster may lack a kind that only commands read.
func TestReadWithoutEndpointSlices(t *testing.T) {
	_, config := serve(t, apiserver.Options{Refuse: func(req *http.Request) *metav1.Status {
		if strings.HasSuffix(req.URL.Path, "/endpointslices") {
			return statusOf(http.StatusNotFound)
		}
		return nil
	}})
	o, err := Read(t.Context(), config)
	if want := "EndpointSlice (not served by this cluster): the pods behind Services are those that their selectors match"; err != nil || unreadOf(o) != want {
		t.Errorf("%v, %v; want %s", o, err, want)
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
