package flow

import (
	"cmp"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"sluice/filter"
)

// Text returns the record as a line that people read, without the time.
func (r *Record) Text() string {
	if r.Event == LeftOut.String() {
		return fmt.Sprintf("(%d more are not shown)", r.Count)
	}
	if r.Event == Unrecorded.String() {
		what := "flows"
		if r.Missing == onlyConnections {
			what = "connections"
		}
		since, layout := r.Time.Add(-r.duration()), time.TimeOnly
		if r.duration() < 10*time.Second {
			layout = "15:04:05.000"
		}
		return fmt.Sprintf("(%s from %s to %s were not recorded)", what, since.Local().Format(layout), r.Time.Local().Format(layout))
	}
	var b strings.Builder
	b.WriteString(r.word())
	fmt.Fprintf(&b, "  %s → %s", r.From.text(r.Src), r.destination())
	if r.To != "" {
		b.WriteString(" (sent to " + r.To + ")")
	}
	for _, part := range []string{r.Why(), r.before(), r.traffic()} {
		if part != "" {
			b.WriteString("  " + part)
		}
	}
	if r.Count > 1 {
		fmt.Fprintf(&b, "  ×%d", r.Count)
	}
	return b.String()
}

// destination returns the destination with its port. An IPv6 address with a port is in brackets.
func (r *Record) destination() string {
	name, port := r.Into.text(r.Dst), r.Port()
	if r.Dst.Is6() && name == r.Dst.String() && strings.HasPrefix(port, ":") {
		name = "[" + name + "]"
	}
	return name + port
}

// Names returns the names of both ends as people read them. An end with many addresses outside the
// cluster has the name "many", followed by one of the addresses.
func (d *DenialRecord) Names() (from, to string) {
	name := func(e *End, addr netip.Addr) string {
		if d.Many && e != nil && e.Kind == WorldEnd {
			return "many (" + addr.String() + ", ...)"
		}
		return e.text(addr)
	}
	return name(d.From, d.Src), name(d.Into, d.Dst)
}

// word returns the verdict, padded with spaces to the length of the longest verdict.
func (r *Record) word() string {
	switch r.Event {
	case Denied.String():
		if r.Answer != "" {
			return "reject"
		}
		return "deny  "
	case Ended.String():
		return "end   "
	}
	return "allow "
}

// Port returns the port and the protocol as a suffix of the destination: ":80/TCP" or " ICMP".
func (r *Record) Port() string {
	switch {
	case r.Protocol == "":
		return ""
	case r.DstPort != 0:
		return ":" + strconv.Itoa(int(r.DstPort)) + "/" + r.Protocol
	case r.Transport != "":
		return " " + r.Protocol + " (" + r.Transport + ")"
	}
	return " " + r.Protocol
}

// text returns the name of an end, or its address if it has no name.
func (e *End) text(addr netip.Addr) string {
	switch {
	case e == nil && !addr.IsValid():
		return "unknown"
	case e == nil:
		return addr.String()
	case e.Kind == PodEnd:
		return e.Namespace + "/" + e.Pod
	case e.Kind == WorldEnd:
		return addr.String()
	}
	return strings.TrimSpace(cmp.Or(e.Node, e.Kind) + " (" + addr.String() + ")")
}

// Why returns the policies that have decided or, if there are none, the reason of the verdict.
func (r *Record) Why() string {
	denied := r.Event == Denied.String()
	var parts []string
	for _, side := range []struct {
		*Side
		direction string
	}{{r.Egress, "egress"}, {r.Ingress, "ingress"}} {
		switch {
		case side.Side == nil, denied && side.Action != "deny", len(side.Policies) == 0:
			continue
		case side.Rule != "":
			parts = append(parts, strings.TrimSuffix(fmt.Sprintf("%s %s %s", side.Policies[0], side.Rule, quoted(side.RuleName)), " "))
		default:
			parts = append(parts, fmt.Sprintf("%s: no rule of %s", side.direction, strings.Join(side.Policies, ", ")))
		}
	}
	if len(parts) > 0 {
		return strings.Join(parts, "; ")
	}
	return r.Reason
}

func quoted(name string) string {
	if name == "" {
		return ""
	}
	return strconv.Quote(name)
}

// before returns, for a connection that changed policies have revoked, that it is not a new one.
func (r *Record) before() string {
	switch {
	case !r.Revoked:
		return ""
	case r.Protocol == filter.TCP.String():
		return "(open connection)"
	}
	return "(open or idle connection)"
}

// traffic returns the duration of a connection that has ended, and how much its source and its destination
// have sent.
func (r *Record) traffic() string {
	var parts []string
	if r.Seconds > 0 {
		parts = append(parts, "lasted "+Rounded(r.duration()))
	}
	if r.Sent != nil && r.Received != nil {
		parts = append(parts, fmt.Sprintf("sent %s, received %s", size(r.Sent.Bytes), size(r.Received.Bytes)))
	}
	return strings.Join(parts, ", ")
}

// size writes bytes as people read them, in powers of 1000.
func size(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB", "PB"}
	v, i := float64(n), 0
	for ; v >= 1000 && i < len(units)-1; i++ {
		v /= 1000
	}
	if i == 0 || v >= 100 {
		return fmt.Sprintf("%.0f %s", v, units[i])
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// Likeness is what records have in common if one line can show them. It is comparable.
type Likeness struct {
	event, node, protocol, transport, answer, reason, to, why string
	src, dst                                                  netip.Addr
	port                                                      uint16
	revoked                                                   bool
}

// Likeness returns the likeness of a record. Records with the same likeness differ only in time, source
// port and counts. The second result is false if a record always has a line of its own.
func (r *Record) Likeness() (l Likeness, is bool) {
	switch r.Event {
	case Ended.String(), LeftOut.String(), Unrecorded.String():
		return l, false
	}
	return Likeness{
		event: r.Event, node: r.Node, protocol: r.Protocol, transport: r.Transport, answer: r.Answer, reason: r.Reason,
		to: r.To, why: r.Why(), src: r.Src, dst: r.Dst, port: r.DstPort, revoked: r.Revoked,
	}, true
}

func (r *Record) duration() time.Duration { return time.Duration(r.Seconds * float64(time.Second)) }

// Rounded returns a duration with two or three significant digits, as in "1.2ms", "3.4s" or "2m5s".
func Rounded(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		d = d.Round(100 * time.Microsecond)
	case d < time.Second:
		d = d.Round(time.Millisecond)
	case d < time.Minute:
		d = d.Round(100 * time.Millisecond)
	default:
		d = d.Round(time.Second)
	}
	return d.String()
}
