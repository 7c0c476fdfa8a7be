package lint

import "slices"

// Severity grades a finding by how certainly it is a mistake, and by how much it changes. A higher
// value is more severe.
type Severity uint8

// The severities.
const (
	Info    Severity = iota + 1 // worth knowing: it changes nothing, or may well be intended
	Warning                     // probably not what was intended
	Error                       // wrong: a part is refused, or has no meaning
)

// String returns the severity as text and JSON show it.
func (s Severity) String() string {
	return [...]string{"none", Info: "info", Warning: "warning", Error: "error"}[s]
}

// MarshalText returns the severity as JSON shows it.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// About describes a check.
type About struct {
	ID       string // the value of Finding.Check, which does not change from version to version
	Severity Severity
	Summary  string // what the check finds, in one line
	Ordered  bool   // the check is about ClusterNetworkPolicies
}

// Checks describes all checks, in the order in which the help lists them.
func Checks() []About {
	return []About{
		{Manifest, Error, "a part that cannot be read, or that the API server would reject", false},
		{Invalid, Error, "a part of a policy that cannot be understood and allows nothing", false},
		{SameAddress, Error, "an address that several live pods claim", false},
		{DenyWith, Error, "a value of the annotation sluice/deny-with other than drop and reject", false},
		{Log, Error, "a value of the annotation sluice/log other than denied, all and none", false},
		{APIVersion, Warning, "an API version that Kubernetes no longer has", false},
		{Empty, Warning, "a field that is present and empty in a rule, and so allows everything", false},
		{NoMatch, Warning, "a selector that matches no pod, no namespace or no node", false},
		{NoPort, Warning, "a named port that no selected pod has", false},
		{NoDNS, Warning, "egress is isolated, something is allowed, but no DNS", false},
		{OrNotAnd, Warning, "two peers, OR, where one with both selectors, AND, was probably meant", false},
		{Undeclared, Warning, "a port that no container of the selected pods declares", false},
		{Metadata, Warning, "Internet addresses in egress with the metadata address 169.254.169.254", false},
		{PodRange, Warning, "an ipBlock of addresses of pods or Services", false},
		{OneSided, Warning, "a rule of which nothing passes, as the other end does not allow it", false},
		{NoBackend, Warning, "a route to a Service, or a port of one, that does not exist", false},
		{RouteDenied, Warning, "a way from outside of which policies deny everything", false},
		{ClientAddress, Warning, "clients outside let in by addresses that nodes replace", false},
		{Except, Warning, "an exception that is outside of its cidr, or leaves nothing of it", false},
		{WithoutForce, Warning, "rules of a direction that policyTypes leaves out", false},
		{NoNamespace, Info, "a peer in a namespace that is not among the objects", false},
		{HostBits, Warning, "a CIDR with bits behind its prefix, which are ignored", false},
		{Covered, Info, "rules that allow only what another policy or rule allows already", false},
		{OneSidedPart, Info, "a peer or a port of a rule of which nothing passes, although others do", false},
		{NotIsolated, Info, "pods in a namespace with policies that no policy isolates in ingress", false},
		{Names, Error, "domain names, which are not supported", true},
		{SamePriority, Warning, "policies of a tier with equal priority and common pods", true},
		{Shadowed, Warning, "a rule that never decides: earlier ones match all that it matches", true},
		{Unreachable, Info, "Baseline rules for pods that are all isolated by NetworkPolicies", true},
	}
}

// SeverityOf returns the severity of the check with this id, or Error if there is no such check.
func SeverityOf(id string) Severity {
	all := Checks()
	if i := slices.IndexFunc(all, func(a About) bool { return a.ID == id }); i >= 0 {
		return all[i].Severity
	}
	return Error
}
