// Package lint finds what is legal in NetworkPolicies but probably not what was
// meant: it never says that a policy is wrong where it may well be right, so that
// a folder without findings can be demanded by a pipeline.
//
// It judges the policies against the pods and namespaces that it is given. About
// what these cannot tell (selectors, if there are no pods at all) it is silent.
package lint

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
	"sluice/filter/policy"
)

// The checks, by the names that a Finding carries.
const (
	SameAddress  = "same-address"  // an address that several live pods claim
	Invalid      = "invalid"       // a part that cannot be understood and allows nothing
	NoMatch      = "no-match"      // a selector that matches nothing
	NoPort       = "no-port"       // a named port that no destination has
	NoDNS        = "no-dns"        // egress is isolated, something is allowed, DNS is not
	Except       = "except"        // an exception that takes nothing, or everything, away
	HostBits     = "host-bits"     // a CIDR that is read as another one
	Covered      = "covered"       // a rule that another rule makes needless
	WithoutForce = "without-force" // rules of a direction that policyTypes leaves out
)

// Finding is one thing that is probably wrong.
type Finding struct {
	Check  string // one of the constants
	Object string // as in "NetworkPolicy default/x"
	Field  string // as in "spec.ingress[0].from[1].podSelector"
	Detail string // what is odd about it
	Hint   string // what to do if it was not meant
}

// Error is the finding in one line.
func (f Finding) Error() string {
	return f.Object + ", " + f.Field + ": " + f.Detail + ": " + f.Hint
}

// LogValue keeps the parts apart in structured logs.
func (f Finding) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("check", f.Check), slog.String("object", f.Object), slog.String("field", f.Field),
		slog.String("detail", f.Detail), slog.String("hint", f.Hint),
	)
}

// linter is what is known while linting.
type linter struct {
	namespaces map[string]*namespace
	pods       []*pod
	policies   []*pol // sorted by name
	findings   []Finding
}

// Check lints the policies. The findings come sorted by policy.
// The objects must be as the API server would have them, with its defaulting
// applied; they are not changed.
func Check(namespaces []*corev1.Namespace, pods []*policy.Pod, policies []*policy.Policy) []Finding {
	l := &linter{namespaces: make(map[string]*namespace)}
	world := policy.NewStore()
	for _, o := range namespaces {
		l.namespaces[o.Name] = newNamespace(o.Name, o.Labels)
	}
	for _, o := range pods {
		l.addPod(o)
		world.SetPod(o)
	}
	for _, o := range policies {
		world.SetPolicy(o)
		l.policies = append(l.policies, newPolicy(o))
	}
	slices.SortFunc(l.policies, func(a, b *pol) int { return cmp.Compare(a.text, b.text) })

	world.Commit() // which decides what is too much
	for _, p := range world.Problems() {
		l.findings = append(l.findings, Finding{Invalid, p.Policy.Object(), p.Field, p.Detail, p.Hint})
	}
	for _, p := range l.policies {
		l.matches(p)
		l.directions(p)
		l.dns(p)
		for d := range p.rules {
			for i := range p.rules[d] {
				l.portNames(p, &p.rules[d][i])
				l.exceptions(p, &p.rules[d][i])
				l.hostBits(p, &p.rules[d][i])
				l.covered(p, &p.rules[d][i])
			}
		}
	}
	for _, c := range world.Clashes() {
		for _, o := range c.Others {
			l.findings = append(l.findings, Finding{
				SameAddress, "Pod " + o, "status.podIPs", fmt.Sprintf("its address %s is that of the live pod %s too, which counts", c.Addr, c.Winner),
				"correct its status, or leave out the pod that is gone",
			})
		}
	}
	slices.SortStableFunc(l.findings, func(a, b Finding) int { return cmp.Compare(a.Object, b.Object) })
	return l.findings
}

func (l *linter) found(check string, p *pol, field, hint, detail string, args ...any) {
	l.findings = append(l.findings, Finding{
		Check: check, Object: p.Ref.Object(), Field: field, Detail: fmt.Sprintf(detail, args...), Hint: hint,
	})
}

// directions finds rules that policyTypes puts out of force.
func (l *linter) directions(p *pol) {
	for _, d := range []filter.Direction{filter.Ingress, filter.Egress} {
		name := [2]string{filter.Ingress: "Ingress", filter.Egress: "Egress"}[d]
		if n := p.Ignored[d]; n > 0 {
			l.found(WithoutForce, p, "spec."+d.String(), "add "+name+" to policyTypes, or remove the rules",
				"policyTypes leaves %s out, so that the %s no effect", name, plural(n, "rule has", "rules have"))
		}
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return fmt.Sprintf("%d %s", n, many)
}
