package telemetry

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"sluice/filter"
	"sluice/filter/policy"
)

// index writes the page with links to the other debugging pages.
func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	fmt.Fprint(w, `<!doctype html><title>sluice</title><h1>sluice</h1><ul>
<li><a href="/debug/status">status</a>: what sluice status shows
<li><a href="/debug/snapshot">snapshot</a>: how many policies and pods are in force
<li>/debug/endpoint?ip=ADDRESS or <a href="/debug/endpoint">?pod=NAMESPACE/NAME</a>: the policies and IDs of one pod, or the ID of an address without a pod
<li><a href="/debug/pprof/">pprof</a>: profiles of the agent
<li><a href="/metrics">metrics</a>, <a href="/healthz">healthz</a>, <a href="/readyz">readyz</a>
</ul>
`)
}

// writeSnapshot writes the number and the size of the snapshot in force.
func writeSnapshot(w http.ResponseWriter, s *State) {
	if s.Snapshot == nil {
		http.Error(w, "nothing is in force yet", http.StatusServiceUnavailable)
		return
	}
	c := s.Snapshot.Counts()
	writeJSON(w, map[string]any{
		"number": s.Snapshot.Number(), "published": s.Published, "policies": c.Policies, "pods": c.Pods,
		"namespaces": c.Namespaces, "endpoints": c.Endpoints, "classes": c.Classes, "groups": c.PolicySets, "tiers": tierCounts(c),
	})
}

// endpoint is one endpoint as /debug/endpoint shows it.
type endpoint struct {
	Endpoint  string       `json:"endpoint"` // "namespace/name", or "node"
	Addresses []netip.Addr `json:"addresses"`
	// IDs are the IDs of the addresses. Policies cannot tell addresses with the same ID apart.
	IDs        []policy.ID `json:"ids"`
	Egress     []string    `json:"egress"`  // policies that isolate the endpoint in egress; null if there are none
	Ingress    []string    `json:"ingress"` // policies that isolate the endpoint in ingress; null if there are none
	NamedPorts []string    `json:"namedPorts"`

	EgressTiers  []tierPolicies `json:"egressTiers"` // in the order of their evaluation
	IngressTiers []tierPolicies `json:"ingressTiers"`
}

// tierPolicies is the policies of one tier that decide about an endpoint, in their order.
type tierPolicies struct {
	Tier     string   `json:"tier"`
	Policies []string `json:"policies"` // "default/db", or "admin/platform"
}

// outside is an address without an endpoint, as /debug/endpoint shows it: neither a pod nor this node has it.
type outside struct {
	Addresses []netip.Addr `json:"addresses"` // only this address
	IDs       []policy.ID  `json:"ids"`       // its ID; a list, as in endpoint
	Prefix    string       `json:"prefix"`    // the longest prefix that policies name and that contains the address; "" if there is none
	Pending   bool         `json:"pending"`   // a pod will probably have the address, and packets may be held for it
}

// outsideOf describes an address without an endpoint.
func outsideOf(s *policy.Snapshot, a netip.Addr) outside {
	_, id := s.Identify(a)
	out := outside{Addresses: []netip.Addr{a}, IDs: []policy.ID{id}, Pending: s.Pending(a) != policy.Known}
	if longest, ok := s.LongestPrefix(netip.PrefixFrom(a, a.BitLen())); ok {
		out.Prefix = longest.Prefix.String()
	}
	return out
}

// writeEndpoint writes the endpoint or the address that the query names.
func writeEndpoint(w http.ResponseWriter, r *http.Request, s *policy.Snapshot) {
	if s == nil {
		http.Error(w, "nothing is in force yet", http.StatusServiceUnavailable)
		return
	}
	ip, pod := r.FormValue("ip"), r.FormValue("pod")
	if (ip == "") == (pod == "") {
		http.Error(w, "give ?ip=ADDRESS or ?pod=NAMESPACE/NAME", http.StatusBadRequest)
		return
	}
	var found *policy.Endpoint
	if ip != "" {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			http.Error(w, "ip: write an IP address, such as 192.0.2.1", http.StatusBadRequest)
			return
		}
		addr = addr.Unmap().WithZone("")
		if found = s.Endpoint(addr); found == nil {
			writeJSON(w, outsideOf(s, addr))
			return
		}
	}
	out := endpoint{Addresses: []netip.Addr{}, NamedPorts: []string{}}
	for addr, e := range s.Endpoints() {
		if pod != "" && e.String() == pod || found != nil && e.String() == found.String() {
			found = e
			out.Addresses = append(out.Addresses, addr)
		}
	}
	if found == nil {
		http.Error(w, fmt.Sprintf("no pod is known as %q", pod), http.StatusNotFound)
		return
	}
	slices.SortFunc(out.Addresses, netip.Addr.Compare)
	for _, a := range out.Addresses {
		_, id := s.Identify(a)
		out.IDs = append(out.IDs, id)
	}
	out.Endpoint = found.String()
	out.Egress, out.Ingress = found.Policies(filter.Egress, policy.NetworkPolicy), found.Policies(filter.Ingress, policy.NetworkPolicy)
	out.EgressTiers, out.IngressTiers = tiersOf(found, filter.Egress), tiersOf(found, filter.Ingress)
	for _, p := range found.NamedPorts() {
		out.NamedPorts = append(out.NamedPorts, fmt.Sprintf("%s=%d/%s", p.Name, p.Number, p.Protocol))
	}
	writeJSON(w, out)
}

func tiersOf(e *policy.Endpoint, d filter.Direction) []tierPolicies {
	found := []tierPolicies{} // [] in JSON, not null
	for t := policy.Admin; t < filter.NumTiers; t++ {
		names := e.Policies(d, t)
		if len(names) == 0 {
			continue
		}
		of := tierPolicies{Tier: t.String()}
		for _, name := range names {
			of.Policies = append(of.Policies, filter.PolicyTitle(t, name))
		}
		found = append(found, of)
	}
	return found
}
