package flowfile

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"sluice/filter"
	"sluice/filter/event"
	"sluice/filter/flow"
)

// logLine is a line of the agent's log in JSON. A line about another event than a verdict has only the
// first three fields.
type logLine struct {
	Time      time.Time   `json:"time"`
	Msg       *string     `json:"msg"`
	Event     event.Name  `json:"event"`
	Verdict   string      `json:"verdict"`
	Reason    string      `json:"reason"`
	Src       netip.Addr  `json:"src"`
	Dst       netip.Addr  `json:"dst"`
	Protocol  string      `json:"proto"`
	Port      json.Number `json:"dport"`
	Transport string      `json:"transport"`
	Revoked   bool        `json:"revoked"`
	From      string      `json:"from"` // the pod with the address Src; empty if no pod has it
	To        string      `json:"to"`
}

// logged reads a line of the agent's log. A line about another event, or about a packet whose addresses
// or port could not be read, is skipped.
func logged(line []byte) (Flow, bool) {
	var l logLine
	if json.Unmarshal(line, &l) != nil || l.Msg == nil {
		var other struct { // the fields of other events may have other types
			Msg *string `json:"msg"`
		}
		if json.Unmarshal(line, &other) != nil || other.Msg == nil {
			return Flow{}, false
		}
		return Flow{Skip: flow.SkipLog}, true
	}
	if l.Event != event.Verdict || !l.Src.IsValid() || !l.Dst.IsValid() || l.Transport != "" {
		return Flow{Skip: flow.SkipLog}, true
	}
	if l.Revoked {
		return Flow{Skip: flow.SkipRevoked}, true
	}
	port, _ := strconv.ParseUint(string(l.Port), 10, 16) // 0 for protocols without ports
	r := &flow.Record{
		Time: l.Time, Event: flow.Denied.String(), Reason: l.Reason, Src: l.Src, Dst: l.Dst,
		Protocol: l.Protocol, DstPort: uint16(port), From: podNamed(l.From), Into: podNamed(l.To),
	}
	if l.Verdict == filter.Allow.String() {
		r.Event = flow.Opened.String()
	}
	return Flow{Record: r}, true
}

// podNamed returns the pod with a name in the log. If the name is not of the form "namespace/name", as the
// name of the node is not, it returns nil.
func podNamed(name string) *flow.End {
	namespace, pod, ok := strings.Cut(name, "/")
	if !ok || strings.Contains(pod, "/") {
		return nil
	}
	return &flow.End{Kind: flow.PodEnd, Namespace: namespace, Pod: pod}
}
