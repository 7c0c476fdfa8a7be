package main

import (
	"encoding/json"
	"strings"

	"sluice/filter"
	"sluice/filter/event"
)

// logLine is a line of the agent's log in JSON. A line about another event than a verdict has only the
// first two fields.
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

// readLogLine returns the flow in a line of the agent's log. isFlow is false if the line is from a log,
// but has no flow: it is about another event, or about a packet whose addresses or port could not be
// read. If the line is not from a log, f is nil and isFlow is true.
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

// isPodName reports whether a name in the log has the form "namespace/name" of pods. The name of the
// node does not have it.
func isPodName(name string) bool { return strings.Count(name, "/") == 1 }
