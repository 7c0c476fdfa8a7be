package inventory

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sluice/filter/policy"
)

// Target is the result of [Inventory.Find]: the ends, the Service or the route with a name.
type Target struct {
	target
	text   string
	ranges []netip.Prefix // the ranges that text is, for addresses outside the cluster
}

// Ends returns the ends of the target; none for a Service or a route.
func (t Target) Ends() []*End { return t.ends }

// Find looks up a name; see [Question] for its forms. A name without a namespace is looked up in the
// given one. If to is true, the name is that of the destination of a flow. Only a destination may be a
// Service or a route, or have a port. Errors contain a hint.
func (v *Inventory) Find(text, namespace string, to bool) (Target, error) {
	found, err := v.find(text, namespace, to)
	switch {
	case err != nil:
		return Target{}, err
	case !to && found.port != "":
		return Target{}, fmt.Errorf("%s has a port: only the destination of a flow needs one: leave it out", text)
	case !to && found.service != nil:
		return Target{}, fmt.Errorf("%s is the Service %s, and no packet comes from there: write a pod or workload behind it", text, found.service.text())
	}
	if !to && found.exposures != nil {
		return Target{}, fmt.Errorf("%s is a way into the cluster, and no packet comes from there: write the pods of the controller", text)
	}
	return Target{found, text, rangesOf(text)}, nil
}

// rangesOf returns text as ranges if it is World, a range or an address. Otherwise it returns nil.
func rangesOf(text string) []netip.Prefix {
	if text == World {
		return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		return []netip.Prefix{p.Masked()}
	}
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
	}
	return nil
}

// All returns all pods, the nodes, and all addresses outside the cluster. Pods of the host network
// are covered by their nodes. The ends are destinations if to is true, and sources otherwise.
func (v *Inventory) All(to bool) (Target, error) {
	pods := slices.DeleteFunc(v.AllPods(), func(p *policy.Pod) bool { return p.HostNetwork })
	t := Target{text: "*"}
	if len(pods) > 0 {
		var err error
		if t.ends, err = v.group(pods, to); err != nil {
			return Target{}, err
		}
	}
	t.ends = slices.Concat(t.ends, v.NodeEnds(), v.Outside())
	return t, nil
}

// Without returns t without the ends of the others. It returns an error if no end is left. The ends
// are destinations if to is true, and sources otherwise.
func (v *Inventory) Without(t Target, others []Target, to bool) (Target, error) {
	not := v.exclusionOf(others)
	out := Target{text: t.text}
	var pods []*policy.Pod
	for _, e := range t.ends {
		if e.Pod == nil && !not.has(e) {
			out.ends = append(out.ends, e)
		}
		for _, p := range e.Pods {
			if !not.pods[p] {
				pods = append(pods, p)
			}
		}
	}
	if len(pods) > 0 {
		ends, err := v.group(pods, to)
		if err != nil {
			return Target{}, err
		}
		out.ends = append(ends, out.ends...)
	}
	if len(out.ends) == 0 {
		return Target{}, errors.New("nothing is left: exclude less")
	}
	return out, nil
}

// exclusion is the union of several targets.
type exclusion struct {
	pods   map[*policy.Pod]bool
	addrs  map[netip.Addr]bool // of the ends; used only for nodes and single addresses
	ranges []netip.Prefix      // outside the cluster
}

func (v *Inventory) exclusionOf(targets []Target) exclusion {
	x := exclusion{pods: make(map[*policy.Pod]bool), addrs: make(map[netip.Addr]bool)}
	for _, t := range targets {
		ends := t.ends
		if t.service != nil {
			ends = v.backends(t.service)
		}
		for _, exposure := range t.exposures {
			for _, b := range exposure.Backends {
				ends = append(ends, b.End)
			}
		}
		x.ranges = append(x.ranges, t.ranges...)
		for _, e := range ends {
			for _, p := range e.Pods {
				x.pods[p] = true
			}
			for _, a := range e.Addrs {
				x.addrs[a] = true
			}
		}
	}
	return x
}

// has reports whether an end that is not a pod is excluded: a range if an excluded range contains
// it, and a node or an address if one of its addresses is excluded.
func (x *exclusion) has(e *End) bool {
	if e.Range == nil {
		return slices.ContainsFunc(e.Addrs, func(a netip.Addr) bool { return x.addrs[a] })
	}
	return slices.ContainsFunc(x.ranges, func(p netip.Prefix) bool {
		return p.Bits() <= e.Range.Prefix.Bits() && p.Contains(e.Range.Prefix.Addr())
	})
}

// backends returns the endpoints of all ports of a Service.
func (v *Inventory) backends(s *service) (ends []*End) {
	for i := range s.Spec.Ports {
		for _, b := range v.behind(s, &s.Spec.Ports[i]) {
			ends = append(ends, b.end)
		}
	}
	return ends
}

// FlowsOf is like [Inventory.Flows], for targets that Find has returned. It uses only the port and
// the protocol of the question.
func (v *Inventory) FlowsOf(from, to Target, q Question) ([]Flow, error) {
	if to.exposures != nil {
		if q.Port != "" || q.Protocol != "" {
			return nil, fmt.Errorf("port: %s leads to the ports of its backends: leave out the port and the protocol", to.text)
		}
		return v.exposureFlows(from.ends, to.exposures)
	}
	if err := to.settlePort(&q); err != nil {
		return nil, err
	}
	proto, err := q.protocol()
	if err != nil {
		return nil, fmt.Errorf("protocol: %w", err)
	}
	if s, port := v.atNodePort(to.ends, q.Port, proto); s != nil {
		flows, err := v.serviceFlows(from.ends, target{service: s}, strconv.Itoa(int(port.Port)), proto)
		for _, f := range flows {
			f.Via.NodePort = uint16(port.NodePort)
		}
		return flows, err
	}
	if to.service != nil {
		return v.serviceFlows(from.ends, to.target, q.Port, proto)
	}
	return v.directFlows(from.ends, to.ends, q.Port, proto)
}

// settlePort sets the port of a question to that of the target, if the target has one. It returns an
// error if the question has another port.
func (t Target) settlePort(q *Question) error {
	if t.port == "" {
		return nil
	}
	asked, askedProto, hasProto := strings.Cut(q.Port, "/")
	own, ownProto, _ := strings.Cut(t.port, "/")
	switch {
	case q.Port == "" || asked == own && !hasProto:
		q.Port = t.port
	case asked != own || ownProto != "" && !strings.EqualFold(askedProto, ownProto):
		return fmt.Errorf("to: %s has a port, but the port is also given as %s: leave one out", t.text, q.Port)
	}
	return nil
}

// Apart replaces a flow from a pod to itself with one between two pods of the same end, if the end
// has several. Otherwise it returns f unchanged.
func (v *Inventory) Apart(f Flow) Flow {
	if f.From.Pod == nil || f.From.Pod != f.To.Pod || len(f.To.Pods) < 2 {
		return f
	}
	other, err := v.pod(f.To.Pods[1], true)
	if err != nil {
		return f
	}
	for _, a := range other.Addrs {
		if src := f.Key.SrcAddr(); a.Is4() == src.Is4() {
			f.Key = keyOf(src, a, f.Key.Protocol, f.Key.Port)
			f.To = other
			break
		}
	}
	return f
}
