package flow_test

import (
	"strings"
	"testing"

	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/policy"
)

// selects reports whether conditions select a record. It returns an error if they cannot be parsed.
func selects(t *testing.T, c flow.Conditions, r *flow.Record) (bool, error) {
	t.Helper()
	f, err := c.Filter()
	return err == nil && f.Selects(r), err
}

// Names of ends are those that explain takes, as far as records have them.
func TestNames(t *testing.T) {
	s := cluster(t)
	d := flow.NewDescriber("n1", func() *policy.Snapshot { return s })
	for _, tt := range []struct {
		src, names string // names that are those of src, and behind a | names that are not
	}{
		{"10.0.0.1", "web shop/web web-6d4cf56db6 web-6d4cf56db6-x2k4q deploy/web deployments.apps/web shop/deploy/web rs/web-6d4cf56db6 pod/web-6d4cf56db6-x2k4q app=web shop/app=web */app=web app!=db * shop/* ns/shop 10.0.0.1 10.0.0.0/8 |" +
			" pod/web sts/web ds/web shop/pod/web app=db other/app=web other/web app.kubernetes.io/name=web ns/other node/n1 world host"},
		{"10.0.0.2", "sts/db db app=db | deploy/db rs/db node/n1"},
		{"192.0.2.1", "host node/n1 | node/n2 remote-node app=web * ns/shop"},
		{"192.0.2.2", "remote-node node/n2 | host node/n1 world"},
		{"203.0.113.1", "world 203.0.113.0/24 ::ffff:203.0.113.1 | app!=db *"},
	} {
		r := d.Record(entry(s, flow.Opened, tt.src, "10.0.0.2", 80))
		is, isNot, _ := strings.Cut(tt.names, "|")
		for want, names := range map[bool]string{true: is, false: isNot} {
			for _, name := range strings.Fields(names) {
				if got, err := selects(t, flow.Conditions{From: []string{name}}, r); err != nil || got != want {
					t.Errorf("%s from %s: %t, %v", name, tt.src, got, err)
				}
			}
		}
	}
	// A namespace applies to names and labels without one.
	r := d.Record(entry(s, flow.Opened, "10.0.0.1", "10.0.0.2", 80))
	r.Into = &flow.End{Kind: flow.PodEnd, Namespace: "other", Pod: "db-0", Labels: map[string]string{"app": "db"}}
	for name, want := range map[string]bool{"db": false, "app=db": false, "other/db": true, "*/app=db": true} {
		if got, err := selects(t, flow.Conditions{Namespaces: []string{"shop"}, To: []string{name}}, r); err != nil || got != want {
			t.Errorf("to %s: %t, %v", name, got, err)
		}
	}
}

// What cannot be a name is an error with a hint, and not a condition that no flow fulfills.
func TestWrongConditions(t *testing.T) {
	for name, want := range map[string]string{
		"10.77.0.300": "neither an IP address", "10.77.0.0/33": "neither an IP address", "fd00::1::2": "neither an IP address",
		"web:80": "write web here, and --port 80", "shop/foo/web": `"foo" is not a kind`, "svc/web": "write the address of the Service", "ingress/web": "of the kind Ingress",
		"Web": "is not the name of an end", "a/b/c/d": "is not the name of an end", "": "is not the name of an end", "shop/": "is not the name of an end", "app=web=db": "is not a selector",
	} {
		if _, err := (flow.Conditions{From: []string{name}}).Filter(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", name, err, want)
		}
	}
	if _, err := (flow.Conditions{Namespaces: []string{"ns/shop"}}).Filter(); err == nil || !strings.Contains(err.Error(), "write it as in shop") {
		t.Error(err)
	}
}

// A flow to a Service is found by the address and the port of the Service, too.
func TestFlowsToService(t *testing.T) {
	s := cluster(t)
	r := flow.NewDescriber("n1", func() *policy.Snapshot { return s }).Record(entry(s, flow.Opened, "10.0.0.1", "10.0.0.2", 8080))
	r.To = "10.96.0.10:80"
	for _, tt := range []struct {
		c    flow.Conditions
		want bool
	}{
		{flow.Conditions{To: []string{"10.96.0.10"}}, true},
		{flow.Conditions{To: []string{"10.96.0.0/16"}, Ports: []string{"80/tcp"}}, true},
		{flow.Conditions{To: []string{"db"}, Ports: []string{"8080"}}, true},
		{flow.Conditions{To: []string{"10.96.0.11"}}, false},
		{flow.Conditions{From: []string{"10.96.0.10"}}, false},
		{flow.Conditions{Ports: []string{"81"}}, false},
	} {
		if got, err := selects(t, tt.c, r); err != nil || got != tt.want {
			t.Errorf("%+v: %t, %v", tt.c, got, err)
		}
	}
	if text := r.Text(); !strings.Contains(text, "→ shop/db-0:8080/TCP (sent to 10.96.0.10:80)") {
		t.Error(text)
	}
}

// The text of a revoked connection differs from that of a new attempt, and so does its row.
func TestRevoked(t *testing.T) {
	s := cluster(t)
	d := flow.NewDescriber("n1", func() *policy.Snapshot { return s })
	e := entry(s, flow.Denied, "10.0.0.1", "10.0.0.2", 80)
	e.Verdict.Reason = filter.IngressDenied
	var all flow.Denials
	all.Add(e)
	e.Revoked = true
	all.Add(e)
	if n := len(d.Denials(all.All())); n != 2 {
		t.Errorf("%d denials, want 2", n)
	}
	r := d.Record(e)
	if text := r.Text(); !strings.HasSuffix(text, "(open connection)") {
		t.Error(text)
	}
	r.Protocol = "UDP"
	if text := r.Text(); !strings.HasSuffix(text, "(open or idle connection)") {
		t.Error(text)
	}
	a, _ := r.Likeness()
	r.Revoked = false
	if b, _ := r.Likeness(); a == b {
		t.Error("it is merged with attempts")
	}
}

// An IPv6 address with a port is in brackets.
func TestTextOfIPv6(t *testing.T) {
	s := cluster(t)
	r := flow.NewDescriber("n1", func() *policy.Snapshot { return s }).Record(entry(s, flow.Denied, "2001:db8::1", "2001:db8::bad:1", 80))
	if text := r.Text(); !strings.Contains(text, "2001:db8::1 → [2001:db8::bad:1]:80/TCP") {
		t.Error(text)
	}
	r.Protocol, r.DstPort = "ICMPv6", 0
	if text := r.Text(); !strings.Contains(text, "→ 2001:db8::bad:1 ICMPv6") {
		t.Error(text)
	}
}

// Back finds the last flows that are selected, over the whole log and beyond the other ones.
func TestBack(t *testing.T) {
	l := flow.NewLog(1000, nil)
	w := l.Watch(0, true)
	for i := range 1500 {
		l.Add(numbered(i))
	}
	w.Close()
	for last, first := range map[int]int{1: 1400, 3: 1200, 20: 501} { // the oldest makes room for an Unrecorded
		w := l.Watch(0, true)
		w.Back(last, func(e *flow.Entry) bool { return e.SrcPort%100 == 0 })
		got := drain(w)
		w.Close()
		if len(got) != 1501-first || got[0] != first {
			t.Errorf("last %d: %d records, %v", last, len(got), got[:min(len(got), 3)])
		}
	}
}
