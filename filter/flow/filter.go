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
	Ports      []Port   // the destination port, or that of the Service, is one of them
	Policies   []string // one of them decides, or passes the flow on
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

// IsEmpty reports whether there are no conditions.
func (f *Filter) IsEmpty() bool {
	return f.Event == "" && len(f.Namespaces)+len(f.From)+len(f.To)+len(f.Ports)+len(f.Policies) == 0
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
		selectsEnd(f.From, r.From, r.Src) && f.selectsDestination(r) && f.selectsPolicy(r)
}

// selectsDestination compares the destination and the port. For a flow to a Service, it also compares the
// address and the port of the Service: those to which the client has sent.
func (f *Filter) selectsDestination(r *Record) bool {
	if len(f.To)+len(f.Ports) == 0 {
		return true
	}
	addr, port := r.sentTo()
	return (selectsEnd(f.To, r.Into, r.Dst) || addr.IsValid() && selectsEnd(f.To, nil, addr)) &&
		(len(f.Ports) == 0 || slices.ContainsFunc(f.Ports, func(p Port) bool {
			return (p.number == r.DstPort || p.number == port) && (p.protocol == "" || p.protocol == r.Protocol)
		}))
}

// sentTo returns the address and the port of r.To. They are zero if r.To is empty, and the port is 0 if r.To
// has none.
func (r *Record) sentTo() (addr netip.Addr, port uint16) {
	if at, err := netip.ParseAddrPort(r.To); err == nil {
		return at.Addr(), at.Port()
	}
	addr, _ = netip.ParseAddr(r.To)
	return addr, 0
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
