package matrix

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

var tenOClock = time.Date(2026, 11, 26, 10, 0, 0, 0, time.UTC)

// shopFlow is a flow from web to db, of which policies allow TCP 80.
func shopFlow(event string, port uint16, minute int) *flow.Record {
	end := func(pod string) *flow.End { return &flow.End{Kind: flow.PodEnd, Namespace: "shop0", Pod: pod} }
	r := &flow.Record{Time: tenOClock.Add(time.Duration(minute) * time.Minute), Event: event, Protocol: "TCP", DstPort: port, From: end("web-0"), Into: end("db-0")}
	if event == "denied" {
		r.Reason = "ingress-denied"
	}
	return r
}

// laidOver returns the matrix of shop0 with flows laid over it, and the cell from web to db.
func laidOver(t *testing.T, o Options, flows ...*flow.Record) (*Matrix, *Cell) {
	t.Helper()
	m := New(shops(2, 1), o)
	tally := m.Tally()
	tally.Files = 1
	for _, r := range flows {
		tally.Add(r, time.Time{})
	}
	m.Lay(tally)
	for _, c := range m.Flows {
		if c.From == "shop0/web" && c.To == "shop0/db" || c.From == "shop0/*" && c.To == "shop0/*" || c.From == "shop0/web-0" && c.To == "shop0/db-0" {
			return m, c
		}
	}
	t.Fatal("there is no cell from web to db")
	return nil, nil
}

func TestLay(t *testing.T) {
	tests := map[string]struct {
		flows []*flow.Record
		cell  string // the text of the cell
		seen  string
		pairs Uses
	}{
		"nothing": {nil, "=80", "never used", Uses{NeverUsed: 14}},
		"used":    {[]*flow.Record{shopFlow("allowed", 80, 0), shopFlow("allowed", 80, 5)}, "=80+", "TCP 80 allowed 2 times, last 10:05:00", Uses{Used: 1, NeverUsed: 13}},
		"tried":   {[]*flow.Record{shopFlow("denied", 22, 0)}, "=80 !", "TCP 22 tried, closed: denied 1 time, last 10:00:00; never used", Uses{NeverUsed: 14, Tried: 1}},
		"used and tried": {[]*flow.Record{shopFlow("allowed", 80, 0), shopFlow("denied", 22, 0)}, "=80+ !",
			"TCP 22 tried, closed: denied 1 time, last 10:00:00; TCP 80 allowed 1 time, last 10:00:00", Uses{Used: 1, NeverUsed: 13, Tried: 1}},
		"open now, denied then": {[]*flow.Record{shopFlow("denied", 80, 0)}, "=80", "TCP 80 denied 1 time, last 10:00:00 (not as these policies say); never used",
			Uses{NeverUsed: 14, Changed: 1}},
		"closed now, allowed then": {[]*flow.Record{shopFlow("allowed", 22, 0)}, "=80 !", "TCP 22 tried, closed: allowed 1 time, last 10:00:00 (not as these policies say); never used",
			Uses{NeverUsed: 14, Tried: 1, Changed: 1}},
		"denied before, and allowed since": {[]*flow.Record{shopFlow("denied", 80, 0), shopFlow("allowed", 80, 5)}, "=80+", "TCP 80 allowed 1 time, denied 1 time, last 10:05:00",
			Uses{Used: 1, NeverUsed: 13}},
		"allowed before, and denied since": {[]*flow.Record{shopFlow("allowed", 80, 0), shopFlow("denied", 80, 5)}, "=80+", "TCP 80 allowed 1 time, denied 1 time, last 10:05:00 (not as these policies say)",
			Uses{Used: 1, NeverUsed: 13, Changed: 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			m, c := laidOver(t, Options{}, tt.flows...)
			if got := c.text(); got != tt.cell {
				t.Errorf("cell %q, want %q", got, tt.cell)
			}
			if got := m.Seen.cellText(c); got != tt.seen {
				t.Errorf("seen %q, want %q", got, tt.seen)
			}
			if m.Seen.Pairs != tt.pairs {
				t.Errorf("pairs %+v, want %+v", m.Seen.Pairs, tt.pairs)
			}
		})
	}
}

// With OnlyOpen, closed pairs are not in the matrix. If they were tried, they are nevertheless counted,
// and listed below the matrix.
func TestLayOverOpenPairs(t *testing.T) {
	back := shopFlow("denied", 22, 0)
	back.From = &flow.End{Kind: flow.WorldEnd}
	m, _ := laidOver(t, Options{OnlyOpen: true}, back)
	var b bytes.Buffer
	if err := m.WriteText(&b); err != nil {
		t.Fatal(err)
	}
	if m.Seen.Pairs.Tried != 1 || !strings.Contains(b.String(), "  world → shop0/db TCP 22: denied 1 time") {
		t.Errorf("%+v in\n%s", m.Seen.Pairs, b.String())
	}
}

// A matrix by namespace adds the flows of its pairs, and knows what is open for each of them.
func TestLayByNamespace(t *testing.T) {
	other := shopFlow("denied", 22, 1)
	m, c := laidOver(t, Options{By: ByNamespace}, shopFlow("allowed", 80, 0), shopFlow("denied", 22, 0), other)
	if got, want := m.Seen.cellText(c), "TCP 22 tried, closed: denied 2 times, last 10:01:00; TCP 80 allowed 1 time, last 10:00:00; never used: UDP, SCTP, ICMP"; !strings.HasPrefix(got, want[:40]) || !strings.Contains(got, "TCP 80 allowed 1 time") {
		t.Errorf("%q, want %q", got, want)
	}
	if below := m.below(); below.Seen == nil || below.Seen.Pairs.Used != 1 {
		t.Error("the matrix by workload below has no flows")
	}
}

// Flows that are not about the matrix are counted by reason.
func TestLayLeavesOut(t *testing.T) {
	asked := NewPort(80, 6)
	o := Options{Ports: []Port{asked}, To: []string{"shop0"}}
	self := shopFlow("allowed", 80, 0)
	self.Into = self.From
	elsewhere := shopFlow("allowed", 80, 0)
	elsewhere.Into = &flow.End{Kind: flow.PodEnd, Namespace: "shop1", Pod: "db-0"}
	m, _ := laidOver(t, o, shopFlow("allowed", 80, 0), shopFlow("denied", 22, 0), self, self, self, elsewhere)
	want := "flows that policies do not decide about, as between nodes or of a pod to itself: 3; flows that the matrix is not about: 2"
	if got := m.Seen.leftOutText(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if m.Seen.Flows != 6 || m.Seen.Pairs.Used != 1 {
		t.Errorf("%d flows, %+v", m.Seen.Flows, m.Seen.Pairs)
	}
}

// Flows from a node to its own pods are always allowed. They do not make an open port count as used, nor a
// closed port as tried. Here, TCP 80 of db is closed, and both its own node n1 and the node n2 connect to
// it: only the flow from n2 counts.
func TestLayOwnNode(t *testing.T) {
	addr := netip.MustParseAddr
	pod := func(name, node, host, a string) *policy.Pod {
		return &policy.Pod{Namespace: "shop0", Name: name, Labels: labels.Set{"app": name}, Node: node, Hosts: []netip.Addr{addr(host)}, Addrs: []netip.Addr{addr(a)}}
	}
	v := inventory.New(inventory.Objects{
		Pods:  []*policy.Pod{pod("db", "n1", "192.0.2.1", "10.0.0.1")},
		Nodes: []*policy.Node{{Name: "n1", Addrs: []netip.Addr{addr("192.0.2.1")}}, {Name: "n2", Addrs: []netip.Addr{addr("192.0.2.2")}}},
		Policies: []*policy.Policy{{
			Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "shop0", Name: "db"}, Tier: policy.NetworkPolicy, Isolates: [2]bool{filter.Ingress: true},
			Subject: policy.Subject{Namespace: "shop0", Pods: labels.Everything()},
		}},
	})
	m := New(v, Options{})
	tally := m.Tally()
	for _, node := range []string{"n1", "n2"} {
		r := &flow.Record{Time: tenOClock, Event: "allowed", Protocol: "TCP", DstPort: 80, From: &flow.End{Kind: flow.HostEnd, Node: node}, Into: &flow.End{Kind: flow.PodEnd, Namespace: "shop0", Pod: "db"}}
		tally.Add(r, time.Time{})
	}
	m.Lay(tally)
	want := "TCP 80 tried, closed: allowed 1 time, last 10:00:00 (not as these policies say); TCP 80 from its own node allowed 1 time, last 10:00:00"
	for _, c := range m.Flows {
		if c.From == "nodes" && (m.Seen.cellText(c) != want || c.text() != "- !") {
			t.Errorf("%s: %s, want %s", c.text(), m.Seen.cellText(c), want)
		}
	}
	if want := (Uses{NeverUsed: 2, Tried: 1, Changed: 1}); m.Seen.Pairs != want {
		t.Errorf("%+v, want %+v", m.Seen.Pairs, want)
	}
}

// The text tells what the files report as missing. The missing flows may have used ports that are shown as
// never used.
func TestLayTellsGaps(t *testing.T) {
	m, _ := laidOver(t, Options{}, &flow.Record{Event: "left-out", Count: 1200}, &flow.Record{Event: "unrecorded", Missing: "all", Seconds: 90.5})
	want := "Missing in the files, as they say: 1,200 flows. What is never used may be among them.\nPeriods in which a node recorded no flows, or only denials, as the files say: 1, the longest of 1m30s."
	if got := strings.Join(m.Seen.missingText(), "\n"); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// All forms of output have what was seen.
func TestLayInAllForms(t *testing.T) {
	m, _ := laidOver(t, Options{Namespaces: []string{"shop0"}}, shopFlow("allowed", 80, 0), shopFlow("denied", 22, 5))
	write := func(f func(*bytes.Buffer) error) string {
		var b bytes.Buffer
		if err := f(&b); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	texts := map[string]string{
		"csv":      write(func(b *bytes.Buffer) error { return m.WriteCSV(b) }),
		"markdown": write(func(b *bytes.Buffer) error { return m.WriteMarkdown(b) }),
		"dot":      write(func(b *bytes.Buffer) error { return m.WriteDot(b) }),
		"html":     write(func(b *bytes.Buffer) error { return m.WriteHTML(b) }),
		"text":     write(func(b *bytes.Buffer) error { return m.WriteText(b) }),
		"json":     write(func(b *bytes.Buffer) error { return m.WriteJSON(b) }),
	}
	for form, parts := range map[string][]string{
		"csv": {
			",used,1,0,2026-11-26T10:00:00Z,2026-11-26T10:00:00Z,TCP 80: 1,\n", ",tried,0,1,2026-11-26T10:05:00Z,2026-11-26T10:05:00Z,TCP 22: 1,\n", ",never used,,,,,,\n",
			"seen,allowed,denied,first,last,seen ports,changed\n",
		},
		"markdown": {"| =80+ ! |", "\"Never used\" means only: not in these flows."},
		"dot":      {`"shop0/web" -> "shop0/db" [label="=80+ !", color=green]`, "style=dashed]"},
		"text":     {"Pairs seen: 1 open and used, 8 open and never used, 1 closed and tried.\nFlows: 2 in 1 file, 2026-11-26 10:00:00 to 10:05:00 UTC. \"Never used\" means only: not in these flows.\n"},
		"html":     {"not in these flows"},
	} {
		for _, part := range parts {
			if !strings.Contains(strings.ReplaceAll(texts[form], "&#34;", `"`), part) {
				t.Errorf("%s has no %q:\n%s", form, part, texts[form][:min(4000, len(texts[form]))])
			}
		}
	}
	var read Matrix
	if err := json.Unmarshal([]byte(texts["json"]), &read); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(read.Seen.Pairs, read.Seen.First, read.Seen.Flows); got != fmt.Sprint(m.Seen.Pairs, m.Seen.First, m.Seen.Flows) {
		t.Errorf("JSON has %s", got)
	}
}
