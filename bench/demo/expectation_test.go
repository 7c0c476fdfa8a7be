package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/watch/manifests"
)

// twoHosts returns two hosts, each with one port.
func twoHosts() (web, db *host) {
	host := func(name string, port uint16, v4 string) *host {
		return &host{name: name, ports: []uint16{port}, Host: &lab.Host{Name: name, IPv4: netip.MustParseAddr(v4), IPv6: netip.MustParseAddr("::" + v4)}}
	}
	return host("default/web", 80, "10.0.0.1"), host("default/db", 6379, "10.0.0.2")
}

func TestTheLastMatchCounts(t *testing.T) {
	web, db := twoHosts()
	st := step{expectations: []string{"no * -> default/db:*", "yes default/web -> default/db:6379/TCP"}}
	expectations, err := st.parseExpectations()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		p    probe
		want string
	}{
		{probe{web, serverPort{web, 80}, "udp", 0}, "* -> itself"},
		{probe{db, serverPort{web, 80}, "tcp", 1}, "everything else"},
		{probe{web, serverPort{db, 6379}, "tcp", 0}, "default/web -> default/db:6379/TCP"},
		{probe{web, serverPort{db, 6379}, "udp", 0}, "* -> default/db:*"},
		{probe{web, serverPort{db, 63790}, "tcp", 0}, "* -> default/db:*"},
	} {
		if got := expectations[deciding(expectations, tt.p)]; got.String() != tt.want {
			t.Errorf("%s: %q decides, want %q", tt.p, got, tt.want)
		}
	}
}

func TestExpectationsAndPoliciesCanBeRead(t *testing.T) {
	for _, st := range steps {
		if _, err := st.parseExpectations(); err != nil {
			t.Error(err)
		}
		text, err := st.yaml()
		if err != nil {
			t.Fatal(err)
		}
		if len(st.policies) == 0 {
			continue // the demo writes no file for a step without policies
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "policies.yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		objects, problems, err := manifests.Read(dir)
		if err != nil || len(problems) > 0 || len(objects.Policies) != len(st.policies) {
			t.Errorf("%s: %d policies, want %d; %v %v", st.name, len(objects.Policies), len(st.policies), problems, err)
		}
	}
	for _, text := range []string{"", "maybe a -> b", "yes a to b", "yes a -> b c"} {
		if _, err := parseExpectation(text); err == nil {
			t.Errorf("%q is accepted as an expectation", text)
		}
	}
}

// Every expectation applies to at least one probe. An expectation without probes would be
// useless, and could be a typing error.
func TestEveryExpectationDecidesSomething(t *testing.T) {
	lab.Require(t)
	c, err := build([]int{0, 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.lab.Close()
	for _, st := range steps {
		expectations, err := st.parseExpectations()
		if err != nil {
			t.Fatal(err)
		}
		decided := make([]int, len(expectations))
		for _, p := range c.probes() {
			decided[deciding(expectations, p)]++
		}
		for i, n := range decided {
			if n == 0 {
				t.Errorf("step %s: %q applies to no probe", st.name, expectations[i])
			}
		}
	}
}

func TestFault(t *testing.T) {
	web, db := twoHosts()
	reached := outcome{probe: probe{web, serverPort{db, 6379}, "tcp", 0}, Result: lab.Result{Outcome: lab.Reached, By: "default/db"}}
	mistaken, lost := reached, reached
	mistaken.By = "default/web"
	lost.Outcome, lost.By = lab.TimedOut, ""
	denied := lost
	denied.denial = &verdict{"ingress-denied", "default/x"}
	for _, tt := range []struct {
		name  string
		o     outcome
		reach bool
		want  string // part of the fault's text; empty if there must be no fault
	}{
		{"reached as expected", reached, true, ""},
		{"reached against the expectation", reached, false, "got through"},
		{"denied as expected", denied, false, ""},
		{"denied against the expectation", denied, true, "ingress-denied"},
		{"lost where denial was expected", lost, false, "did not deny"},
		{"lost where an answer was expected", lost, true, "did not get through"},
		{"answered by another", mistaken, true, "default/web"},
	} {
		got := tt.o.fault(tt.reach)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestDenial(t *testing.T) {
	web, db := twoHosts()
	for _, tt := range []struct {
		name, line string
		f          flow
		why        string // the wanted reason; empty if the line is not about a denial
	}{
		{"denied", `{"event":"verdict","verdict":"deny","reason":"ingress-denied","src":"10.0.0.1","dst":"10.0.0.2","proto":"TCP","sport":4,"dport":6379,"policy":"a/b,c/d"}`,
			probe{web, serverPort{db, 6379}, "tcp", 0}.flow(), "ingress-denied: no rule of a/b or c/d allows it"},
		{"malformed", `{"event":"verdict","verdict":"deny","reason":"malformed"}`, flow{}, "malformed"},
		{"allowed", `{"event":"verdict","verdict":"allow","reason":"rule","src":"10.0.0.2","dst":"10.0.0.1","proto":"TCP","sport":4,"dport":80,"policy":"a/b"}`, flow{}, ""},
		{"another line", `{"event":"ready","policies":0}`, flow{}, ""},
	} {
		var l agenttest.Line
		if err := json.Unmarshal([]byte(tt.line), &l); err != nil {
			t.Fatal(err)
		}
		f, v, ok := denial(l)
		if ok != (tt.why != "") || f != tt.f || ok && v.String() != tt.why {
			t.Errorf("%s: %v %v %q, want %v %q", tt.name, ok, f, v, tt.f, tt.why)
		}
	}
}

func TestCells(t *testing.T) {
	web, db := twoHosts()
	to := serverPort{db, 6379}
	var outcomes []outcome
	for _, network := range networks {
		for family := range 2 {
			o := outcome{probe: probe{web, to, network, family}}
			if network == "tcp" {
				o.Result = lab.Result{Outcome: lab.Reached, By: db.name}
			} else {
				o.Outcome, o.denial = lab.TimedOut, &verdict{"ingress-denied", "default/x"}
			}
			outcomes = append(outcomes, o)
		}
	}
	text := func() string {
		expectations, err := step{expectations: []string{"no default/web -> default/db:6379/UDP"}}.parseExpectations()
		if err != nil {
			t.Fatal(err)
		}
		cells, _ := tabulate(compare(outcomes, expectations))
		got, _ := cells[cellKey{web, to}].text()
		return got
	}
	if got := text(); got != "TCP a" {
		t.Errorf("UDP denied: %q", got)
	}
	outcomes[1].Outcome = lab.TimedOut // the probe over TCP and IPv6
	if got := text(); got != "no ab !" {
		t.Errorf("IPv6 lost: %q", got)
	}
}
