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

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

// The checks: the values of Finding.Check.
const (
	SameAddress  = "same-address"     // an address that several live pods claim
	Invalid      = "invalid"          // a part that cannot be understood and therefore allows nothing
	NoMatch      = "no-match"         // a selector that matches nothing
	NoNamespace  = "no-namespace"     // a peer in a namespace that does not exist
	NoPort       = "no-port"          // a named port that no destination has
	NoDNS        = "no-dns"           // policies isolate egress and allow something, but not DNS
	Except       = "except"           // an exception that excludes nothing, or everything
	HostBits     = "host-bits"        // a CIDR with host bits, which have no effect
	Covered      = "covered"          // a rule that another rule makes redundant
	WithoutForce = "without-force"    // rules of a direction that policyTypes does not include
	SamePriority = "same-priority"    // policies of a tier whose order the API leaves open
	Shadowed     = "shadowed"         // a rule that never decides, because an earlier one does
	Unreachable  = "unreachable"      // rules of the tier Baseline for pods that are all isolated
	DenyWith     = "deny-with"        // an unknown value of the annotation sluice/deny-with
	Log          = "log"              // an unknown value of the annotation sluice/log
	Names        = "names"            // domain names as peers, which Sluice does not support
	OrNotAnd     = "or-not-and"       // two peers of a rule where one peer with both selectors was probably meant
	Undeclared   = "undeclared-port"  // a port that no container of the selected pods declares
	Metadata     = "metadata-address" // a range of Internet addresses that contains the metadata address
	PodRange     = "pod-address"      // an ipBlock of addresses of pods or Services
	NotIsolated  = "not-isolated"     // pods that no policy isolates
	OneSided     = "one-sided"        // a rule; the other end allows none of its flows
	OneSidedPart = "one-sided-part"   // a peer or a port of a rule; the other end allows none of its flows

	// Checks of ways from outside the cluster.
	NoBackend     = "no-backend"     // a route to a Service, or to a port of a Service, that does not exist
	RouteDenied   = "route-denied"   // a way from outside on which the policies of the pods deny everything
	ClientAddress = "client-address" // a Service whose policies allow clients, although the packets of clients arrive with the address of a node

	// Findings of the reader of manifests; Check does not return them.
	Manifest   = "manifest"    // a part that cannot be read, or that the API server would reject
	APIVersion = "api-version" // an API version that Kubernetes no longer serves, and that Sluice still reads
	Empty      = "empty"       // a field of a rule that is present but empty: the API server drops such fields
)

// Finding is a part of a policy that is probably wrong.
type Finding struct {
	Check  string // one of the constants above
	Object string // as in "NetworkPolicy default/x"
	Field  string // as in "spec.ingress[0].from[1].podSelector"
	Detail string // what is unusual
	Hint   string // how to correct it
	Count  int    // number of rules or pods that the finding is about; 0 if it is about one
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

// Check lints the policies of an inventory, and sorts the findings by object. It treats a workload
// without pods as a pod of its template.
func Check(v *inventory.Inventory) []Finding {
	l := &linter{namespaces: make(map[string]*namespace), nodes: v.Nodes}
	for _, o := range v.Namespaces {
		l.namespaces[o.Name] = newNamespace(o.Name, o.Labels)
	}
	for _, o := range v.AllPods() {
		l.addPod(o, v.WorkloadOf(o))
	}
	for _, o := range v.Policies {
		l.policies = append(l.policies, newPolicy(o))
	}
	slices.SortFunc(l.policies, func(a, b *lintPolicy) int { return cmp.Compare(a.text, b.text) })
	l.problems(v)
	for _, p := range l.policies {
		l.policy(p, v)
		l.podAddresses(p, v)
	}
	l.covered()
	l.notIsolated(v)
	l.oneSided(v)
	l.routes(v)
	l.clashes(v)
	slices.SortStableFunc(l.findings, func(a, b Finding) int { return cmp.Compare(a.Object, b.Object) })
	return l.findings
}

// policy runs the checks that are about a single policy.
func (l *linter) policy(p *lintPolicy, v *inventory.Inventory) {
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
			l.orNotAnd(p, &p.rules[d][i])
			l.undeclared(p, &p.rules[d][i])
			l.metadata(p, &p.rules[d][i], v)
			l.shadowed(p, &p.rules[d][i])
		}
	}
}

// problems reports the parts of policies and annotations that cannot be understood.
func (l *linter) problems(v *inventory.Inventory) {
	for _, p := range v.Problems {
		check := Invalid
		switch {
		case strings.HasSuffix(p.Field, ".domainNames"):
			check = Names
		case p.Field == policy.DenyWithField:
			check = DenyWith
		case p.Field == policy.LogField:
			check = Log
		}
		l.findings = append(l.findings, Finding{Check: check, Object: p.Policy.Object(), Field: p.Field, Detail: p.What(), Hint: p.Hint})
	}
}

// clashes reports addresses that several pods claim.
func (l *linter) clashes(v *inventory.Inventory) {
	for _, c := range v.Clashes {
		for _, o := range c.Others {
			l.findings = append(l.findings, Finding{
				Check: SameAddress, Object: "Pod " + o, Field: "status.podIPs",
				Detail: fmt.Sprintf("its address %s also belongs to the live pod %s, which takes precedence", c.Addr, c.Winner),
				Hint:   "correct its status, or remove the pod that no longer exists",
			})
		}
	}
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
