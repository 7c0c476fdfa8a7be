package lint

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

const oneSidedCluster = `
namespaces: [{metadata: {name: shop}}, {metadata: {name: pci}}]
pods:
- metadata: {namespace: shop, name: web, labels: {app: web}}
  spec: {containers: [{ports: [{name: http, containerPort: 8080, protocol: TCP}]}]}
  status: {podIPs: [{ip: 10.0.0.1}]}
- {metadata: {namespace: shop, name: job, labels: {app: job}}, status: {podIPs: [{ip: 10.0.0.2}]}}
- metadata: {namespace: pci, name: vault, labels: {app: vault}}
  spec: {containers: [{ports: [{name: api, containerPort: 8200, protocol: TCP}, {name: metrics, containerPort: 9102, protocol: TCP}]}]}
  status: {podIPs: [{ip: 10.0.0.3}]}
`

const (
	shopDenies = "shop/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}"
	pciDenies  = "pci/deny: {podSelector: {}, policyTypes: [Ingress, Egress]}"
	toVault    = "shop/to-vault: {podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: pci}}}], ports: [{port: 8200}]}]}"
	fromWeb    = "pci/from-web: {podSelector: {matchLabels: {app: vault}}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}], ports: [{port: 8200}]}]}"
)

func TestOneSided(t *testing.T) {
	fromAll := func(peers, ports string) string {
		return "pci/p: {podSelector: {}, ingress: [{from: [" + peers + "], ports: [" + ports + "]}]}"
	}
	const web, job = "{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}", "{namespaceSelector: {}, podSelector: {matchLabels: {app: job}}}"
	for name, tt := range map[string]struct {
		policies             []string
		check, object, field string
		says                 string
	}{
		"in but not out":      {[]string{shopDenies, fromWeb}, OneSided, "pci/from-web", "spec.ingress[0]", "NetworkPolicy shop/deny isolates shop/web, and no policy lets it out to pci/vault at TCP 8200"},
		"out but not in":      {[]string{pciDenies, toVault}, OneSided, "shop/to-vault", "spec.egress[0]", "NetworkPolicy pci/deny isolates pci/vault, and no policy lets shop/web in at TCP 8200"},
		"command to ask":      {[]string{shopDenies, fromWeb}, OneSided, "pci/from-web", "spec.ingress[0]", "sluice explain --from shop/web --to pci/vault --port 8200"},
		"policy for the pod":  {[]string{shopDenies, strings.ReplaceAll(toVault, "8200", "443"), fromWeb, fromAll(web, "{port: 443}")}, OneSided, "pci/from-web", "spec.ingress[0]", "NetworkPolicy shop/to-vault isolates"},
		"named port":          {[]string{shopDenies, strings.ReplaceAll(fromWeb, "8200", "api")}, OneSided, "pci/from-web", "spec.ingress[0]", "TCP 8200"},
		"one of two peers":    {[]string{shopDenies, toVault, fromAll(web+", "+job, "{port: 8200}")}, OneSidedPart, "pci/p", "spec.ingress[0].from[1]", "isolates shop/job"},
		"one of two ports":    {[]string{shopDenies, toVault, fromAll(web, "{port: 8200}, {port: 9102}")}, OneSidedPart, "pci/p", "spec.ingress[0].ports[1].port", "TCP 9102"},
		"beside a block":      {[]string{shopDenies, fromAll("{ipBlock: {cidr: 192.0.2.0/24}}, "+web, "{port: 8200}")}, OneSided, "pci/p", "spec.ingress[0].from[1]", "remove the peer"},
		"beside blocks, one":  {[]string{shopDenies, toVault, fromAll("{ipBlock: {cidr: 192.0.2.0/24}}, "+web+", "+job, "{port: 8200}")}, OneSidedPart, "pci/p", "spec.ingress[0].from[2]", "isolates shop/job"},
		"beside all pods":     {[]string{"shop/job: {podSelector: {matchLabels: {app: job}}, policyTypes: [Egress]}", fromAll("{namespaceSelector: {}}, "+job, "{port: 8200}")}, OneSidedPart, "pci/p", "spec.ingress[0].from[1]", "isolates shop/job"},
		"both ends":           {[]string{shopDenies, toVault, fromWeb}, "", "", "", ""},
		"other end is open":   {[]string{fromWeb}, "", "", "", ""},
		"some of the peers":   {[]string{shopDenies, toVault, fromAll("{namespaceSelector: {}}", "{port: 8200}")}, "", "", "", ""},
		"nothing is allowed":  {[]string{shopDenies, pciDenies}, "", "", "", ""},
		"no pods of the peer": {[]string{shopDenies, "pci/p: {podSelector: {}, ingress: [{from: [{podSelector: {}, namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: empty}}}]}]}", "empty/deny: {podSelector: {}, policyTypes: [Egress]}"}, NoMatch, "", "", ""},
		"perhaps the system":  {[]string{pciDenies, "shop/dns: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}}], ports: [{port: 53}, {port: 53, protocol: UDP}]}]}", "shop/in: {podSelector: {}, policyTypes: [Ingress]}"}, "", "", "", ""},
		"everywhere":          {[]string{pciDenies, "shop/out: {podSelector: {}, policyTypes: [Egress], egress: [{}]}"}, "", "", "", ""},
		"only itself":         {[]string{"pci/p: {podSelector: {matchLabels: {app: vault}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {}}]}]}"}, "", "", "", ""},
		"admin denies":        {[]string{fromWeb, "platform: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}, egress: [{action: Deny, to: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: pci}}}]}]}"}, OneSided, "pci/from-web", "spec.ingress[0]", "ClusterNetworkPolicy platform (spec.egress[0]) denies TCP 8200 from shop/web to pci/vault"},
		"admin accepts":       {[]string{shopDenies, "platform: {tier: Admin, priority: 1, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: pci}}}, ingress: [{action: Accept, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}]}]}"}, OneSided, "platform", "spec.ingress[0]", "NetworkPolicy shop/deny isolates"},
		"admin lets out":      {[]string{shopDenies, fromWeb, "platform: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Accept, to: [{namespaces: {}}]}]}"}, "", "", "", ""},
		"between two pods":    {[]string{"platform: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Accept, from: [{namespaces: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [pci, shop]}]}}]}]}", "none: {tier: Baseline, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{namespaces: {}}]}]}"}, OneSided, "platform", "spec.ingress[0]", "denies all ports of TCP from pci/vault to shop/job: allow it in egress of pci/vault too, or remove the rule (see: sluice explain --from pci/vault --to shop/job --port 80)"},
		"own admin denies":    {[]string{shopDenies, fromWeb, "platform: {tier: Admin, priority: 1, subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}"}, Shadowed, "", "", ""},
		"malformed other end": {[]string{"shop/deny: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.01/8}}], ports: [{port: 53}, {port: 53, protocol: UDP}]}]}", fromWeb}, Invalid, "", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			found := check(t, oneSidedCluster, tt.policies...)
			ours := slices.DeleteFunc(slices.Clone(found), func(f Finding) bool { return f.Check != OneSided && f.Check != OneSidedPart })
			if tt.object == "" {
				if len(ours) > 0 || tt.check != "" && !slices.ContainsFunc(found, func(f Finding) bool { return f.Check == tt.check }) {
					t.Errorf("found %v, want none about one side, and %q", found, tt.check)
				}
				return
			}
			if len(ours) != 1 || ours[0].Check != tt.check || !strings.HasSuffix(ours[0].Object, " "+tt.object) || ours[0].Field != tt.field || !strings.Contains(ours[0].Error(), tt.says) {
				t.Errorf("found %v, want %s of %s at %s with %q", found, tt.check, tt.object, tt.field, tt.says)
			}
		})
	}
}

// If one policy makes many rules one-sided, there is one finding, about this policy.
func TestOneSidedDoesNotFlood(t *testing.T) {
	text, policies := "namespaces: [{metadata: {name: shop}}]\npods:\n", []string{shopDenies}
	for i := range 300 {
		text += fmt.Sprintf("- {metadata: {namespace: shop, name: p%03d, labels: {app: a%d}}, status: {podIPs: [{ip: 10.0.%d.%d}]}}\n", i, i%90, i/200, i%200+1)
	}
	for i := range 90 {
		policies = append(policies, fmt.Sprintf("shop/a%02d: {podSelector: {matchLabels: {app: a%d}}, ingress: [{from: [{podSelector: {matchLabels: {app: a%d}}}, {podSelector: {matchLabels: {app: a%d}}}]}]}", i, i, (i+1)%90, (i+2)%90))
	}
	found := checkAll(t, text, policies...)
	if len(found) != 1 || found[0].Object != "NetworkPolicy shop/deny" || found[0].Field != "spec.egress" || found[0].Count != 90 || len(found[0].Error()) > 600 {
		t.Errorf("found %v", found)
	}
}

// If a policy of another namespace makes many rules one-sided, the finding is about the first of these
// rules. A rule whose policy ignores the check is not part of this finding.
func TestOneSidedOfAnotherNamespace(t *testing.T) {
	policies := []string{shopDenies}
	for i := range 6 {
		policies = append(policies, strings.Replace(strings.ReplaceAll(fromWeb, "8200", fmt.Sprint(8200+i)), "pci/from-web", fmt.Sprint("pci/from-web-", i), 1))
	}
	found := slices.DeleteFunc(check(t, oneSidedCluster, policies...), func(f Finding) bool { return f.Check != OneSided })
	if len(found) != 1 || found[0].Object != "NetworkPolicy pci/from-web-0" || found[0].Field != "spec.ingress[0]" || found[0].Count != 6 {
		t.Errorf("found %v", found)
	}
	ignored := policies[1]
	policies[1] = strings.Replace(ignored, "pci/from-web-0", "pci/left-out", 1)
	o := decodeAll(t, oneSidedCluster, policies)
	for _, p := range o.Policies {
		if p.Ref.Name == "left-out" {
			p.LintIgnore = OneSided
		}
	}
	found = slices.DeleteFunc(Check(inventory.New(o)), func(f Finding) bool { return f.Check != OneSided })
	if len(found) != 6 || found[5].Object != "NetworkPolicy pci/left-out" {
		t.Errorf("found %v", found)
	}
}

// A reported rule allows nothing: without it, the same flows between pods are allowed.
func TestOneSidedRulesAllowNothing(t *testing.T) {
	seen := make(map[string]int)
	for seed := range uint64(400) {
		d := dice{rand.New(rand.NewPCG(seed, 9))}
		o := d.objects()
		was := allowed(o)
		for _, f := range Check(inventory.New(o)) {
			if f.Check != OneSided || f.Count > 0 || strings.Contains(f.Field, ".from[") || strings.Contains(f.Field, ".to[") {
				continue
			}
			less := o
			less.Policies = withoutRule(o.Policies, f)
			seen[f.Object[:1]]++
			for flow := range allowed(less) {
				if !was[flow] {
					t.Fatalf("seed %d: without the rule, %s is allowed: %v", seed, flow, f)
				}
			}
			if now := allowed(less); len(now) != len(was) {
				t.Fatalf("seed %d: %v, but it allows %d flows", seed, f, len(was)-len(now))
			}
		}
	}
	if seen["N"] < 30 || seen["C"] < 10 {
		t.Errorf("reported only %v", seen)
	}
}

// objects returns a small random cluster.
func (d dice) objects() (o inventory.Objects) {
	for name, team := range map[string]string{"one": "x", "two": "y"} {
		o.Namespaces = append(o.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"team": team}}})
	}
	for i := range 6 {
		p := &policy.Pod{Namespace: pick(d, "one", "two"), Name: fmt.Sprint("p", i), Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)})}, Labels: labels.Set{}}
		if role := pick(d, "a", "b", "c", ""); role != "" {
			p.Labels["role"] = role
		}
		o.Pods = append(o.Pods, p)
	}
	for i := range 2 + d.IntN(5) {
		o.Policies = append(o.Policies, d.policy(fmt.Sprint("p", i)))
	}
	return o
}

// allowed returns the allowed flows between pods, at a few ports.
func allowed(o inventory.Objects) map[string]bool {
	v := inventory.New(o)
	all := make(map[string]bool)
	for _, a := range o.Pods {
		for _, b := range o.Pods {
			for _, port := range []uint16{1, 79, 80, 85, 90, 443} {
				if a != b && v.Snapshot.Decide(filter.NewKey(a.Addrs[0], b.Addrs[0], filter.TCP, port)).Action == filter.Allow {
					all[fmt.Sprint(a, b, port)] = true
				}
			}
		}
	}
	return all
}

// withoutRule returns the policies without the rule that the finding is about.
func withoutRule(policies []*policy.Policy, f Finding) (rest []*policy.Policy) {
	for _, p := range policies {
		if p.Ref.Object() == f.Object {
			less := *p
			for dir := range p.Rules {
				less.Rules[dir] = nil
				for i, r := range p.Rules[dir] {
					if f.Field != fmt.Sprintf("spec.%s[%d]", filter.Direction(dir), i) {
						less.Rules[dir] = append(less.Rules[dir], r)
					}
				}
			}
			p = &less
		}
		rest = append(rest, p)
	}
	return rest
}
