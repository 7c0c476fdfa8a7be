package lint

import (
	"slices"
	"strings"
	"testing"
)

const peersCluster = `
namespaces: [{metadata: {name: shop}}]
pods:
- metadata: {namespace: shop, name: web, labels: {app: web}}
  spec: {containers: [{ports: [{containerPort: 8080, protocol: TCP}]}]}
  status: {podIPs: [{ip: 10.0.0.1}]}
- {metadata: {namespace: shop, name: job, labels: {app: job}}, status: {podIPs: [{ip: 10.0.0.2}]}}
services:
- {metadata: {namespace: shop, name: web}, spec: {clusterIP: 10.96.0.7}}
`

// Each check about peers and ports finds its mistake, and reports nothing about the corrected policy.
func TestPeers(t *testing.T) {
	ingress := func(rule string) string {
		return "shop/p: {podSelector: {matchLabels: {app: web}}, ingress: [" + rule + "]}"
	}
	egress := func(block, ports string) string {
		return "shop/p: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53}, {port: 53, protocol: UDP}]}, {to: [{ipBlock: " + block + "}], ports: " + ports + "}]}"
	}
	for name, tt := range map[string]struct{ policy, want, says string }{
		"OR for AND":           {ingress("{from: [{namespaceSelector: {}}, {podSelector: {matchLabels: {app: job}}}]}"), OrNotAnd, "a peer of its own"},
		"AND":                  {ingress("{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: job}}}]}"), "", ""},
		"two rules":            {ingress("{from: [{namespaceSelector: {}}], ports: [{port: 8080}]}, {from: [{podSelector: {matchLabels: {app: job}}}], ports: [{port: 8080, protocol: UDP}]}"), Undeclared, "UDP 8080"},
		"pods first":           {ingress("{from: [{podSelector: {matchLabels: {app: job}}}, {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}]}"), "", ""},
		"port of a Service":    {ingress("{ports: [{port: 80}]}"), Undeclared, "declares TCP 80"},
		"declared port":        {ingress("{ports: [{port: 8080}]}"), "", ""},
		"range with it":        {ingress("{ports: [{port: 8000, endPort: 8100}]}"), "", ""},
		"nothing is declared":  {"shop/p: {podSelector: {matchLabels: {app: job}}, ingress: [{ports: [{port: 80}]}]}", "", ""},
		"metadata":             {egress("{cidr: 0.0.0.0/0}", "[{port: 80}]"), Metadata, "169.254.169.254"},
		"metadata, excepted":   {egress("{cidr: 0.0.0.0/0, except: [169.254.0.0/16]}", "[{port: 80}]"), "", ""},
		"metadata, other port": {egress("{cidr: 0.0.0.0/0}", "[{port: 443}]"), "", ""},
		"metadata on purpose":  {egress("{cidr: 169.254.169.254/32}", "[{port: 80}]"), "", ""},
		"address of a pod":     {egress("{cidr: 10.0.0.2/32}", "[{port: 443}]"), PodRange, "pod shop/job"},
		"address of a Service": {egress("{cidr: 10.96.0.7/32}", "[{port: 443}]"), PodRange, "Service shop/web"},
		"range of pods":        {egress("{cidr: 10.244.3.0/24}", "[{port: 443}]"), PodRange, "10.244.0.0/16"},
		"wider than pods":      {egress("{cidr: 10.0.0.0/8}", "[{port: 443}]"), "", ""},
		"outside":              {egress("{cidr: 192.0.2.1/32}", "[{port: 443}]"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			found := check(t, peersCluster, tt.policy)
			switch {
			case tt.want == "" && len(found) > 0:
				t.Errorf("found %v", found)
			case tt.want != "" && (len(found) != 1 || found[0].Check != tt.want || !strings.Contains(found[0].Error(), tt.says)):
				t.Errorf("found %v, want %s with %q", found, tt.want, tt.says)
			}
		})
	}
}

// A rule of the tier Admin that accepts the metadata address for all pods is reported, unless an
// earlier rule denies this address. That earlier rule also prevents the finding about a NetworkPolicy.
func TestPeersOfTiers(t *testing.T) {
	const (
		all    = "{action: Accept, to: [{networks: [0.0.0.0/0]}]}"
		denied = "{action: Deny, to: [{networks: [169.254.169.254/32]}]}"
		out    = "shop/p: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"
	)
	admin := func(rules string) string {
		return "platform: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [" + rules + "]}"
	}
	for name, tt := range map[string]struct {
		policies    []string
		want, field string
	}{
		"accepted":               {[]string{admin(all)}, Metadata, "spec.egress[0].to[0].networks[0]"},
		"denied before":          {[]string{admin(denied + ", " + all)}, "", ""},
		"denied after":           {[]string{admin(all + ", " + denied)}, Metadata, "spec.egress[0].to[0].networks[0]"},
		"NetworkPolicy":          {[]string{out, admin(denied)}, "", ""},
		"NetworkPolicy, others":  {[]string{out, strings.Replace(admin(denied), "namespaces: {}", "namespaces: {matchLabels: {a: b}}", 1)}, Metadata, "spec.egress[0].to[0].ipBlock.cidr"},
		"denies all":             {[]string{admin(strings.Replace(all, "Accept", "Deny", 1))}, "", ""},
		"the address of a pod":   {[]string{admin("{action: Deny, to: [{networks: [192.0.2.0/24, 10.0.0.2/32]}]}")}, PodRange, "spec.egress[0].to[0].networks[1]"},
		"addresses outside them": {[]string{admin("{action: Deny, to: [{networks: [192.0.2.0/24]}]}")}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			found := slices.DeleteFunc(check(t, peersCluster, tt.policies...), func(f Finding) bool { return f.Check != Metadata && f.Check != PodRange })
			if tt.want == "" && len(found) > 0 || tt.want != "" && (len(found) != 1 || found[0].Check != tt.want || found[0].Field != tt.field) {
				t.Errorf("found %v, want %q at %s", found, tt.want, tt.field)
			}
		})
	}
}

// There is one finding per namespace about pods that no policy isolates, if other pods of the namespace
// are isolated.
func TestNotIsolated(t *testing.T) {
	found := checkAll(t, peersCluster, "shop/p: {podSelector: {matchLabels: {app: web}}}")
	if len(found) != 1 || found[0].Check != NotIsolated || found[0].Object != "Namespace shop" || !strings.Contains(found[0].Detail, "shop/job") {
		t.Errorf("found %v", found)
	}
	const deployment = "deployments: [{metadata: {namespace: shop, name: cron%s}, spec: {template: {metadata: {labels: {app: cron}}}}}]\n"
	for annotation, want := range map[string]bool{"": true, ", annotations: {sluice/ignore: not-isolated}": false} {
		found := checkAll(t, peersCluster+strings.Replace(deployment, "%s", annotation, 1), "shop/p: {podSelector: {matchLabels: {app: web}}}")
		if len(found) != 1 || strings.Contains(found[0].Detail, "shop/cron") != want {
			t.Errorf("%q: found %v", annotation, found)
		}
	}
	found = checkAll(t, strings.Replace(peersCluster, "{name: shop}", "{name: other}", 1), "shop/p: {podSelector: {matchLabels: {app: web}}}")
	if len(found) != 1 || found[0].Object != "Pod shop/job" {
		t.Errorf("without the Namespace: found %v", found)
	}
	for _, policies := range [][]string{nil, {"shop/p: {podSelector: {}}"}} {
		if found := checkAll(t, peersCluster, policies...); len(found) > 0 {
			t.Errorf("%v: found %v", policies, found)
		}
	}
}
