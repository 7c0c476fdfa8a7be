package inventory

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kuberoute"
	"sluice/filter/policy/near"
)

// NamesRoute reports whether text, the name of an end, is a URL or has the kind of a route in front.
func NamesRoute(text string) bool {
	if _, is := cutScheme(text); is {
		return true
	}
	parts := strings.Split(text, "/")
	if len(parts) < 2 || len(parts) > 3 {
		return false
	}
	return isRoute(kinds[strings.ToLower(parts[len(parts)-2])])
}

// isRoute reports whether objects of a kind lead from outside the cluster to Services.
func isRoute(kind string) bool {
	return kind == "Ingress" || kind == "Gateway" || strings.HasSuffix(kind, "Route")
}

// routeNamed returns the exposures of a route, or of the routes of a Gateway.
func (v *Inventory) routeNamed(kind, namespace, name string) (target, error) {
	ref := policy.Ref{Kind: kind, Namespace: namespace, Name: name}
	of := make(map[policy.Ref]bool)
	for _, r := range v.Routing.Routes {
		if r.Ref == ref || slices.ContainsFunc(r.Gateways, func(p kuberoute.Parent) bool { return p.Gateway == ref }) {
			of[r.Ref] = true
		}
	}
	var found []*Exposure
	for _, x := range v.Exposures() {
		if of[x.By] {
			found = append(found, x)
		}
	}
	switch {
	case len(found) > 0:
		return target{exposures: found}, nil
	case of[ref]:
		return target{}, fmt.Errorf("%s has no backend: ask for a Service or a pod", ref.Object())
	case kind == "Gateway" && v.gateway(ref) != nil:
		return target{}, fmt.Errorf("no route here names Gateway %s: ask for a Service or a pod", ref)
	}
	return target{}, v.noRoute(ref)
}

// noRoute returns the error for a route that does not exist. It suggests a similar name.
func (v *Inventory) noRoute(ref policy.Ref) error {
	if err := v.hidden(ref.Kind, ref.Namespace, ref.Object()); err != nil {
		return err
	}
	var all []string
	for _, r := range v.Routing.Routes {
		if r.Ref.Kind == ref.Kind {
			all = append(all, r.Ref.String())
		}
	}
	for _, g := range v.Routing.Gateways {
		if ref.Kind == g.Ref.Kind {
			all = append(all, g.Ref.String())
		}
	}
	slices.Sort(all)
	best, ok := near.Name(ref.String(), all)
	switch {
	case len(all) == 0:
		return fmt.Errorf("there is no %s, nor any other %s: ask for a Service or a pod", ref.Object(), ref.Kind)
	case ok:
		return fmt.Errorf("there is no %s: did you mean %s?", ref.Object(), best)
	}
	return fmt.Errorf("there is no %s: the names here are %s", ref.Object(), near.List(all, 8, ", "))
}

// atURL returns the exposures that take the requests for a URL or a host name. is is false if the
// text has no scheme, and no route has it as its host name.
func (v *Inventory) atURL(text string) (t target, is bool, err error) {
	rest, has := cutScheme(text)
	rest, _, _ = strings.Cut(rest, "#")
	rest, _, _ = strings.Cut(rest, "?")
	host, path, slash := strings.Cut(rest, "/")
	if before, _, port := strings.Cut(host, ":"); port {
		host = before // of the load balancer or the controller, not of the pods
	}
	host = strings.ToLower(host)
	if s, _ := v.inDNS(host); !has && (s != nil || !strings.Contains(host, ".")) {
		return target{}, false, nil
	}
	found := v.atHost(host, has)
	switch {
	case len(found) == 0 && !has:
		return target{}, false, nil
	case len(found) == 0:
		return target{}, true, fmt.Errorf("no route has the host name %s: %s", host, v.hostHint(host))
	case !slash:
		return target{exposures: found}, true, nil
	}
	if t.exposures = atPath(found, "/"+path); len(t.exposures) == 0 {
		return target{}, true, fmt.Errorf("no route of %s has a path for /%s: write one of %s", host, path, near.List(pathsOf(found), 8, ", "))
	}
	return t, true, nil
}

func cutScheme(text string) (rest string, has bool) {
	for _, scheme := range []string{"http://", "https://"} {
		if len(text) > len(scheme) && strings.EqualFold(text[:len(scheme)], scheme) {
			return text[len(scheme):], true
		}
	}
	return text, false
}

// atHost returns the exposures that take requests for a host name. It prefers those with exactly this
// name to those with a wildcard that matches it. If there are neither and the parameter any is true,
// it returns the exposures that take all host names.
func (v *Inventory) atHost(host string, any bool) []*Exposure {
	var byRank [3][]*Exposure
	for _, x := range v.Exposures() {
		switch {
		case !x.IsRoute():
		case len(x.Hosts) == 0:
			byRank[2] = append(byRank[2], x)
		case slices.ContainsFunc(x.Hosts, func(h string) bool { return strings.EqualFold(h, host) }):
			byRank[0] = append(byRank[0], x)
		case slices.ContainsFunc(x.Hosts, func(h string) bool { return x.wildcard(h, host) }):
			byRank[1] = append(byRank[1], x)
		}
	}
	switch {
	case len(byRank[0]) > 0:
		return byRank[0]
	case len(byRank[1]) > 0 || !any:
		return byRank[1]
	}
	return byRank[2]
}

// wildcard reports whether a name such as *.example.com matches a host name. The star stands for one
// label in an Ingress, and for one or more labels in other routes.
func (x *Exposure) wildcard(name, host string) bool {
	suffix, is := strings.CutPrefix(strings.ToLower(name), "*")
	label, matches := strings.CutSuffix(host, suffix)
	return is && matches && label != "" && (x.By.Kind != "Ingress" || !strings.Contains(label, "."))
}

// atPath returns the exposures whose path is the longest prefix of the given path. It compares paths
// literally, also those that are regular expressions for their controller.
func atPath(all []*Exposure, path string) (found []*Exposure) {
	longest := -1
	for _, x := range all {
		prefix := strings.TrimSuffix(x.Path, "/")
		if rest, under := strings.CutPrefix(path, prefix); !under || rest != "" && rest[0] != '/' {
			continue
		}
		if len(prefix) > longest {
			longest, found = len(prefix), nil
		}
		if len(prefix) == longest {
			found = append(found, x)
		}
	}
	return found
}

func pathsOf(all []*Exposure) (paths []string) {
	for _, x := range all {
		paths = append(paths, x.Path)
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

func (v *Inventory) hostHint(host string) string {
	var all []string
	for _, x := range v.Exposures() {
		all = append(all, x.Hosts...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	best, ok := near.Name(host, all)
	switch {
	case len(all) == 0:
		return "there are no routes with host names: ask for a Service or a pod, or for an address outside the cluster"
	case ok:
		return "did you mean " + best + "?"
	}
	return "the host names here are " + near.List(all, 8, ", ")
}

// exposureFlows returns the flows from the senders of exposures to their backends. If one of the
// sources is a pod or a node, the sources replace the known senders.
func (v *Inventory) exposureFlows(sources []*End, exposures []*Exposure) (flows []Flow, err error) {
	var broken []string
	for _, x := range exposures {
		if x.Broken != "" {
			broken = append(broken, fmt.Sprintf("%s, %s: %s", x.By.Object(), x.Field, x.Broken))
			continue
		}
		senders := sources
		if !slices.ContainsFunc(sources, (*End).sends) {
			if senders = x.Senders.Ends; len(senders) == 0 {
				return nil, fmt.Errorf("from: the pods that send what arrives at %s are not known: %s: write them as --from, as in --from ingress-nginx/app.kubernetes.io/name=ingress-nginx", x.By.Object(), x.Senders.How)
			}
		}
		flows = append(flows, v.flowsThrough(x, senders)...)
	}
	switch {
	case len(flows) == 0 && len(broken) > 0:
		return nil, errors.New("to: " + strings.Join(broken, "; "))
	case len(flows) == 0:
		return nil, errors.New("no packet can pass: the ends have no address family in common")
	}
	flows[0].Via.Broken = broken
	return flows, nil
}

// sends reports whether the end is a pod or a node, and so may be a sender of a route.
func (e *End) sends() bool { return e.Pod != nil || e.Node }

// flowsThrough returns the flows from senders to the backends of an exposure.
func (v *Inventory) flowsThrough(x *Exposure, senders []*End) (flows []Flow) {
	via := &Via{Service: x.Service, Port: x.Port, Exposure: x}
	for _, from := range senders {
		for _, b := range x.Backends {
			pair, err := v.between(from, b.End, strconv.Itoa(int(b.Port)), x.protocol)
			if err != nil {
				continue // the two have no address family in common
			}
			for _, f := range pair {
				f.Via = via
				flows = append(flows, f)
			}
		}
	}
	return flows
}

// Access states whether policies let the senders of an exposure reach its backends.
type Access uint8

// The values of Access.
const (
	Unknown Access = iota // no sender or no backend is known
	Denied                // the policies let no sender reach any of the backends
	Reached               // the policies let at least one sender reach one of the backends
)

// Access returns whether the policies let the senders of an exposure reach its backends, with a flow
// as an example. If addresses are assumed, it is enough that the policies allow the flow at one of
// the addresses that its ends may have.
func (v *Inventory) Access(x *Exposure) (Access, Flow) {
	access, first := Unknown, Flow{}
	for _, from := range x.Senders.Ends {
		for _, f := range v.flowsThrough(x, []*End{from}) {
			if v.mayPass(f, x) {
				return Reached, f
			}
			if access == Unknown {
				access, first = Denied, f
			}
		}
	}
	return access, first
}

// mayPass reports whether policies allow a flow at one or more of the addresses that its ends may have.
func (v *Inventory) mayPass(f Flow, x *Exposure) bool {
	return v.passes(f, x) || slices.ContainsFunc(v.Elsewhere(f), func(a Alternative) bool { return v.passes(a.Flow, x) })
}

// passes reports whether policies allow a flow. For a Service, a flow that is allowed because a node
// sends it to its own pod does not count: a node is the source only of packets that it forwards to
// pods of other nodes.
func (v *Inventory) passes(f Flow, x *Exposure) bool {
	d := v.Decide(f)
	return d.Action == filter.Allow && (x.IsRoute() || d.Reason != filter.OwnNode)
}
