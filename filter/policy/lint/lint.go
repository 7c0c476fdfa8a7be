// Package lint finds parts of NetworkPolicies that are legal, but probably not as intended.
// It reports nothing that is often intended, so that a pipeline can require manifests
// without findings.
//
// It checks the policies against the given pods and namespaces, and skips checks for which
// they do not suffice: without pods, for example, it does not check selectors.
package lint

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
	"sluice/filter/policy"
)

// The checks: the values of Finding.Check.
const (
	SameAddress  = "same-address"  // an address that several live pods claim
	Invalid      = "invalid"       // a part that is not understood and therefore allows nothing
	NoMatch      = "no-match"      // a selector that matches nothing
	NoPort       = "no-port"       // a named port that no destination has
	NoDNS        = "no-dns"        // policies isolate egress and allow something, but not DNS
	Except       = "except"        // an exception that excludes nothing, or everything
	HostBits     = "host-bits"     // a CIDR with host bits, which have no effect
	Covered      = "covered"       // a rule that another rule makes redundant
	WithoutForce = "without-force" // rules of a direction that policyTypes does not include
	SamePriority = "same-priority" // policies of a tier whose order the API leaves open
	Shadowed     = "shadowed"      // a rule that never decides, because an earlier one does
	Unreachable  = "unreachable"   // rules of the tier Baseline for pods that are all isolated
	DenyWith     = "deny-with"     // an unknown value of the annotation sluice/deny-with
	Names        = "names"         // domain names, which are not supported
)

// Finding is a part of a policy that is probably wrong.
type Finding struct {
	Check  string // one of the constants above
	Object string // as in "NetworkPolicy default/x"
	Field  string // as in "spec.ingress[0].from[1].podSelector"
	Detail string // what is unusual
	Hint   string // how to correct it
}

// Error formats the finding in one line.
func (f Finding) Error() string {
	return f.Object + ", " + f.Field + ": " + f.Detail + ": " + f.Hint
}

// LogValue logs the parts of the finding as separate attributes.
func (f Finding) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("check", f.Check), slog.String("object", f.Object), slog.String("field", f.Field),
		slog.String("detail", f.Detail), slog.String("hint", f.Hint),
	)
}

// linter is the state of one Check.
type linter struct {
	namespaces map[string]*namespace
	pods       []*pod
	nodes      []*policy.Node
	policies   []*lintPolicy // sorted by name
	order      []*lintPolicy // those with ordered rules; see inOrder
	findings   []Finding
}

// Check lints the policies. The findings are sorted by policy. The objects must be
// complete, with the API server's defaulting applied. Check does not modify them.
func Check(namespaces []*corev1.Namespace, pods []*policy.Pod, nodes []*policy.Node, policies []*policy.Policy) []Finding {
	l := &linter{namespaces: make(map[string]*namespace), nodes: nodes}
	store := policy.NewStore()
	for _, o := range namespaces {
		l.namespaces[o.Name] = newNamespace(o.Name, o.Labels)
		if _, wrong := policy.NamespaceDenial(o.Name, o.Annotations); wrong != nil {
			l.findings = append(l.findings, Finding{DenyWith, wrong.Policy.Object(), wrong.Field, wrong.What(), wrong.Hint})
		}
	}
	for _, o := range pods {
		l.addPod(o)
		store.SetPod(o)
	}
	for _, o := range policies {
		store.SetPolicy(o)
		l.policies = append(l.policies, newPolicy(o))
	}
	slices.SortFunc(l.policies, func(a, b *lintPolicy) int { return cmp.Compare(a.text, b.text) })

	store.Commit() // so that Problems includes the policies that are too large
	for _, p := range store.Problems() {
		check := Invalid
		switch {
		case strings.HasSuffix(p.Field, ".domainNames"):
			check = Names
		case p.Field == policy.DenyWithField:
			check = DenyWith
		}
		l.findings = append(l.findings, Finding{check, p.Policy.Object(), p.Field, p.What(), p.Hint})
	}
	for _, p := range l.policies {
		l.matches(p)
		l.priority(p)
		l.isolated(p)
		l.directions(p)
		l.dns(p)
		for d := range p.rules {
			for i := range p.rules[d] {
				l.portNames(p, &p.rules[d][i])
				l.exceptions(p, &p.rules[d][i])
				l.hostBits(p, &p.rules[d][i])
				l.covered(p, &p.rules[d][i])
				l.shadowed(p, &p.rules[d][i])
			}
		}
	}
	for _, c := range store.Clashes() {
		for _, o := range c.Others {
			l.findings = append(l.findings, Finding{
				SameAddress, "Pod " + o, "status.podIPs", fmt.Sprintf("its address %s also belongs to the live pod %s, which takes precedence", c.Addr, c.Winner),
				"correct its status, or remove the pod that no longer exists",
			})
		}
	}
	slices.SortStableFunc(l.findings, func(a, b Finding) int { return cmp.Compare(a.Object, b.Object) })
	return l.findings
}

func (l *linter) found(check string, p *lintPolicy, field, hint, detail string, args ...any) {
	l.findings = append(l.findings, Finding{
		Check: check, Object: p.Ref.Object(), Field: field, Detail: fmt.Sprintf(detail, args...), Hint: hint,
	})
}

// directions reports rules that have no effect because of policyTypes.
func (l *linter) directions(p *lintPolicy) {
	for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
		name := [2]string{filter.Ingress: "Ingress", filter.Egress: "Egress"}[d]
		if n := p.Ignored[d]; n > 0 {
			l.found(WithoutForce, p, "spec."+d.String(), "add "+name+" to policyTypes, or remove the rules",
				"policyTypes does not include %s, so the %s no effect", name, plural(n, "rule has", "rules have"))
		}
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return fmt.Sprintf("%d %s", n, many)
}
