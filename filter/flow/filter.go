package flow

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"sluice/filter"
)

// Filter selects the records that fulfill the conditions of all its fields. An empty field sets no
// condition. A Filter also selects every LeftOut, and every Unrecorded with one exception: a Filter for
// denials does not select an Unrecorded that is about connections only.
type Filter struct {
	Event      string   // allowed or denied; allowed also selects the records of connections that have ended
	Namespaces []string // the source or the destination is in one of them
	From, To   []Name   // the source has one of the names in From; the destination has one of the names in To
	Ports      []Port   // the destination port is one of them
	Policies   []string // one of them decides, or passes the flow on
}

// Name is a name that a user writes for the source or the destination of flows. Several pods may have the
// same Name.
type Name struct {
	text      string
	prefix    netip.Prefix // the address or the range; the zero Prefix for other names
	namespace string       // empty: any
	name      string       // of a pod or a workload
	kind      string       // world, host or remote-node, as in End.Kind
}

// ParseName reads the name of a source or destination: "web" or "shop/web" for a pod or a workload,
// "ns/shop" for all pods of a namespace, an address or a range, world, host or remote-node. A name without
// a namespace, such as "web", is looked for in the given namespace. If namespace is empty, it is looked
// for in all namespaces.
func ParseName(text, namespace string) (Name, error) {
	n := Name{text: text}
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap().WithZone("")
		n.prefix = netip.PrefixFrom(a, a.BitLen())
		return n, nil
	}
	if p, err := netip.ParsePrefix(text); err == nil {
		n.prefix = p.Masked()
		return n, nil
	}
	switch text {
	case WorldEnd, HostEnd, RemoteNodeEnd:
		n.kind = text
		return n, nil
	}
	first, rest, qualified := strings.Cut(text, "/")
	switch {
	case text == "" || strings.Count(text, "/") > 1 || qualified && (first == "" || rest == ""):
		return Name{}, fmt.Errorf("%q is not the name of an end: write a pod or a workload, as in shop/web or web, all of a namespace, as in ns/shop, an address or a range, world, host or remote-node", text)
	case first == "ns" && qualified:
		n.namespace = rest
	case qualified:
		n.namespace, n.name = first, rest
	default:
		n.namespace, n.name = namespace, first
	}
	return n, nil
}

// matches reports whether n is a name of the end e with the address addr.
func (n *Name) matches(e *End, addr netip.Addr) bool {
	switch {
	case n.prefix.IsValid():
		return n.prefix.Contains(addr)
	case e == nil:
		return false
	case n.kind != "":
		return e.Kind == n.kind
	case e.Kind != PodEnd || n.namespace != "" && e.Namespace != n.namespace:
		return false
	}
	return n.name == "" || e.Pod == n.name || e.Workload != nil && e.Workload.Name == n.name || strings.HasPrefix(e.Pod, n.name+"-")
}

// Port is a destination port. If protocol is empty, the port is that of any protocol.
type Port struct {
	number   uint16
	protocol string
}

// ParsePort reads "80" or "53/udp".
func ParsePort(text string) (Port, error) {
	number, protocol, has := strings.Cut(text, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return Port{}, fmt.Errorf("%q is not a port: write a number from 1 to 65535, as in 80 or 53/udp", text)
	}
	p := Port{number: uint16(n)}
	if has {
		known, ok := filter.ParseProtocol(protocol)
		if !ok || !known.HasPorts() {
			return Port{}, fmt.Errorf("%q has no protocol with ports: write TCP, UDP or SCTP behind the slash", text)
		}
		p.protocol = known.String()
	}
	return p, nil
}

// Selects reports whether a record fulfills all conditions.
func (f *Filter) Selects(r *Record) bool {
	switch r.Event {
	case LeftOut.String():
		return true
	case Unrecorded.String():
		return f.Event != Denied.String() || r.Missing != onlyConnections
	}
	return f.selectsEvent(r.Event) && f.selectsNamespace(r) &&
		selectsEnd(f.From, r.From, r.Src) && selectsEnd(f.To, r.Into, r.Dst) &&
		(len(f.Ports) == 0 || slices.ContainsFunc(f.Ports, func(p Port) bool {
			return p.number == r.DstPort && (p.protocol == "" || p.protocol == r.Protocol)
		})) && f.selectsPolicy(r)
}

func (f *Filter) selectsEvent(event string) bool {
	switch f.Event {
	case "":
		return true
	case Denied.String():
		return event == f.Event
	}
	return event != Denied.String()
}

func (f *Filter) selectsNamespace(r *Record) bool {
	in := func(e *End) bool { return e != nil && slices.Contains(f.Namespaces, e.Namespace) }
	return len(f.Namespaces) == 0 || in(r.From) || in(r.Into)
}

func selectsEnd(names []Name, e *End, addr netip.Addr) bool {
	return len(names) == 0 || slices.ContainsFunc(names, func(n Name) bool { return n.matches(e, addr) })
}

// selectsPolicy reports whether a policy of the record has one of the wanted names. These are titles, such
// as "shop/db" or "admin/platform", or bare names, such as "db" or "platform".
func (f *Filter) selectsPolicy(r *Record) bool {
	if len(f.Policies) == 0 {
		return true
	}
	return slices.ContainsFunc(r.Policies(), func(title string) bool {
		_, name, _ := strings.Cut(title, "/")
		return slices.Contains(f.Policies, title) || slices.Contains(f.Policies, name)
	})
}
