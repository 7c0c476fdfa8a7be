package explain

import (
	"strings"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
)

// allowed returns the explanation of a flow to a web server, which a rule of a policy allows.
func allowed(from string, rule filter.Rule, peers string, policies ...string) Explanation {
	return Explanation{
		Flow:    Flow{From: &End{Name: from}, To: &End{Name: "shop/web"}},
		Verdict: filter.Verdict{Action: filter.Allow, Reason: filter.RuleAllows},
		Egress: Side{
			Direction: filter.Egress, Pod: from, Policies: policies, allows: true,
			Allowed: &RuleMatch{Rule: rule, Peers: peers, Ports: "TCP 80"},
		},
		Ingress: Side{Direction: filter.Ingress, Pod: "shop/web", allows: true},
	}
}

// Flows that the same rule allows become one explanation, which names the policies that isolate all of
// the pods. A flow that another rule, or another peer of the rule, allows keeps its own explanation.
func TestMergeAllowed(t *testing.T) {
	dns, own := filter.Rule{Policy: "shop/dns", Tier: policy.NetworkPolicy}, filter.Rule{Policy: "shop/own", Tier: policy.NetworkPolicy}
	all := mergeAllowed([]Explanation{
		allowed("shop/a", dns, "every peer", "shop/a", "shop/deny", "shop/dns"),
		allowed("shop/b", dns, "every peer", "shop/deny", "shop/dns"),
		allowed("shop/c", own, "every peer", "shop/deny", "shop/own"),
		allowed("shop/d", dns, "every pod", "shop/deny", "shop/dns"),
		allowed("shop/e", dns, "every peer"),
	})
	var texts []string
	for i := range all {
		var b strings.Builder
		all[i].Egress.write(&b, all[i].Flow.From, strings.Join(all[i].froms(), ", "))
		texts = append(texts, strings.TrimSpace(b.String()))
	}
	want := []string{
		"egress: shop/a, shop/b are isolated by shop/deny, shop/dns and others\n    shop/dns rule 1 allows it: every peer, TCP 80",
		"egress: shop/c is isolated by shop/deny, shop/own\n    shop/own rule 1 allows it: every peer, TCP 80",
		"egress: shop/d is isolated by shop/deny, shop/dns\n    shop/dns rule 1 allows it: every pod, TCP 80",
		"egress: shop/e is not isolated: no policy selects it in this direction",
	}
	if got := strings.Join(texts, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}
