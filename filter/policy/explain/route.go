package explain

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter/policy/inventory"
	"sluice/filter/policy/near"
)

// RouteAnswer is a way from outside the cluster to a Service, such as a path of an Ingress.
type RouteAnswer struct {
	Route    string   `json:"route"` // as in "Ingress shop/web"
	Field    string   `json:"field"`
	Hosts    []string `json:"hosts,omitempty"`
	Path     string   `json:"path,omitempty"`
	Service  string   `json:"service"`
	Port     uint16   `json:"port"`
	Backends []string `json:"backends"`          // as in "shop/web port 8080"
	Senders  []string `json:"senders,omitempty"` // names of the pods that send to the backends, if they are known
	How      string   `json:"how"`               // how the senders are known, or why they are not
}

// exposuresOf returns the exposures of flows, without duplicates, in the order of the flows.
func exposuresOf(all []Explanation) (found []*inventory.Exposure) {
	for i := range all {
		for _, f := range all[i].flows() {
			if f.Via != nil && f.Via.Exposure != nil && !slices.Contains(found, f.Via.Exposure) {
				found = append(found, f.Via.Exposure)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b *inventory.Exposure) int { return strings.Compare(a.Field, b.Field) })
	return found
}

// brokenOf describes the backends that do not exist, with the reasons.
func brokenOf(all []Explanation) (texts []string) {
	for i := range all {
		for _, f := range all[i].flows() {
			if f.Via != nil {
				texts = append(texts, f.Via.Broken...)
			}
		}
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

func routeAnswers(all []Explanation) (answers []RouteAnswer) {
	for _, x := range exposuresOf(all) {
		a := RouteAnswer{
			Route: x.By.Object(), Field: x.Field, Hosts: x.Hosts, Path: x.Path, Service: x.Service, Port: x.Port,
			Backends: backendTexts(x), How: x.Senders.How,
		}
		for _, e := range x.Senders.Ends {
			a.Senders = append(a.Senders, e.Name)
		}
		answers = append(answers, a)
	}
	return answers
}

func backendTexts(x *inventory.Exposure) (texts []string) {
	for _, b := range x.Backends {
		texts = append(texts, fmt.Sprintf("%s port %d", b.Name, b.Port))
	}
	return texts
}

// routeText returns the heading of the answers about routes.
func routeText(all []Explanation) string {
	var b strings.Builder
	exposures := exposuresOf(all)
	for _, x := range exposures {
		fmt.Fprintf(&b, "%v → Service %s port %d → %s\n", x, x.Service, x.Port, near.List(backendTexts(x), maxBackends, ", "))
	}
	var seen []string
	for _, x := range exposures {
		if text := senderText(x, all); !slices.Contains(seen, text) {
			seen = append(seen, text)
			b.WriteString(text)
		}
	}
	for _, text := range brokenOf(all) {
		fmt.Fprintf(&b, "leads nowhere: %s\n", text)
	}
	b.WriteString("\n")
	return b.String()
}

// senderText names the senders of a route, or states that the answers are about the source in the
// question instead.
func senderText(x *inventory.Exposure, all []Explanation) string {
	var froms []string
	for i := range all {
		froms = append(froms, all[i].froms()...)
	}
	own := func(name string) bool {
		return slices.ContainsFunc(x.Senders.Ends, func(e *End) bool { return e.Name == name })
	}
	given := slices.DeleteFunc(froms, own)
	switch {
	case len(given) == 0:
		return fmt.Sprintf("sent by %s: %s\n", x.Senders.Name(), x.Senders.How)
	case x.Senders.Known():
		return fmt.Sprintf("note: what arrives at %s is sent by %s (%s), and not by %s\n", x.By.Object(), x.Senders.Name(), x.Senders.How, given[0])
	}
	return fmt.Sprintf("taken as sent by %s; what sends it is not known: %s\n", given[0], x.Senders.How)
}

// fromOutside returns a warning about a flow from outside the cluster to a Service, if packets from
// outside reach that Service only through a route, or with the address of a node.
func (c *Cluster) fromOutside(f Flow) []string {
	if f.Via == nil || f.Via.Exposure != nil || f.From.Pod != nil || f.From.Node {
		return nil
	}
	var routes []string
	for _, x := range c.inventory.Exposures() {
		switch {
		case x.Service != f.Via.Service || x.Port != f.Via.Port || x.Broken != "":
		case x.IsRoute():
			routes = append(routes, x.String())
		case x.Policy == "Cluster":
			return []string{fmt.Sprintf("%v has externalTrafficPolicy Cluster: a packet that arrives at another node than that of the pod has the address of that node as its source: ask also with --from node/NAME", x)}
		default:
			return nil // the source stays the client
		}
	}
	if len(routes) > 0 {
		return []string{fmt.Sprintf("nothing from outside reaches Service %s directly, but through %s: ask with --to %s",
			f.Via.Service, near.List(routes, maxEnds, ", "), argumentOf(routes[0]))}
	}
	return []string{fmt.Sprintf("nothing here leads from outside to Service %s: it is of type ClusterIP, and no Ingress or route names it", f.Via.Service)}
}

// argumentOf returns a route in the form of an argument of --to, as in "shop/ingress/web".
func argumentOf(route string) string {
	kind, name, _ := strings.Cut(route, " ")
	name, _, _ = strings.Cut(name, " ")
	namespace, name, _ := strings.Cut(name, "/")
	return namespace + "/" + strings.ToLower(kind) + "/" + name
}

// untranslated returns a note if the destination is a headless Service whose port differs from its
// targetPort.
func untranslated(f Flow) []string {
	if f.Via == nil || f.Via.Untranslated == "" {
		return nil
	}
	return []string{fmt.Sprintf("Service %s is headless: its name leads to the addresses of its pods, and port %d is not translated to its targetPort %s: ask for %s, or give the Service a cluster IP",
		f.Via.Service, f.Via.Port, f.Via.Untranslated, f.Via.Untranslated)}
}
