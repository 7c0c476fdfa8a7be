package reach_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// allowing returns a policy that isolates the pods app=db in ingress, and allows the pods app=web to
// reach a TCP port of them.
func allowing(name string, port uint16) *policy.Policy {
	p := isolating(name, "app=db")
	p.Isolates[filter.Egress] = false
	p.Rules[filter.Ingress] = []policy.Rule{{Action: policy.Accept, Peers: []policy.Peer{{Pods: labels.SelectorFromSet(labels.Set{"app": "web"})}}, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: port, High: port}}}}
	return p
}

// orderedDeny returns an Admin policy that denies access to a TCP port of the pods app=db.
func orderedDeny(port uint16) *policy.Policy {
	p := allowing("", port)
	p.Ref, p.Tier, p.Isolates = policy.Ref{Kind: "ClusterNetworkPolicy", Name: "platform"}, policy.Admin, [2]bool{}
	p.Subject.Namespace, p.Subject.Namespaces = "", labels.Everything()
	p.Rules[filter.Ingress][0].Action, p.Rules[filter.Ingress][0].Name = policy.Deny, "closed"
	p.Rules[filter.Ingress][0].Peers[0].Namespaces = labels.Everything()
	return p
}

// Changes between web and db have the policies that cause them.
func TestCauses(t *testing.T) {
	web, db := running("web", "", "app=web", 1), running("db", "", "app=db", 2)
	other := running("web", "", "app=other", 1)
	tests := map[string]struct {
		before, after []*policy.Policy
		webBefore     *policy.Pod
		want          string
	}{
		"added":           {[]*policy.Policy{isolating("deny", "app=db")}, []*policy.Policy{isolating("deny", "app=db"), allowing("allow", 80)}, web, "opens TCP 80: shop/allow ingress rule 1 (added)"},
		"removed":         {[]*policy.Policy{isolating("deny", "app=db"), allowing("allow", 80)}, []*policy.Policy{isolating("deny", "app=db")}, web, "closes TCP 80: shop/allow (removed)"},
		"changed":         {[]*policy.Policy{allowing("allow", 80)}, []*policy.Policy{allowing("allow", 81)}, web, "closes TCP 80: shop/allow ingress rule 1 (changed); opens TCP 81: shop/allow ingress rule 1 (changed)"},
		"isolated":        {nil, []*policy.Policy{isolating("deny", "app=db")}, web, "closes TCP, UDP, SCTP, ICMP: shop/deny (added)"},
		"not isolated":    {[]*policy.Policy{isolating("deny", "app=db")}, nil, web, "opens TCP, UDP, SCTP, ICMP: shop/deny (removed)"},
		"denied by rule":  {[]*policy.Policy{allowing("allow", 80)}, []*policy.Policy{allowing("allow", 80), orderedDeny(80)}, web, `closes TCP 80: admin/platform rule 1 "closed" (added)`},
		"no longer":       {[]*policy.Policy{allowing("allow", 80), orderedDeny(80)}, []*policy.Policy{allowing("allow", 80)}, web, "opens TCP 80: admin/platform (removed)"},
		"labels":          {[]*policy.Policy{allowing("allow", 80)}, []*policy.Policy{allowing("allow", 80)}, other, "opens TCP 80: shop/allow ingress rule 1 (matches now)"},
		"nothing changes": {[]*policy.Policy{allowing("allow", 80)}, []*policy.Policy{allowing("allow", 80), allowing("again", 80)}, web, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := reach.Compare(
				inventory.New(inventory.Objects{Pods: []*policy.Pod{tt.webBefore, db}, Policies: tt.before}),
				inventory.New(inventory.Objects{Pods: []*policy.Pod{web, db}, Policies: tt.after}))
			var got []string
			for _, c := range d.Changes {
				if c.From.Name == "shop/web" && c.To.Name == "shop/db" {
					got = append(got, changeText(c))
				}
			}
			slices.Sort(got)
			if text := strings.Join(got, "; "); text != tt.want {
				t.Errorf("%s\nwant %s", text, tt.want)
			}
		})
	}
}

func changeText(c reach.Change) string {
	what := "closes "
	if c.Opens {
		what = "opens "
	}
	var ports, causes []string
	for _, s := range c.Spans {
		ports = append(ports, s.String())
	}
	for _, one := range c.Causes {
		causes = append(causes, fmt.Sprint(one))
	}
	return what + strings.Join(ports, ", ") + ": " + strings.Join(causes, ", ")
}

// The pods of a workload in Git may have addresses in an ipBlock that a policy allows. The change then
// depends on their addresses, unless the pod ranges are known.
func TestChangeDependsOnAddress(t *testing.T) {
	block := allowing("allow", 80)
	block.Rules[filter.Ingress][0].Peers = []policy.Peer{{Block: &policy.Block{CIDR: prefix("10.0.0.0/9")}}}
	for ranges, want := range map[string]string{"": "true", "10.0.0.0/16": "false", "10.128.0.0/16": "no change"} {
		o := inventory.Objects{Policies: []*policy.Policy{isolating("deny", "app=db")}}
		o.Workloads = append(o.Workloads, template("Deployment/web", "app=web"), template("Deployment/db", "app=db"))
		if ranges != "" {
			o.PodRanges = append(o.PodRanges, prefix(ranges))
		}
		after := o
		after.Policies = append(slices.Clip(o.Policies), block)
		got := "no change"
		for _, c := range reach.Compare(inventory.New(o), inventory.New(after)).Changes {
			if c.From.Name == "shop/web" && c.To.Name == "shop/db" {
				got = fmt.Sprint(c.Maybe)
			}
		}
		if got != want {
			t.Errorf("pods in %q: %s, want %s", ranges, got, want)
		}
	}
}
