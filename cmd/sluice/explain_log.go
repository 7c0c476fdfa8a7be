package main

import (
	"encoding/json"
	"strings"

	"sluice/filter"
	"sluice/filter/event"
)

// logLine is a line of the agent's log in JSON. Lines of other events have only the first two
// fields.
type logLine struct {
	Msg       *string    `json:"msg"`
	Event     event.Name `json:"event"`
	Verdict   string     `json:"verdict"`
	Src       string     `json:"src"`
	Dst       string     `json:"dst"`
	Protocol  string     `json:"proto"`
	Port      portText   `json:"dport"`
	Transport string     `json:"transport"`
	From      string     `json:"from"` // the pod with the address Src; empty if it is not a pod
	To        string     `json:"to"`
}

// readLogLine returns the flow of a line of the agent's log. If the line is not of a log, the
// flow is nil. isFlow is false for a line of a log that is about no flow: another event, or a
// packet whose addresses or port could not be read.
func readLogLine(text []byte) (f *flowLine, isFlow bool) {
	var l logLine
	if json.Unmarshal(text, &l) != nil || l.Msg == nil {
		return nil, true
	}
	if l.Event != event.Verdict || l.Src == "" || l.Dst == "" || l.Transport != "" {
		return nil, false
	}
	f = &flowLine{From: l.From, To: l.To, Port: l.Port, Protocol: l.Protocol, logged: l.Verdict}
	if !isPodName(f.From) {
		f.From = l.Src
	}
	if !isPodName(f.To) {
		f.To = l.Dst
	}
	if f.Protocol == filter.ICMPv6.String() {
		f.Protocol = filter.ICMP.String()
	}
	return f, true
}

// isPodName reports whether a name in the log is that of a pod, "namespace/name", and not of the
// node.
func isPodName(name string) bool { return strings.Count(name, "/") == 1 }
