package lint

import (
	"strings"
	"testing"
)

const (
	// admin begins a policy of the tier Admin for all pods, baseline one of the tier Baseline.
	admin    = "{tier: Admin, priority: 10, subject: {namespaces: {}}, "
	baseline = "{tier: Baseline, priority: 10, subject: {namespaces: {}}, "

	fromShop  = "{action: Accept, from: [{namespaces: {matchLabels: {project: myproject}}}]}"
	denyShop  = "{name: shop, action: Deny, from: [{namespaces: {matchLabels: {project: myproject}}}]}"
	passShop  = "{action: Pass, from: [{namespaces: {matchLabels: {project: myproject}}}]}"
	denyPods  = "{action: Deny, from: [{namespaces: {}}]}"
	toCart80  = "{action: Deny, to: [{pods: {namespaceSelector: {}, podSelector: {matchLabels: {app: cart}}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}"
	allowShop = "default/team: {podSelector: {matchLabels: {role: db}}, ingress: [{from: [{namespaceSelector: {matchLabels: {project: myproject}}}]}]}"
)

func TestOrderedFindings(t *testing.T) {
	type want struct{ check, object, field, says string }
	const platform, second = "ClusterNetworkPolicy platform", "ClusterNetworkPolicy second"
	tests := map[string]struct {
		policies []string
		want     []want
	}{
		"same priority": {[]string{"platform: " + admin + "ingress: [" + fromShop + "]}", "second: " + admin + "ingress: [" + denyPods + "]}"}, []want{
			{SamePriority, second, "spec.priority", "it has the priority 10 of ClusterNetworkPolicy platform in the tier Admin, and both select pod default/db"},
		}},
		"no priority that is understood": {[]string{"platform: {tier: Adm, priority: 10, subject: {namespaces: {}}, ingress: [" + fromShop + "]}", "second: {tier: Adm, priority: 10, subject: {namespaces: {}}, ingress: [" + denyPods + "]}"}, []want{
			{Invalid, platform, "spec.tier", "write Admin"}, {Invalid, second, "spec.tier", "write Admin"},
		}},
		"a rule that is not understood": {[]string{"platform: " + admin + "ingress: [{action: Allow, from: [{namespaces: {}}]}]}", "second: " + baseline + "ingress: [" + fromShop + "]}"}, []want{
			{Invalid, platform, "spec.ingress[0].action", "write Accept"},
		}},
		"a rule twice": {[]string{"platform: " + admin + "ingress: [" + denyShop + ", " + fromShop + "]}"}, []want{
			{Shadowed, platform, "spec.ingress[1]", `admin/platform rule 1 "shop" denies everything that it matches, and comes first`},
		}},
		"by another policy": {[]string{"second: " + strings.Replace(admin, "10", "11", 1) + "egress: [" + toCart80 + "]}", "platform: " + admin + "egress: [{action: Pass, to: [{namespaces: {}}]}]}"}, []want{
			{Shadowed, second, "spec.egress[0]", "admin/platform rule 1 passes everything that it matches, and comes first: remove it, give its policy a priority below 10, or narrow spec.egress[0] of ClusterNetworkPolicy platform"},
		}},
		"a NetworkPolicy by Admin": {[]string{allowShop, "platform: " + admin + "ingress: [" + denyShop + "]}"}, []want{
			{Shadowed, "NetworkPolicy default/team", "spec.ingress[0]", "narrow spec.ingress[0] of ClusterNetworkPolicy platform: the tier NetworkPolicy does not override the tier Admin"},
		}},
		"own namespace by Admin": {[]string{"shop/team: {podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}", "platform: " + admin + "ingress: [" + denyShop + "]}"}, []want{
			{Shadowed, "NetworkPolicy shop/team", "spec.ingress[0]", "admin/platform rule 1"},
		}},
		"Baseline by Admin": {[]string{"second: " + baseline + "ingress: [" + fromShop + "]}", "platform: " + admin + "ingress: [" + denyPods + "]}"}, []want{
			{Shadowed, second, "spec.ingress[0]", "the tier Baseline does not override the tier Admin"},
		}},
		"Baseline by Baseline": {[]string{"platform: " + baseline + "ingress: [" + denyPods + ", " + fromShop + "]}"}, []want{
			{Shadowed, platform, "spec.ingress[1]", "baseline/platform rule 1 denies"},
		}},
		"all isolated": {[]string{"default/deny: {podSelector: {}, policyTypes: [Ingress]}", "platform: {tier: Baseline, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}, ingress: [" + denyPods + "]}"}, []want{
			{Unreachable, platform, "spec.ingress", "NetworkPolicies isolate every pod that it selects in ingress (default/db by default/deny)"},
		}},
		"no namespace": {[]string{"platform: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: yours}}}, ingress: [" + denyPods + "]}"}, []want{
			{NoMatch, platform, "spec.subject", "no namespace matches project=yours: write labels that the namespace has (project is myproject there)"},
		}},
		"no pod": {[]string{"platform: {tier: Admin, priority: 1, subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: dbb}}}}, ingress: [" + denyPods + "]}"}, []want{
			{NoMatch, platform, "spec.subject.pods.podSelector", "role is db, frontend there"},
		}},
		"only pods of the host network": {[]string{"platform: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: edge}}}, ingress: [" + denyPods + "]}"}, []want{
			{NoMatch, platform, "spec.subject", "host network"},
		}},
		"a peer that matches nothing": {[]string{"platform: " + admin + "ingress: [{action: Deny, from: [{namespaces: {matchLabels: {a: b}}}, {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: x}}}}]}]}"}, []want{
			{NoMatch, platform, "spec.ingress[0].from[0].namespaces", "no namespace matches a=b"},
			{NoMatch, platform, "spec.ingress[0].from[1].pods.podSelector", "role is db, frontend there"},
		}},
		"a peer of the host network": {[]string{"platform: " + admin + "egress: [{action: Deny, to: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: edge}}}]}]}"}, []want{
			{NoMatch, platform, "spec.egress[0].to[0].namespaces", "networks or nodes"},
		}},
		"an ingress peer of the host network": {[]string{"platform: " + admin + "ingress: [{action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: edge}}}]}]}"}, []want{
			{NoMatch, platform, "spec.ingress[0].from[0].namespaces", "no ingress peer matches the address of a node"},
		}},
		"a named port of nodes": {[]string{"platform: " + admin + "egress: [{action: Deny, to: [{nodes: {}}], protocols: [{destinationNamedPort: web}]}]}"}, []want{
			{NoPort, platform, "spec.egress[0].protocols[0].destinationNamedPort", "write a protocol with the number: only pods have port names"},
		}},
		"nodes that match nothing": {[]string{"platform: " + admin + "egress: [{action: Deny, to: [{nodes: {matchLabels: {pool: db}}}, {nodes: {}}]}]}"}, []want{
			{NoMatch, platform, "spec.egress[0].to[0].nodes", "no node matches pool=db: write labels that the nodes have (pool is web there)"},
		}},
		"a named port": {[]string{"platform: " + admin + "ingress: [{action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {number: 1}}}, {destinationNamedPort: web}]}]}"}, []want{
			{NoPort, platform, "spec.ingress[0].protocols[1].destinationNamedPort", `no destination pod has a port named "web": write a name that the pods' containers declare, or a protocol with the number`},
		}},
		"names": {[]string{"platform: " + admin + "egress: [{action: Accept, to: [{domainNames: [a.example]}]}, {action: Deny, to: [{domainNames: [b.example]}]}]}"}, []want{
			{Names, platform, "spec.egress[0].to[0].domainNames", "not supported"},
			{Names, platform, "spec.egress[1].to[0].domainNames", "only rules that accept"},
		}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			found := check(t, cluster, tt.policies...)
			if len(found) != len(tt.want) {
				t.Fatalf("%d findings, want %d: %v", len(found), len(tt.want), found)
			}
			for i, f := range found {
				w := tt.want[i]
				if f.Check != w.check || f.Object != w.object || f.Field != w.field || !strings.Contains(f.Error(), w.says) || f.Detail == "" || f.Hint == "" {
					t.Errorf("found %s of %s at %s: %v\nwant %+v", f.Check, f.Object, f.Field, f, w)
				}
			}
		})
	}
}

// Lint must not report what is right, or what may be intended.
func TestNoOrderedFindings(t *testing.T) {
	tests := map[string][]string{
		"platform, team and default":      {allowShop, "platform: " + admin + "ingress: [{action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}]}]}", "second: " + baseline + "ingress: [" + denyPods + "]}"},
		"other tiers have other orders":   {"platform: " + admin + "ingress: [" + denyShop + "]}", "second: " + baseline + "ingress: [{action: Accept, from: [{namespaces: {}}]}]}"},
		"equal actions":                   {"platform: " + admin + "ingress: [" + denyShop + "]}", "second: " + admin + "ingress: [{action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}]}]}"},
		"other pods":                      {"platform: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, ingress: [" + fromShop + "]}", "second: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}, ingress: [" + denyPods + "]}"},
		"narrow before wide":              {"platform: " + admin + "ingress: [" + fromShop + ", " + denyPods + "]}"},
		"passed before it is denied":      {allowShop, "platform: " + admin + "ingress: [" + passShop + ", " + denyPods + "]}"},
		"passed in part":                  {"shop/team: {podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}", "platform: " + admin + "ingress: [" + passShop + ", " + denyPods + "]}"},
		"a narrower subject before":       {"platform: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {project: myproject}}}, ingress: [" + denyPods + "]}", "second: " + admin + "ingress: [" + fromShop + "]}"},
		"pods do not cover every peer":    {"default/team: {podSelector: {}, ingress: [{}]}", "platform: " + admin + "ingress: [" + denyPods + "]}"},
		"a pod that is not isolated":      {"default/deny: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress]}", "platform: " + baseline + "ingress: [" + denyPods + "]}"},
		"the other direction is isolated": {denyAllEgress, "platform: {tier: Baseline, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: default}}}, ingress: [" + denyPods + "]}"},
		"DNS of the platform": {"default/p: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 443}]}]}",
			"platform: " + admin + "egress: [{action: Accept, to: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: kube-system}}}], protocols: [{udp: {destinationPort: {number: 53}}}, {tcp: {destinationPort: {number: 53}}}]}]}"},
		"all pods are accepted": {"platform: " + admin + "egress: [{action: Accept, to: [{namespaces: {}}]}]}"},
	}
	for name, policies := range tests {
		t.Run(name, func(t *testing.T) {
			for _, f := range check(t, cluster, policies...) {
				t.Error(f)
			}
		})
	}
}

const denyAllEgress = "default/deny: {podSelector: {}, policyTypes: [Egress]}"

// Without pods, subjects are compared by their selectors.
func TestOrderedWithoutPods(t *testing.T) {
	found := check(t, "{}", "platform: "+admin+"ingress: ["+fromShop+"]}", "second: "+admin+"ingress: ["+denyPods+"]}")
	if len(found) != 1 || found[0].Check != SamePriority {
		t.Errorf("found %v", found)
	}
}
