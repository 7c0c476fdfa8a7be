package inventory

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/filter"
	"sluice/filter/policy/near"
)

// Question describes flows in the user's terms.
type Question struct {
	// From and To name the ends: pods ("shop/web", or "web" in Namespace), workloads
	// ("deploy/web", "shop/web"), Services ("svc/db", "db.shop.svc.cluster.local:5432"; only in To),
	// routes ("ingress/web", "https://shop.example.com/cart"; only in To; From may then be empty),
	// labels ("app=web"), IP addresses, ranges, nodes ("node/n1"), all pods of a namespace
	// ("ns/shop"), or World.
	From, To string
	// Port is a number, or the name of a port of the destination, or either with a protocol, as
	// in "53/udp"; empty for ICMP.
	Port string
	// Protocol is TCP, UDP, SCTP or ICMP, in upper or lower case. Empty means TCP.
	Protocol string
	// Namespace is the namespace of names that state none; empty means default.
	Namespace string
}

// Flow is a flow that can be decided.
type Flow struct {
	From, To *End
	Key      filter.Key
	// Via is the Service or the route that the question named as the destination; nil if it
	// named neither.
	Via *Via
}

// Decide returns the verdict about a flow.
func (v *Inventory) Decide(f Flow) filter.Verdict {
	return v.Snapshot.DecideBetween(&f.Key, f.Key.SrcAddr(), f.Key.DstAddr(), f.From.Endpoint, f.To.Endpoint)
}

// Move returns a flow of another inventory as a flow of this one: between the pods with the same
// names and addresses. The address of a pod that v does not have counts as outside the cluster.
func (v *Inventory) Move(f Flow) Flow {
	f.From, f.To = v.moved(f.From), v.moved(f.To)
	return f
}

func (v *Inventory) moved(e *End) *End {
	out := *e
	if e.Pod != nil && e.Assumed {
		out.Endpoint = v.endpoints[v.pods[e.Pod.String()]]
	} else {
		out.Endpoint = v.Snapshot.Endpoint(e.Addrs[0])
	}
	return &out
}

// Flows returns the flows that a question is about: for each pair of ends that policies can tell
// apart, one flow for each address family that both ends have, IPv4 first. If the destination is
// a Service, the flows lead to its endpoints. Errors contain a hint.
func (v *Inventory) Flows(q Question) ([]Flow, error) {
	if q.Namespace == "" {
		q.Namespace = metav1.NamespaceDefault
	}
	var from Target
	to, wrong := v.Find(q.To, q.Namespace, true)
	switch {
	case wrong != nil && q.From == "" && q.To != "":
	case q.From != "" || to.exposures == nil: // a route has senders of its own
		var err error
		if from, err = v.Find(q.From, q.Namespace, false); err != nil {
			return nil, fmt.Errorf("from: %w", err)
		}
	}
	if wrong != nil {
		return nil, fmt.Errorf("to: %w", wrong)
	}
	return v.FlowsOf(from, to, q)
}

// protocol returns the protocol of the question. If Port contains it, protocol removes it from Port.
func (q *Question) protocol() (filter.Protocol, error) {
	text := q.Protocol
	if port, of, has := strings.Cut(q.Port, "/"); has {
		if text != "" && !strings.EqualFold(text, of) {
			return 0, fmt.Errorf("it is %s, but that of the port %s is another: leave one out", text, q.Port)
		}
		q.Port, text = port, of
	}
	proto, ok := filter.TCP, true
	if text != "" {
		proto, ok = filter.ParseProtocol(text)
	}
	if !ok || !proto.HasPorts() && proto != filter.ICMP {
		return 0, fmt.Errorf("%q is not supported: write TCP, UDP, SCTP or ICMP (which means ICMPv6 between IPv6 addresses)", text)
	}
	return proto, nil
}

// directFlows returns the flows between sources and destinations. It returns an error if there are
// none, or if a destination does not have the port.
func (v *Inventory) directFlows(sources, destinations []*End, port string, proto filter.Protocol) (flows []Flow, err error) {
	for _, from := range sources {
		for _, to := range destinations {
			pair, wrong := v.between(from, to, port, proto)
			if wrong != nil && err == nil {
				err = wrong
			}
			flows = append(flows, pair...)
		}
	}
	if len(flows) > 0 && !isPortError(err) {
		err = nil // the others have no address family in common
	}
	return flows, err
}

// portError is an error about the port of a question.
type portError struct{ error }

func (e portError) Unwrap() error { return e.error }

func isPortError(err error) bool {
	var p portError
	return errors.As(err, &p)
}

// between returns the flows from one end to another.
func (v *Inventory) between(from, to *End, port string, proto filter.Protocol) (flows []Flow, err error) {
	from, to = from.asNodeOf(to), to.asNodeOf(from)
	from, to = v.inFamilyOf(from, to, false), v.inFamilyOf(to, from, true)
	number, err := v.port(port, proto, to)
	if err != nil {
		return nil, portError{fmt.Errorf("port: %w", err)}
	}
	for _, src := range from.Addrs {
		for _, dst := range to.Addrs {
			if src.Is4() == dst.Is4() {
				flows = append(flows, Flow{From: from, To: to, Key: keyOf(src, dst, proto, number)})
			}
		}
	}
	if len(flows) == 0 {
		return nil, fmt.Errorf("no packet can pass: %s has only %s, %s only %s", from.Name, families(from), to.Name, families(to))
	}
	return flows, nil
}

// keyOf returns the key of a flow. Between IPv6 addresses, ICMP becomes ICMPv6.
func keyOf(src, dst netip.Addr, proto filter.Protocol, port uint16) filter.Key {
	if proto == filter.ICMP && src.Is6() {
		proto = filter.ICMPv6
	}
	return filter.NewKey(src, dst, proto, port)
}

func families(e *End) string { return familyNames[familyOf(e.Addrs[0])] }

// port returns the number of a port, which text states as a number or as a name that the destination
// gives to it.
func (v *Inventory) port(text string, proto filter.Protocol, to *End) (uint16, error) {
	if !proto.HasPorts() {
		if text != "" && text != "0" {
			return 0, fmt.Errorf("%s has no ports: leave it out", proto)
		}
		return 0, nil
	}
	if text == "" {
		return 0, fmt.Errorf("it is missing: write a number from 1 to 65535, or the name of a port of the destination")
	}
	n, err := strconv.Atoi(text)
	switch {
	case err == nil && n >= 1 && n <= 65535:
		return uint16(n), nil
	case err == nil || !nameLike(text):
		return 0, fmt.Errorf("%q is not a port: write a number from 1 to 65535, or the name of a port of the destination", text)
	case to.Node:
		return 0, fmt.Errorf("%s has a node's address, for which port names have no meaning: write the number of %q", to.Name, text)
	case to.Pod == nil:
		return 0, fmt.Errorf("%s is outside the cluster and has no port names: write the number of %q", to.Name, text)
	}
	return namedPort(to, text, proto)
}

func namedPort(to *End, text string, proto filter.Protocol) (uint16, error) {
	var have []string
	var of filter.Protocol // of a port with this name, if it has another protocol
	for _, p := range to.Endpoint.NamedPorts() {
		if p.Name == text && p.Protocol == proto {
			return p.Number, nil
		}
		if p.Name == text {
			of = p.Protocol
		}
		have = append(have, fmt.Sprintf("%s (%s %d)", p.Name, p.Protocol, p.Number))
	}
	if of != 0 {
		return 0, fmt.Errorf("%s has no %s port named %q, but one of %s: write %s/%s", to.Name, proto, text, of, text, strings.ToLower(of.String()))
	}
	if len(have) == 0 {
		return 0, fmt.Errorf("%s has no port named %q, and no other named port: write the number", to.Name, text)
	}
	return 0, fmt.Errorf("%s has no %s port named %q: write one of its names, %s, or a number", to.Name, proto, text, near.List(have, 8, ", "))
}

// nameLike reports whether text may be the name of a port: it has a letter, and only
// letters, digits and dashes.
func nameLike(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r >= 'a' && r <= 'z' }) &&
		!strings.ContainsFunc(text, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
		})
}
