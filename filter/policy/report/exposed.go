package report

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
	"sluice/filter/policy/reach"
)

// Way is a way from outside the cluster to members: through a route such as an Ingress, or through an
// external address or a node port of a Service. The controller's pods send what arrives by a route.
type Way struct {
	*inventory.Exposure
	To     []*reach.Party
	Ports  []string // of the pods, as in "TCP 8080"
	Access inventory.Access
}

// ways returns the ways to members.
func ways(r *Report, v *inventory.Inventory) (all []*Way) {
	of := make(map[*policy.Pod]*reach.Party)
	var pods []*policy.Pod
	for _, m := range r.Members {
		for _, p := range m.Pods {
			of[p], pods = m.Party, append(pods, p)
		}
	}
	for _, x := range v.ExposuresOf(pods) {
		way, here := &Way{Exposure: x}, *x
		here.Backends = nil
		for _, b := range x.Backends {
			if way.add(b, of) {
				here.Backends = append(here.Backends, b)
			}
		}
		way.Access, _ = v.Access(&here)
		if i := slices.IndexFunc(all, way.same); i >= 0 {
			all[i].Ports = append(all[i].Ports, way.Ports...)
			continue
		}
		all = append(all, way)
	}
	return all
}

// add adds the members that have pods of a backend, and the port of the backend. It reports whether
// there are such members. The map has the party of each pod of a member.
func (w *Way) add(b inventory.Backend, of map[*policy.Pod]*reach.Party) (any bool) {
	for _, p := range b.Pods {
		if of[p] == nil {
			continue
		}
		any = true
		if !slices.Contains(w.To, of[p]) {
			w.To = append(w.To, of[p])
		}
	}
	if port := fmt.Sprintf("%s %d", w.Protocol(), b.Port); any && !slices.Contains(w.Ports, port) {
		w.Ports = append(w.Ports, port)
	}
	return any
}

// same reports whether two ways differ at most in their ports.
func (w *Way) same(o *Way) bool {
	return w.String() == o.String() && w.Access == o.Access && w.sender() == o.sender() && slices.Equal(w.To, o.To)
}

// sender describes the senders of the packets to the pods.
func (w *Way) sender() string {
	if w.IsRoute() && w.Senders.Known() {
		return w.Senders.Name() + " (" + w.Senders.How + ")"
	}
	return w.Senders.How
}

// accessTexts describe what policies do to the packets of a way.
var accessTexts = map[inventory.Access]string{
	inventory.Reached: "they let it in", inventory.Denied: "they deny it", inventory.Unknown: "it is not known what sends",
}

// exposed lists the ways from outside.
func (r *Report) exposed(w *words) part {
	p := part{Heading: "Exposed: ways from outside the cluster"}
	if len(r.Ways) == 0 {
		p.Text = []sentence{{Text: "None of the Ingresses, routes and Services that were read leads to a workload of " + r.scope() + "."}}
		return p
	}
	t := table{Head: []string{"by", "to", "ports", "the pods see it sent by", "policies"}}
	for _, way := range r.Ways {
		access := text(accessTexts[way.Access])
		if way.Access == inventory.Reached && !way.IsRoute() {
			access = text("they let some or all clients in: see what can get in")
		}
		access.Warn = way.Access != inventory.Denied
		t.Rows = append(t.Rows, []cell{text(way.String()), names(w.of(way.To)...), text(strings.Join(way.Ports, ", ")), text(way.sender()), access})
	}
	p.Tables = []table{t}
	return p
}

// exposure returns a warning, in one sentence, that names the ways that policies do not deny.
func (r *Report) exposure(w *words) (all []sentence) {
	var texts []string
	for _, way := range r.Ways {
		if way.Access == inventory.Denied {
			continue
		}
		text := both(w.of(way.To)) + " by " + way.String()
		if way.Access == inventory.Unknown {
			text += " (what sends is not known)"
		}
		texts = append(texts, text)
	}
	switch {
	case len(texts) == 0:
		return nil
	case len(texts) > maxFew:
		texts = append(texts[:maxFew:maxFew], count(len(texts)-maxFew, "other way", "other ways"))
	}
	return []sentence{{Text: "Exposed to the outside: " + strings.Join(texts, "; ") + ".", Warn: true}}
}
