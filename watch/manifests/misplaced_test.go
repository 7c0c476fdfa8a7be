package manifests

import (
	"strings"
	"testing"
)

// The hint for an unknown field names its place, and does not advise a change that allows
// more than was meant.
func TestHintForMisplacedField(t *testing.T) {
	const below, only = "put it under matchLabels; removing it", "remove it only if it is not a restriction"
	tests := []struct{ spec, field, hint string }{
		{"podSelector: {role: db}", "podSelector.role", below},
		{"podSelector: {app.kubernetes.io/name: db}", "podSelector.app.kubernetes.io/name", below},
		{"podSelector: {labels: {role: db}}", "podSelector.labels", "write matchLabels"},
		{"podSelector: {matchLabel: {role: db}}", "podSelector.matchLabel", "write matchLabels"},
		{"podSelector: {ingress: []}", "podSelector.ingress", "move it beside podSelector"},
		{"podSelector: {podSelector: {}}", "podSelector.podSelector", only},
		{"podSelector: {matchExpressions: [{key: a, operator: In, in: [b]}]}", "podSelector.matchExpressions[0].in", only},
		{"podSelector: {operator: In}", "podSelector.operator", "move it into an item of matchExpressions"},
		{"ingress: [{from: [{podSelector: {role: frontend}}]}]", "ingress[0].from[0].podSelector.role", below},
		{"egress: [{to: [{namespaceSelector: {team: a}}]}]", "egress[0].to[0].namespaceSelector.team", below},
		{"ingress: [{from: [{podSelector: {namespaceSelector: {}}}]}]", "ingress[0].from[0].podSelector.namespaceSelector", "move it beside podSelector"},
		{"ingress: [{from: [{podSelector: {}, ports: [{port: 80}]}]}]", "ingress[0].from[0].ports", "move it beside from"},
		{"egress: [{to: [{podSelector: {}, ports: [{port: 80}]}]}]", "egress[0].to[0].ports", "move it beside to"},
		{"ingress: [{from: [{podSelector: {}, port: 80}]}]", "ingress[0].from[0].port", "move it into an item of ports"},
		{"ingress: [{from: [{matchLabels: {a: b}}]}]", "ingress[0].from[0].matchLabels", "move it into podSelector or namespaceSelector"},
		{"ingress: [{from: [{cidr: 10.0.0.0/8}]}]", "ingress[0].from[0].cidr", "move it into ipBlock"},
		{"ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, podSelector: {}}}]}]", "ingress[0].from[0].ipBlock.podSelector", "move it beside ipBlock"},
		{"ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, without: [10.0.0.0/9]}}]}]", "ingress[0].from[0].ipBlock.without", only},
		{"ingress: [{from: [{role: frontend}]}]", "ingress[0].from[0].role", only},
		{"ingress: [{ports: [{port: 80, from: []}]}]", "ingress[0].ports[0].from", "move it beside ports"},
		{"egress: [{ports: [{port: 80, to: []}]}]", "egress[0].ports[0].to", "move it beside ports"},
		{"ingress: [{ports: [{port: 80, podSelector: {}}]}]", "ingress[0].ports[0].podSelector", "move it into an item of from"},
		{"ingress: [{ports: [{number: 80}]}]", "ingress[0].ports[0].number", only},
		{"ingress: [{podSelector: {}}]", "ingress[0].podSelector", "move it into an item of from"},
		{"ingress: [{port: 80}]", "ingress[0].port", "move it into an item of ports"},
		{"ingress: [{to: []}]", "ingress[0].to", "write from, or move it into an item of egress"},
		{"egress: [{from: []}]", "egress[0].from", "write to, or move it into an item of ingress"},
		{"ingress: [{sources: []}]", "ingress[0].sources", only},
		{"from: []", "from", "move it into an item of ingress"},
		{"ports: [{port: 80}]", "ports", "move it into an item of ingress or an item of egress"},
		{"matchLabels: {a: b}", "matchLabels", "move it into podSelector"},
		{"priority: 7", "priority", only},
	}
	for _, tt := range tests {
		t.Run(tt.field, func(t *testing.T) {
			_, problems := read(t, map[string]string{"a.yaml": "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  " + tt.spec + "\n"})
			if len(problems) != 1 || problems[0].Field != "spec."+tt.field || !strings.HasPrefix(problems[0].Hint, tt.hint) && !strings.Contains(problems[0].Hint, "; "+tt.hint) {
				t.Errorf("%s gives %q, want field %q and hint %q", tt.spec, problems, "spec."+tt.field, tt.hint)
			}
			if strings.HasPrefix(problems[0].Hint, "remove it") {
				t.Errorf("the hint is %q, which may open the policy", problems[0].Hint)
			}
		})
	}
}

// The hints about a ClusterNetworkPolicy recognize fields of a NetworkPolicy, and fields that
// belong elsewhere.
func TestHintForFieldOfAnotherKind(t *testing.T) {
	for rule, want := range map[string]string{
		"{action: Accept, from: [{namespaces: {}}], ports: [{port: 80}]}":                         "write protocols",
		"{action: Accept, from: [{ipBlock: {cidr: 10.0.0.0/8}}]}":                                 "write networks, a list of CIDRs",
		"{action: Accept, from: [{podSelector: {}}]}":                                             "move it into pods",
		"{action: Accept, from: [{namespaces: {}}], protocols: [{icmp: {}}]}":                     "only a rule without protocols matches ICMP, as it matches everything",
		"{action: Accept, from: [{namespaces: {}}], protocols: [{tcp: {port: 80}}]}":              "write destinationPort",
		"{action: Accept, from: [{namespaces: {}}], protocols: [{tcps: {}}]}":                     "write tcp",
		"{action: Accept, from: [{namespaces: {}}], protocols: [{number: 80}]}":                   "",
		"{action: Accept, to: [{namespaces: {}}]}":                                                "write from, or move it into an item of egress",
		"{action: Accept, from: [{pods: {namespaces: {}, podSelector: {}}}]}":                     "move it beside pods",
		"{action: Accept, from: [{namespaces: {}}], protocols: [{destinationPort: {number: 1}}]}": "move it into tcp or udp or sctp",
	} {
		_, problems := read(t, map[string]string{"a.yaml": clusterPolicy("  ingress: [" + rule + "]\n")})
		hint := strings.TrimPrefix(problems[0].Hint, "in ingress rule 1, ")
		if len(problems) != 1 || want != "" && hint != want || strings.HasPrefix(hint, "remove it") {
			t.Errorf("%s: problems %v, want the hint %q", rule, problems, want)
		}
	}
}
