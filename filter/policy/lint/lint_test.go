package lint

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"
	"sigs.k8s.io/yaml"

	"sluice/filter/policy"
	"sluice/filter/policy/clusterpolicy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// cluster is the cluster of most tests: two namespaces, four pods.
const cluster = `
namespaces:
- metadata: {name: default}
- metadata: {name: shop, labels: {project: myproject}}
pods:
- metadata: {namespace: default, name: db, labels: {role: db}}
  spec: {containers: [{ports: [{name: redis, containerPort: 6379, protocol: TCP}]}]}
  status: {podIPs: [{ip: 10.0.0.1}]}
- metadata: {namespace: default, name: web, labels: {role: frontend}}
  status: {podIPs: [{ip: 10.0.0.2}]}
- metadata: {namespace: shop, name: cart, labels: {app: cart}}
  spec:
    containers: [{ports: [{name: http, containerPort: 80, protocol: TCP}]}]
    initContainers:
    - {ports: [{name: setup, containerPort: 81, protocol: TCP}]}
    - {restartPolicy: Always, ports: [{name: mesh, containerPort: 82, protocol: TCP}]}
- metadata: {namespace: shop, name: agent, labels: {app: agent}}
  spec: {hostNetwork: true}
- {metadata: {namespace: edge, name: proxy}, spec: {hostNetwork: true}}
- {metadata: {namespace: edge, name: proxy-2}, spec: {hostNetwork: true}}
`

type objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy

	Deployments []*appsv1.Deployment
	Services    []*corev1.Service
}

func decode(t *testing.T, text string) (o objects) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// check lints policies in the cluster of the manifests, as checkAll does, but leaves out findings about
// pods that no policy isolates: most tests have such pods.
func check(t *testing.T, manifests string, specs ...string) []Finding {
	t.Helper()
	return slices.DeleteFunc(checkAll(t, manifests, specs...), func(f Finding) bool { return f.Check == NotIsolated })
}

// checkAll lints policies in the cluster of the manifests. Each policy has the form
// "namespace/name: spec", or "name: spec" for a ClusterNetworkPolicy.
func checkAll(t *testing.T, manifests string, specs ...string) []Finding {
	t.Helper()
	return Check(inventory.New(decodeAll(t, manifests, specs)))
}

func decodeAll(t *testing.T, manifests string, specs []string) inventory.Objects {
	t.Helper()
	o := decode(t, manifests)
	var ordered []*policy.Policy
	for _, text := range specs {
		name, spec, _ := strings.Cut(text, ": ")
		ns, name, namespaced := strings.Cut(name, "/")
		if !namespaced {
			p := &v1beta1.ClusterNetworkPolicy{}
			p.Name = ns
			if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
				t.Fatalf("%s: %v", text, err)
			}
			ordered = append(ordered, clusterpolicy.Read(p))
			continue
		}
		p := &networkingv1.NetworkPolicy{}
		p.Namespace, p.Name = ns, name
		if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		o.Policies = append(o.Policies, p)
	}
	objects := inventory.Objects{PodRanges: []netip.Prefix{netip.MustParsePrefix("10.244.0.0/16")}, Services: o.Services, Namespaces: o.Namespaces, Pods: kubepod.ReadAll(o.Pods), Nodes: nodes, Policies: append(netpol.ReadAll(o.Policies), ordered...)}
	for _, d := range o.Deployments {
		objects.Workloads = append(objects.Workloads, kubepod.ReadWorkload(d))
	}
	return objects
}

// nodes are the nodes of the cluster.
var nodes = []*policy.Node{{Name: "node-1", Labels: map[string]string{"pool": "web"}}}

const (
	allowDNS = "default/dns: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{protocol: UDP, port: 53}, {protocol: TCP, port: 53}]}]}"
	demo1    = "default/access-demo1: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{podSelector: {matchLabels: {role: frontend}}}], ports: [{protocol: TCP, port: 6379}]}]}"
	demo2    = "default/access-demo2: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}}], ports: [{port: 6379}]}]}"
	denyAll  = "default/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}"
)

func TestFindings(t *testing.T) {
	tests := map[string]struct {
		policies []string
		check    string
		field    string
		says     string
	}{
		"subject matches nothing":        {[]string{"default/p: {podSelector: {matchLabels: {role: dbb}}}"}, NoMatch, "spec.podSelector", "role is db, frontend there"},
		"key that no pod has":            {[]string{"default/p: {podSelector: {matchLabels: {rolle: db}}}"}, NoMatch, "spec.podSelector", "none has the label rolle"},
		"subject of host network":        {[]string{"shop/p: {podSelector: {matchLabels: {app: agent}}}"}, NoMatch, "spec.podSelector", "host network"},
		"namespace that is nowhere":      {[]string{"shoop/p: {podSelector: {}}"}, NoMatch, "metadata.namespace", "default, edge, shop"},
		"peer matches nothing":           {[]string{"default/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}, {podSelector: {matchLabels: {app: cart}}}]}]}"}, NoMatch, "spec.ingress[0].from[1].podSelector", "no pod of namespace default"},
		"peer of host network":           {[]string{"shop/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: agent}}}]}]}"}, NoMatch, "spec.ingress[0].from[0].podSelector", "app=agent"},
		"namespace of host network":      {[]string{"default/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: edge}}}]}]}"}, NoMatch, "spec.ingress[0].from[0].namespaceSelector", "edge/proxy and 1 more"},
		"namespaces match nothing":       {[]string{"default/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {project: yours}}}]}]}"}, NoMatch, "spec.ingress[0].from[0].namespaceSelector", "project is myproject there"},
		"namespace by a wrong name":      {[]string{"default/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shpo}}}]}]}"}, NoMatch, "spec.ingress[0].from[0].namespaceSelector", "kubernetes.io/metadata.name is"},
		"namespace of others":            {[]string{"default/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: monitoring}}, podSelector: {matchLabels: {a: b}}}]}]}"}, NoNamespace, "spec.ingress[0].from[0].namespaceSelector", "there is no namespace monitoring"},
		"pods of namespaces":             {[]string{"default/p: {podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}, podSelector: {matchLabels: {role: frontend}}}]}]}"}, NoMatch, "spec.ingress[0].from[0].podSelector", "namespace shop"},
		"named port":                     {[]string{"default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: http}]}]}"}, NoPort, "spec.ingress[0].ports[0].port", "redis of TCP"},
		"named port of another protocol": {[]string{"default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: redis, protocol: UDP}]}]}"}, NoPort, "spec.ingress[0].ports[0].port", "redis of TCP"},
		"named port of the peer":         {[]string{allowDNS, "default/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {project: myproject}}}], ports: [{port: redis}]}]}"}, NoPort, "spec.egress[0].ports[0].port", "http of TCP"},
		"named port outside":             {[]string{allowDNS, "default/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}], ports: [{port: http}]}]}"}, NoPort, "spec.egress[0].ports[0].port", "only pods have port names"},
		"no DNS":                         {[]string{"default/p: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}"}, NoDNS, "spec.egress", "port 53"},
		"no DNS, all ports of a pod":     {[]string{"default/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: db}}}]}]}"}, NoDNS, "spec.egress", "port 53"},
		"DNS only over UDP":              {[]string{"default/p: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}, {port: 53, protocol: UDP}]}]}"}, NoDNS, "spec.egress", "only over UDP"},
		"DNS for other pods":             {[]string{strings.Replace(allowDNS, "{}", "{matchLabels: {role: db}}", 1), "default/p: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}"}, NoDNS, "spec.egress", "look up"},
		"exception outside":              {[]string{"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 192.168.0.0/16]}}]}]}"}, Except, "spec.ingress[0].from[0].ipBlock.except[1]", "outside"},
		"exception of the other family":  {[]string{"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: ['2001:db8::/32']}}]}]}"}, Except, "spec.ingress[0].from[0].ipBlock.except[0]", "outside"},
		"exception wider than the cidr":  {[]string{"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.0.0.0/8]}}]}]}"}, Except, "spec.ingress[0].from[0].ipBlock.except[0]", "excludes all"},
		"exception of all":               {[]string{"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.0.0/16]}}]}]}"}, Except, "spec.ingress[0].from[0].ipBlock.except[0]", "excludes all"},
		"covered by its neighbour":       {[]string{"default/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {role: db}}}], ports: [{port: 80}]}, {from: [{podSelector: {}}], ports: [{port: 1, endPort: 100}]}]}"}, Covered, "spec.ingress[0]", "spec.ingress[1] of this policy"},
		"covered by another policy":      {[]string{demo1, "default/a: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"}, Covered, "spec.ingress[0]", "NetworkPolicy default/a"},
		"twice the same":                 {[]string{demo1, strings.Replace(demo1, "demo1", "demo3", 1)}, Covered, "spec.ingress[0]", "access-demo1"},
		"covered block":                  {[]string{"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.2.0/24]}}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.2.0/25, 10.9.0.0/16]}}]}]}"}, Covered, "spec.ingress[0]", "spec.ingress[1]"},
		"rules without force":            {[]string{"default/p: {podSelector: {}, policyTypes: [Ingress], egress: [{}]}"}, WithoutForce, "spec.egress", "policyTypes"},
		"host bits":                      {[]string{"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.7/24}}]}]}"}, HostBits, "spec.ingress[0].from[0].ipBlock.cidr", "10.0.0.0/24"},
		"host bits of an exception":      {[]string{"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 'fd00::/8', except: ['fd00:1::7/32']}}]}]}"}, HostBits, "spec.ingress[0].from[0].ipBlock.except[0]", "fd00:1::/32"},
		"a number in quotes":             {[]string{"default/p: {podSelector: {}, ingress: [{ports: [{port: '80'}]}]}"}, Invalid, "spec.ingress[0].ports[0].port", "take the quotes away"},
		"a range in quotes":              {[]string{"default/p: {podSelector: {}, ingress: [{ports: [{port: '80-90'}]}]}"}, Invalid, "spec.ingress[0].ports[0].port", "port: 80 and endPort: 90"},
		"a port without a name":          {[]string{"default/p: {podSelector: {}, ingress: [{ports: [{port: ''}]}]}"}, Invalid, "spec.ingress[0].ports[0].port", "not the name of a port"},
		"a port's name in capitals":      {[]string{"default/p: {podSelector: {}, ingress: [{ports: [{port: HTTP}]}]}"}, Invalid, "spec.ingress[0].ports[0].port", "not the name of a port"},
		"port of an init container":      {[]string{"shop/p: {podSelector: {matchLabels: {app: cart}}, ingress: [{ports: [{port: setup}]}]}"}, NoPort, "spec.ingress[0].ports[0].port", "http of TCP"},
		"bad CIDR":                       {[]string{"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.01/8}}]}]}"}, Invalid, "spec.ingress[0].from[0].ipBlock.cidr", "leading zeros"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			found := check(t, cluster, tt.policies...)
			if len(found) != 1 {
				t.Fatalf("%d findings, want one: %v", len(found), found)
			}
			f := found[0]
			if f.Check != tt.check || f.Field != tt.field || !strings.Contains(f.Error(), tt.says) {
				t.Errorf("found %s at %s: %v; want %s at %s with %q", f.Check, f.Field, f, tt.check, tt.field, tt.says)
			}
			if !strings.HasPrefix(f.Object, "NetworkPolicy ") || f.Detail == "" || f.Hint == "" {
				t.Errorf("a field is empty: %+v", f)
			}
		})
	}
}

// Two live pods with the same address are a mistake, but not if one is in the host network.
func TestSameAddress(t *testing.T) {
	found := check(t, `
pods:
- {metadata: {namespace: default, name: a, creationTimestamp: "2026-01-01T00:00:00Z"}, status: {podIPs: [{ip: 10.0.0.1}]}}
- {metadata: {namespace: default, name: b, creationTimestamp: "2026-01-02T00:00:00Z"}, status: {podIPs: [{ip: 10.0.0.1}]}}
- {metadata: {namespace: default, name: c}, spec: {hostNetwork: true}, status: {podIPs: [{ip: 10.0.0.1}]}}
- {metadata: {namespace: default, name: d}, status: {phase: Succeeded, podIPs: [{ip: 10.0.0.1}]}}
`)
	if len(found) != 1 || found[0].Check != SameAddress || found[0].Object != "Pod default/a" || !strings.Contains(found[0].Detail, "default/b") {
		t.Errorf("found %v", found)
	}
}

// Lint must not report policies that are right or may well be right.
func TestNoFindings(t *testing.T) {
	tests := map[string][]string{
		"the two scenarios":             {demo1, demo2},
		"deny all":                      {denyAll},
		"deny all and open some":        {denyAll, demo1, allowDNS, "default/web: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: db}}}]}]}"},
		"allow all":                     {"default/p: {podSelector: {}, ingress: [{}], egress: [{}], policyTypes: [Ingress, Egress]}"},
		"everyone in the namespace":     {"default/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"},
		"DNS of the system":             {"default/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: kube-system}}, podSelector: {matchLabels: {k8s-app: kube-dns}}}], ports: [{port: 53, protocol: UDP}, {port: 53}]}]}"},
		"DNS in another policy":         {allowDNS, "default/p: {podSelector: {matchLabels: {role: frontend}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: db}}}], ports: [{port: redis}]}]}"},
		"block with exceptions":         {allowDNS, "default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 172.17.0.0/16, except: [172.17.1.0/24]}}], ports: [{port: 6379}]}], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/24}}], ports: [{port: 5978}]}]}"},
		"named port":                    {"default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{ports: [{port: redis}]}]}"},
		"port of a sidecar":             {"shop/p: {podSelector: {matchLabels: {app: cart}}, ingress: [{ports: [{port: mesh}]}]}"},
		"narrow subject, wide rule":     {"default/p: {podSelector: {matchLabels: {role: db}}, ingress: [{}]}", "default/q: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"},
		"other ports":                   {"default/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 1, endPort: 10}]}, {from: [{podSelector: {}}], ports: [{port: 5, endPort: 11}]}]}"},
		"portless is more than all":     {"default/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}, {from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}], ports: [{protocol: TCP}, {protocol: UDP}, {protocol: SCTP}]}]}"},
		"opposite operators":            {"default/p: {podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions: [{key: role, operator: In, values: [db]}]}}]}, {from: [{podSelector: {matchExpressions: [{key: role, operator: NotIn, values: [db]}]}}]}]}"},
		"only the other has exceptions": {"default/p: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}, {from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.2.0/24]}}]}]}"},
		"own pods and all namespaces":   {"default/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {}}], ports: [{port: 81}]}]}"},
	}
	for name, policies := range tests {
		t.Run(name, func(t *testing.T) {
			for _, f := range check(t, cluster, policies...) {
				t.Error(f)
			}
		})
	}
}

// Without pods, only checks of the policies themselves run.
func TestWithoutPods(t *testing.T) {
	for _, f := range check(t, "{}", demo1, demo2, denyAll, allowDNS) {
		t.Error(f)
	}
	found := check(t, "{}", "default/p: {podSelector: {matchLabels: {a: b}}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}")
	if len(found) != 1 || found[0].Check != NoDNS {
		t.Errorf("found %v, want the missing DNS", found)
	}
}

func TestWithin(t *testing.T) {
	tests := []struct {
		sel, wider string
		want       bool
	}{
		{"{}", "{}", true},
		{"{matchLabels: {a: b}}", "{}", true},
		{"{}", "{matchLabels: {a: b}}", false},
		{"{matchLabels: {a: b, c: d}}", "{matchLabels: {a: b}}", true},
		{"{matchLabels: {a: b}}", "{matchExpressions: [{key: a, operator: Exists}]}", true},
		{"{matchExpressions: [{key: a, operator: Exists}]}", "{matchLabels: {a: b}}", false},
		{"{matchLabels: {a: b}}", "{matchExpressions: [{key: a, operator: In, values: [b, c]}]}", true},
		{"{matchExpressions: [{key: a, operator: In, values: [b, c]}]}", "{matchLabels: {a: b}}", false},
		{"{matchLabels: {a: b}}", "{matchExpressions: [{key: a, operator: NotIn, values: [c]}]}", true},
		{"{matchLabels: {a: b}}", "{matchExpressions: [{key: a, operator: NotIn, values: [b]}]}", false},
		{"{matchExpressions: [{key: a, operator: NotIn, values: [b, c]}]}", "{matchExpressions: [{key: a, operator: NotIn, values: [b]}]}", true},
		{"{matchExpressions: [{key: a, operator: NotIn, values: [b]}]}", "{matchExpressions: [{key: a, operator: NotIn, values: [b, c]}]}", false},
		{"{matchExpressions: [{key: a, operator: DoesNotExist}]}", "{matchExpressions: [{key: a, operator: NotIn, values: [b]}]}", true},
		{"{matchExpressions: [{key: a, operator: NotIn, values: [b]}]}", "{matchExpressions: [{key: a, operator: DoesNotExist}]}", false},
		{"{matchLabels: {a: b}}", "{matchLabels: {c: b}}", false},
	}
	for _, tt := range tests {
		p := newPolicy(netpol.Read(policyWith(t, tt.sel)))
		o := newPolicy(netpol.Read(policyWith(t, tt.wider)))
		if got := within(p.subject, o.subject); got != tt.want {
			t.Errorf("%s within %s: %v", tt.sel, tt.wider, got)
		}
	}
}

func policyWith(t *testing.T, selector string) *networkingv1.NetworkPolicy {
	t.Helper()
	p := &networkingv1.NetworkPolicy{}
	if err := yaml.UnmarshalStrict([]byte(selector), &p.Spec.PodSelector); err != nil {
		t.Fatal(err)
	}
	return p
}

// Manifests in Git have workloads but not their pods, so Check compares selectors and ports with
// templates.
func TestWorkloadsCountAsPods(t *testing.T) {
	const deployments = `
deployments:
- metadata: {namespace: default, name: web}
  spec: {template: {metadata: {labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 80, protocol: TCP}]}]}}}
`
	found := check(t, deployments, "default/p: {podSelector: {matchLabels: {app: wbe}}}",
		"default/q: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: htp}]}]}")
	if len(found) != 2 || found[0].Check != NoMatch || !strings.Contains(found[0].Hint, "app is web there") || found[1].Check != NoPort {
		t.Errorf("found %v", found)
	}
	for _, f := range check(t, deployments, "default/p: {podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: http}]}]}") {
		t.Error(f)
	}
}

// If a policy covers several rules of another one, there is one finding with their number.
func TestCoveredIsOneFindingForTwoPolicies(t *testing.T) {
	rules := make([]string, 7)
	for i := range rules {
		rules[i] = fmt.Sprintf("{from: [{podSelector: {}}], ports: [{port: %d}]}", 80+i)
	}
	found := check(t, cluster, "default/all: {podSelector: {}, ingress: [{}]}", "default/p: {podSelector: {}, ingress: ["+strings.Join(rules, ", ")+"]}")
	if len(found) != 1 || found[0].Count != 7 || found[0].Field != "spec.ingress[0]" || !strings.Contains(found[0].Detail, "7 rules") ||
		!strings.Contains(found[0].Detail, "spec.ingress[4] and 2 more") {
		t.Errorf("found %+v", found)
	}
}

// A policy that covers several others is one finding, about that policy, with the number of rules.
func TestPolicyThatCoversSeveralIsOneFinding(t *testing.T) {
	var specs []string
	for _, ns := range []string{"default", "other"} {
		specs = append(specs, ns+"/all: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")
		for _, role := range []string{"db", "frontend", "web"} {
			specs = append(specs, fmt.Sprintf("%s/%s: {podSelector: {matchLabels: {role: %s}}, ingress: [{from: [{podSelector: {}}], ports: [{port: 80}]}]}", ns, role, role))
		}
	}
	found := slices.DeleteFunc(check(t, cluster, specs...), func(f Finding) bool { return f.Check != Covered })
	if len(found) != 2 {
		t.Fatalf("found %+v", found)
	}
	for i, ns := range []string{"default", "other"} {
		f := found[i]
		want := fmt.Sprintf("it allows everything that 3 rules of 3 other policies allow: %s/db spec.ingress[0], %[1]s/frontend spec.ingress[0], %[1]s/web spec.ingress[0]", ns)
		if f.Object != "NetworkPolicy "+ns+"/all" || f.Field != "spec.ingress[0]" || f.Count != 3 || f.Detail != want {
			t.Errorf("found %+v, want %s", f, want)
		}
	}
}

// A policy with the annotation against the check does not count in the finding about the policy that
// covers it.
func TestIgnoredPolicyDoesNotCountAsCovered(t *testing.T) {
	objects := decodeAll(t, cluster, []string{
		"default/all: {podSelector: {}, ingress: [{}]}",
		"default/p: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", "default/q: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
	})
	for _, p := range objects.Policies {
		if p.Ref.Name == "q" {
			p.LintIgnore = Covered
		}
	}
	var about []string
	for _, f := range Check(inventory.New(objects)) {
		if f.Check == Covered {
			about = append(about, f.Object)
		}
	}
	if !slices.Equal(about, []string{"NetworkPolicy default/p", "NetworkPolicy default/q"}) {
		t.Errorf("findings about %v", about)
	}
}
