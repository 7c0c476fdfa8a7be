package report

import (
	"encoding/json"
	"fmt"
	"strings"

	"sluice/filter"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// The JSON form. Peers are names of parties.
type (
	jsonReport struct {
		Scope   []string `json:"scope"` // namespaces; empty for all
		Date    string   `json:"date,omitempty"`
		Inputs  string   `json:"inputs,omitempty"` // digest of the objects that were read
		Version string   `json:"version,omitempty"`
		Source  []string `json:"source"`
		Read    []string `json:"read"`
		Missing []string `json:"missing"` // what was not read, not understood or left out
		Ended   []string `json:"ended"`   // pods of the scope that have ended
		Summary []string `json:"summary"`

		Warnings  []string     `json:"warnings"` // the sentences of Summary that are warnings
		Workloads []jsonMember `json:"workloads"`
		Within    []jsonRow    `json:"within"`   // between workloads of the scope
		Exposed   []jsonWay    `json:"exposed"`  // ways from outside the cluster
		Policies  []jsonPolicy `json:"policies"` // the policies that decide about workloads of the scope
		Notes     []string     `json:"notes"`    // what the answers depend on
		Parties   []jsonParty  `json:"parties"`
	}
	jsonPolicy struct {
		Policy       string   `json:"policy"`
		Tier         string   `json:"tier"`
		Ingress      []string `json:"ingress"`      // workloads
		Egress       []string `json:"egress"`       // workloads
		IngressRules []int    `json:"ingressRules"` // indexes of the rules that let something pass, from 0
		EgressRules  []int    `json:"egressRules"`
		Place        string   `json:"place,omitempty"`
	}
	jsonWay struct {
		By      string   `json:"by"`       // as in "Ingress shop/web"
		Through string   `json:"requests"` // as in "shop.example.com/cart", "NodePort 30080"
		Service string   `json:"service"`
		To      []string `json:"to"`
		Ports   []string `json:"ports"`  // of the pods
		Sender  string   `json:"sender"` // of the packets to the pods
		Access  string   `json:"access"` // "allow", "deny", or "unknown"
	}
	jsonMember struct {
		Name    string   `json:"name"`
		Ingress jsonSide `json:"ingress"`
		Egress  jsonSide `json:"egress"`
	}
	jsonSide struct {
		Isolated    bool       `json:"isolated"`
		IsolatedBy  []string   `json:"isolatedBy"`
		OrderedBy   []string   `json:"orderedBy"`             // policies of the tiers Admin and Baseline that may decide about the side
		HostNetwork bool       `json:"hostNetwork,omitempty"` // policies do not apply
		Open        []jsonRow  `json:"open"`
		Closed      []jsonShut `json:"closed"`
		// ClosedWithin has other workloads of the scope that are closed, only for ingress.
		ClosedWithin []jsonShut `json:"closedWithin,omitempty"`
	}
	jsonRow struct {
		Peers     []string    `json:"peers"`
		To        []string    `json:"to,omitempty"` // only for rows within the scope: the destinations, while Peers are the sources
		Ports     []string    `json:"ports"`        // as in "TCP 80", "UDP 8000-8100", "ICMP"
		Verdict   string      `json:"verdict"`      // "allow"; "mixed": for one address family; "depends": on addresses that are not known
		Condition string      `json:"condition,omitempty"`
		OwnNode   bool        `json:"ownNode,omitempty"` // only between pods and the node on which they run
		Rules     []jsonRule  `json:"rules"`             // of the workload's policies
		Why       string      `json:"why"`
		OtherEnds []jsonOther `json:"otherEnds"` // the reasons for which the policies of the peers allow the row
	}
	jsonOther struct {
		Peers []string   `json:"peers"`
		Rules []jsonRule `json:"rules"`
		Why   string     `json:"why"`
	}
	jsonRule struct {
		Policy    string `json:"policy"`
		Tier      string `json:"tier"`
		Direction string `json:"direction"`
		Rule      int    `json:"rule"` // from 0
		Name      string `json:"name,omitempty"`
		Place     string `json:"place,omitempty"` // file and line
	}
	jsonShut struct {
		Peers   []string `json:"peers"`
		Why     string   `json:"why"`
		ByPeers bool     `json:"byPeers"` // at some ports, only policies of the peers deny the flows
	}
	jsonParty struct {
		Name      string   `json:"name"`
		Kind      string   `json:"kind"` // "pods", "host-network", "nodes" or "outside"
		Namespace string   `json:"namespace,omitempty"`
		Workload  string   `json:"workload,omitempty"` // as in "Deployment shop/web"
		Pods      []string `json:"pods,omitempty"`
		Nodes     []string `json:"nodes,omitempty"`
		Ranges    []string `json:"ranges,omitempty"`
		Assumed   bool     `json:"addressesNotKnown,omitempty"`
	}
)

// JSON returns the report as JSON, with the names of all peers.
func (r *Report) JSON() (string, error) {
	w := newWords(r)
	o := &r.options
	j := jsonReport{
		Scope: listed(o.Namespaces), Date: o.Date, Inputs: o.Inputs, Version: o.Version, Source: listed(o.Source), Read: listed(o.Read), Missing: listed(r.missing()), Ended: listed(r.ended),
		Summary: []string{}, Warnings: []string{}, Workloads: []jsonMember{}, Within: []jsonRow{}, Exposed: []jsonWay{}, Policies: []jsonPolicy{}, Notes: []string{},
	}
	for _, s := range r.summary(w) {
		if j.Summary = append(j.Summary, s.Text); s.Warn {
			j.Warnings = append(j.Warnings, s.Text)
		}
	}
	for _, m := range r.Members {
		j.Workloads = append(j.Workloads, jsonMember{m.Name, r.jsonSide(m, m.In), r.jsonSide(m, m.Out)})
	}
	for _, l := range r.Within {
		row := r.jsonRow(l.Row)
		row.To = partyNames(l.To)
		j.Within = append(j.Within, row)
	}
	for _, way := range r.Ways {
		access := map[inventory.Access]string{inventory.Reached: reach.Allow.String(), inventory.Denied: reach.Deny.String(), inventory.Unknown: "unknown"}[way.Access]
		j.Exposed = append(j.Exposed, jsonWay{way.By.Object(), way.Requests(), way.Service, partyNames(way.To), way.Ports, way.sender(), access})
	}
	for _, e := range r.evidences() {
		in, out := filter.Ingress, filter.Egress
		j.Policies = append(j.Policies, jsonPolicy{
			e.policy, e.tier.String(), listed(partyNames(e.members[in])), listed(partyNames(e.members[out])),
			listed(e.decisions[in]), listed(e.decisions[out]), r.policyPlace(e),
		})
	}
	for _, s := range r.limits().Text {
		j.Notes = append(j.Notes, s.Text)
	}
	for _, p := range r.parties {
		j.Parties = append(j.Parties, jsonPartyOf(p))
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(j); err != nil {
		return "", fmt.Errorf("encode the report: %w", err)
	}
	return b.String(), nil
}

// listed returns a list that JSON writes as [] if it is empty.
func listed[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (r *Report) jsonSide(m *Member, s *Side) jsonSide {
	j := jsonSide{
		Isolated: s.Isolated(), IsolatedBy: listed(s.Isolating), OrderedBy: listed(s.Ordered), HostNetwork: m.Kind == reach.HostPods,
		Open: []jsonRow{}, Closed: []jsonShut{},
	}
	for _, row := range s.Open {
		j.Open = append(j.Open, r.jsonRow(row))
	}
	for _, shut := range s.Closed {
		j.Closed = append(j.Closed, jsonShut{partyNames(shut.Peers), shut.Why, shut.ByPeers})
	}
	for _, shut := range s.ClosedWithin {
		j.ClosedWithin = append(j.ClosedWithin, jsonShut{partyNames(shut.Peers), shut.Why, shut.ByPeers})
	}
	return j
}

func (r *Report) jsonRow(row *Row) jsonRow {
	j := jsonRow{
		Peers: partyNames(row.Peers), Verdict: row.Verdict.String(), Condition: row.Condition, OwnNode: row.OwnNode,
		Rules: r.jsonRules(row.Rules), Why: row.Why, OtherEnds: []jsonOther{},
	}
	for _, s := range row.Ports {
		j.Ports = append(j.Ports, s.String())
	}
	for _, o := range row.Others {
		if o.Why != "" {
			j.OtherEnds = append(j.OtherEnds, jsonOther{partyNames(o.Peers), r.jsonRules(o.Rules), o.Why})
		}
	}
	return j
}

func (r *Report) jsonRules(rules []filter.Rule) []jsonRule {
	list := []jsonRule{}
	for _, one := range rules {
		list = append(list, jsonRule{one.PolicyTitle(), one.Tier.String(), one.Direction.String(), one.Index, one.Name, r.place(one)})
	}
	return list
}

func (r *Report) place(rule filter.Rule) string {
	if r.options.Place == nil {
		return ""
	}
	return r.options.Place(rule)
}

func jsonPartyOf(p *reach.Party) jsonParty {
	j := jsonParty{Name: p.Name, Kind: p.Kind.String(), Namespace: p.Namespace, Nodes: p.Nodes, Assumed: p.Assumed}
	if p.Workload.Name != "" {
		j.Workload = p.Workload.Object()
	}
	for _, pod := range p.Pods {
		j.Pods = append(j.Pods, pod.String())
	}
	for _, one := range p.Ranges {
		j.Ranges = append(j.Ranges, one.String())
	}
	return j
}
