package main

import (
	"net/netip"
	"strconv"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/flow/flowfile"
)

// questionAbout returns the question about a flow that an agent has seen. It returns nil if the flow is
// not an attempt to connect, or if its addresses or its port could not be read. It also returns nil for
// the end of a connection, whose begin is another line.
func questionAbout(f *flowfile.Flow) *flowLine {
	if f.Skip != "" || f.Event != flow.Opened.String() && f.Event != flow.Denied.String() || f.Transport != "" {
		return nil
	}
	q := &flowLine{From: endText(f.From, f.Src), To: endText(f.Into, f.Dst), Protocol: f.Protocol, logged: filter.Deny.String()}
	if q.From == "" || q.To == "" {
		return nil
	}
	if f.Event == flow.Opened.String() {
		q.logged = filter.Allow.String()
	}
	if f.DstPort != 0 {
		q.Port = portText(strconv.Itoa(int(f.DstPort)))
	}
	if q.Protocol == filter.ICMPv6.String() {
		q.Protocol = filter.ICMP.String()
	}
	return q
}

// endText returns an end in the form of a question: the name of a pod or, if it is not known, of its
// workload; the address of any other end.
func endText(e *flow.End, addr netip.Addr) string {
	switch {
	case e != nil && e.Pod != "":
		return e.Namespace + "/" + e.Pod
	case e != nil && e.Kind == flow.PodEnd && e.Workload != nil:
		return e.Namespace + "/" + e.Workload.Name
	case addr.IsValid():
		return addr.String()
	}
	return ""
}
