//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sluice/bench/testbed/lab"
	"sluice/filter/flow"
)

// explained is the part of an answer of sluice explain --flows that a record has, too.
type explained struct {
	Verdict, Reason string
	Egress, Ingress explainedSide
}

type explainedSide struct {
	Isolated bool
	Policies []string
	Rule     *explainedRule
	Passed   *explainedRule
}

type explainedRule struct{ Policy, Field, Name, Tier, Action string }

// explain writes records into a file, and returns the answers of sluice explain about their flows, in the
// same order.
func (s *testbed) explain(t *testing.T, records []*flow.Record) (answers []explained) {
	t.Helper()
	var text strings.Builder
	for _, r := range records {
		if err := json.NewEncoder(&text).Encode(r); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(t.TempDir(), "flows.jsonl")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stdout, stderr := sluice(t, "explain", "-f", s.dir, "--flows", file, "-o", "json")
	if strings.Contains(stderr, "skipped") || strings.Contains(stderr, "could not") {
		t.Fatalf("explain: %s%s", stderr, stdout)
	}
	for d := json.NewDecoder(strings.NewReader(stdout)); d.More(); {
		var a explained
		if err := d.Decode(&a); err != nil {
			t.Fatal(err)
		}
		answers = append(answers, a)
	}
	if len(answers) != len(records) {
		t.Fatalf("%d answers about %d flows: %s", len(answers), len(records), stderr)
	}
	return answers
}

// side converts one direction of an answer to the form that it has in a record. It returns nil if no
// policy concerns the flow in this direction.
func (s explainedSide) side() *flow.Side {
	out := &flow.Side{}
	switch r := s.Rule; {
	case r != nil:
		*out = flow.Side{Action: r.Action, Policies: []string{r.Policy}, Tier: r.Tier, Rule: strings.TrimPrefix(r.Field, "spec."), RuleName: r.Name}
	case s.Isolated:
		*out = flow.Side{Action: "deny", Policies: s.Policies, Tier: "NetworkPolicy"}
	case s.Passed == nil:
		return nil
	default:
		out.Action = "accept"
	}
	if p := s.Passed; p != nil {
		out.Passed = &flow.Passed{Policy: p.Policy, Rule: strings.TrimPrefix(p.Field, "spec."), RuleName: p.Name}
	}
	return out
}

// checkExplained compares each record with the answer of sluice explain about the same flow.
func (s *testbed) checkExplained(t *testing.T, records []*flow.Record) {
	t.Helper()
	for i, a := range s.explain(t, records) {
		r := records[i]
		event := map[string]string{"allow": "allowed", "deny": "denied"}[a.Verdict]
		if r.Event != event || r.Reason != a.Reason || !reflect.DeepEqual(r.Egress, a.Egress.side()) || !reflect.DeepEqual(r.Ingress, a.Ingress.side()) {
			got, _ := json.Marshal([]*flow.Side{r.Egress, r.Ingress})
			want, _ := json.Marshal([]*flow.Side{a.Egress.side(), a.Ingress.side()})
			t.Errorf("%s by %s, reason %s %s\nexplain: %s, reason %s %s", r.Text(), r.By, r.Reason, got, event, a.Reason, want)
		}
	}
}

// Each record names the same policies, tiers and rules as sluice explain, for both directions. It also
// names the right source and destination. The cases are IPv4 and IPv6; TCP, UDP and ICMP; packets that are
// dropped, and packets that are rejected; and pods, nodes and addresses outside. A record is the same
// whether the agent or the kernel has decided about the packet.
func TestObservedPoliciesOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.serve(s.host("node-1"))
	s.serve(s.host("node-2"))
	for _, f := range families {
		s.nat(f.iptables, "PREROUTING", "-p", "tcp", "-d", f.service, "--dport", "81", "-j", "DNAT", "--to-destination", netip.AddrPortFrom(f.addr(s.host("default/db")), 6379).String())
	}
	const anyPod, frontends = "{namespaces: {}}", "{pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: frontend}}}}"
	s.write("nodes.yaml", s.node("node-1", "a", "node-1")+s.node("node-2", "b", "node-2"))
	s.write("policies.yaml", policies(
		db("[{from: [{namespaceSelector: {}}], ports: [{port: 6379}, {protocol: UDP, port: 53}]}, {from: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: \"::/0\"}}], ports: [{port: 6379}]}]"),
		"default/more: {podSelector: {matchLabels: {role: db}}, policyTypes: [Ingress]}",
		"default/out: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {role: db}}}]}]}")+
		annotatedPolicies("reject", "mine/closed: {podSelector: {}, policyTypes: [Ingress]}")+
		clusterPolicies(
			"platform: {tier: Admin, priority: 10, subject: {namespaces: {}}, ingress: [{name: to-teams, action: Pass, from: ["+frontends+"]}, {name: no-8080, action: Deny, from: ["+anyPod+"], protocols: [{tcp: {destinationPort: {number: 8080}}}]}],"+
				"egress: [{name: not-node-2, action: Deny, to: [{nodes: {matchLabels: {pool: b}}}], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}",
			"closed: {tier: Baseline, priority: 10, subject: {namespaces: {}}, ingress: [{name: nothing, action: Deny, from: ["+anyPod+"], protocols: [{tcp: {destinationPort: {number: 80}}}]}]}"))
	s.start(kernelArgs("--node-name", "node-1")...)
	o := startObserve(t, "--socket", s.socket, "-o", "json")
	s.eventually(t, "observe watches", func() bool {
		s.host("default/web").Connect(t.Context(), "tcp", netip.AddrPortFrom(s.host("default/db").IPv4, 6379), probeTimeout)
		return len(o.records()) > 0
	})
	type probe struct{ what, event string }
	for _, p := range []probe{
		{"default/web default/db tcp 6379", "allowed"},
		{"default/web default/db udp 53", "allowed"},
		{"default/web default/db tcp 80", "denied"},
		{"default/web default/db udp 54", "denied"},
		{"default/web default/db icmp 0", "denied"},
		{"default/other default/db tcp 6379", "allowed"},
		{"default/other default/db tcp 8080", "denied"},
		{"default/other default/db tcp 80", "denied"},
		{"default/other default/web tcp 6379", "denied"},
		{"default/other outside tcp 80", "denied"},
		{"default/other outside icmp 0", "denied"},
		{"default/web outside tcp 80", "allowed"},
		{"default/web outside icmp 0", "allowed"},
		{"default/web default/other tcp 80", "denied"},
		{"default/web default/other tcp 6379", "allowed"},
		{"default/web mine/cart tcp 6379", "denied"}, // rejected
		{"default/web mine/cart udp 53", "denied"},
		{"default/web node-2 tcp 80", "denied"},
		{"default/web node-2 udp 53", "allowed"},
		{"default/web node-1 udp 53", "allowed"},
		{"outside default/db tcp 6379", "allowed"},
		{"outside default/db tcp 80", "denied"},
		{"node-2 default/db tcp 6379", "allowed"},
		{"node-2 default/db tcp 80", "denied"},
		{"node-1 default/db tcp 6379", "allowed"},
		{"default/far default/db tcp 6379", "allowed"},
		{"default/far default/db tcp 80", "denied"},
	} {
		s.observed(t, o, p.what, p.event)
		if !strings.Contains(p.what, "icmp") { // all pings are one connection
			s.observed(t, o, p.what, p.event) // the kernel decides about some of these without the agent
		}
	}
	var records []*flow.Record
	kernel := 0
	for _, r := range o.records() {
		if r.Event != "ended" && !isHost(r) {
			records = append(records, r)
		}
		if r.By == "kernel" {
			kernel++
		}
		if r.Into.Namespace == "mine" && r.Answer != "reject" || r.Into.Namespace != "mine" && r.Answer != "" {
			t.Errorf("answer %q of %s", r.Answer, r.Text())
		}
	}
	if kernel == 0 {
		t.Error("the kernel has denied nothing")
	}
	s.checkExplained(t, records)
	for _, f := range families {
		s.checkService(t, o, f.service, f.addr(s.host("default/db")))
	}
}

// isHost reports whether the source or the destination is the agent's own node, from and to which flows of
// its pods are always allowed. sluice explain cannot know this about a flow, because it is not told the
// node.
func isHost(r *flow.Record) bool { return r.From.Kind == flow.HostEnd || r.Into.Kind == flow.HostEnd }

// observed makes a probe over IPv4 and one over IPv6. For each, it waits for the record, and checks the
// names of its source and destination.
func (s *testbed) observed(t *testing.T, o *observed, probe, event string) {
	t.Helper()
	p := strings.Fields(probe)
	from, to := s.host(p[0]), s.host(p[1])
	for _, f := range families {
		src, dst := f.addr(from), f.addr(to)
		protocol, port := strings.ToUpper(p[2]), uint16(0)
		if protocol == "ICMP" && dst.Is6() {
			protocol = "ICMPv6"
		}
		if _, err := fmt.Sscan(p[3], &port); err != nil {
			t.Fatal(err)
		}
		mark := len(o.records())
		if port == 0 {
			s.pings(t, p[0], dst, probeTimeout)
		} else if r := from.Connect(t.Context(), p[2], netip.AddrPortFrom(dst, port), probeTimeout); r.Outcome == lab.Reached && event == "denied" {
			t.Errorf("%s is allowed", probe)
		}
		s.eventually(t, probe+" is seen", func() bool {
			return slices.ContainsFunc(o.records()[mark:], func(r *flow.Record) bool {
				if r.Event != event || r.Src != src || r.Dst != dst || r.DstPort != port || r.Protocol != protocol {
					return false
				}
				if got, want := endName(r.From), p[0]; got != want {
					t.Errorf("%s: from %s", probe, got)
				}
				if got, want := endName(r.Into), p[1]; got != want {
					t.Errorf("%s: to %s", probe, got)
				}
				return true
			})
		})
	}
}

// endName returns the name that the source or the destination of a flow has in the lab.
func endName(e *flow.End) string {
	switch {
	case e.Kind == flow.PodEnd:
		return e.Namespace + "/" + e.Pod
	case e.Kind == flow.HostEnd && e.Node == "node-1", e.Kind == flow.RemoteNodeEnd:
		return e.Node
	case e.Kind == flow.WorldEnd:
		return "outside"
	}
	return fmt.Sprintf("%+v", e)
}

// checkService connects to a Service, and waits for a record that has both the pod behind the Service and
// the address of the Service.
func (s *testbed) checkService(t *testing.T, o *observed, service string, pod netip.Addr) {
	t.Helper()
	to := netip.AddrPortFrom(netip.MustParseAddr(service), 81)
	r := s.host("default/web").Connect(t.Context(), "tcp", to, probeTimeout)
	s.eventually(t, "the connection to the Service is seen", func() bool {
		return slices.ContainsFunc(o.records(), func(f *flow.Record) bool {
			return f.Event == "allowed" && f.SrcPort == r.From.Port() && f.Dst == pod && f.DstPort == 6379 && f.To == to.String() && f.Into.Pod == "db"
		})
	})
}
