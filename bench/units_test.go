package main

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"sluice/bench/result"
	"sluice/bench/testbed/lab"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

func TestQueueCounters(t *testing.T) {
	queued, dropped := queues("    0  4242     0 2   256     1     2      100  1\n    1 -4711     5 2   256     0    10       23  1\n\nwhat is this\n")
	if queued != 123 || dropped != 13 {
		t.Errorf("%d queued, %d dropped; want 123, 13", queued, dropped)
	}
}

func TestBusyTime(t *testing.T) {
	// user, nice, system, idle, iowait, irq, softirq, steal, guest, guest_nice
	if got := busy("cpu  1 2 4 1000 2000 8 16 4000 8000 0\ncpu0 9 9 9 9\n"); got != 310*time.Millisecond {
		t.Errorf("%v, want 310ms", got)
	}
}

// TestOwnCPU checks that the CPU clock of this process advances with the process's work.
func TestOwnCPU(t *testing.T) {
	before, err := cpuOf(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	now := before
	for now < before+20*time.Millisecond { // reading the clock takes CPU time itself
		if now, err = cpuOf(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if mib, err := rss(os.Getpid()); err != nil || mib < 1 {
		t.Errorf("%v MiB: %v", mib, err)
	}
	if _, err := cpuOf(1 << 23); err == nil {
		t.Error("a process that does not exist has a CPU clock")
	}
}

// TestCountRecords checks how the records of an observer are counted.
func TestCountRecords(t *testing.T) {
	var w watched
	for _, line := range []string{
		`{"time":"2026-11-27T06:00:00Z","node":"n","event":"allowed","reason":"rule"}`,
		`{"time":"2026-11-27T06:00:00Z","event":"allowed","from":{"labels":{"event":"denied"}}}`,
		`{"event":"denied","answer":"reject"}`, `{"event":"ended","seconds":1}`, `{"event":"left-out","count":7}`, `{"event":"unrecorded","missing":"all"}`,
	} {
		if err := w.count([]byte(line)); err != nil {
			t.Error(err)
		}
	}
	if want := (watched{allowed: 2, denied: 1, ended: 1, leftOut: 7}); w != want || w.seen() != 9 || w.records() != 11 {
		t.Errorf("%+v, want %+v", w, want)
	}
	for _, bad := range []string{``, `{"event":"y"}`, `{"event":"left-out","count":`} {
		if err := w.count([]byte(bad)); err == nil {
			t.Errorf("%q is counted", bad)
		}
	}
}

func TestSelectRows(t *testing.T) {
	names := func(rows []row) (n []string) {
		for _, r := range rows {
			n = append(n, r.Name)
		}
		return n
	}
	// The selection includes the reference rows.
	got, notes, err := selectRows([]string{"fresh"}, "--kernel-cache")
	if err != nil || !slices.Equal(names(got), []string{"none", "none-fresh", "fresh"}) || len(notes) > 0 {
		t.Errorf("fresh: %v %v %v", names(got), notes, err)
	}
	// It also includes the row whose node a row shares, with its reference row.
	got, _, err = selectRows([]string{"visitors-all6"}, "--kernel-cache")
	if err != nil || !slices.Equal(names(got), []string{"none", "none-newcomers", "newcomers", "none-visitors6", "visitors-all6"}) {
		t.Errorf("visitors-all6: %v %v", names(got), err)
	}
	// If the sluice to measure does not have the flag --kernel-cache, selectRows omits the row
	// "kernel", and the row "user" runs without this flag.
	got, notes, err = selectRows([]string{"kernel", "user"}, "--cache-size")
	if err != nil || !slices.Equal(names(got), []string{"none", "user"}) || len(notes) != 1 || len(got[1].args) > 0 {
		t.Errorf("kernel, user: %+v %v %v", got, notes, err)
	}
	if _, _, err = selectRows([]string{"dance"}, ""); err == nil || !strings.Contains(err.Error(), "none-fresh, hand") {
		t.Errorf("dance: %v", err)
	}
}

func TestVaried(t *testing.T) {
	got, err := varied("--queues=1,8")
	if err != nil || len(got) != 2 || got[1].Name != "queues=8" || got[1].Against != "none" || !slices.Contains(got[1].args, "--queues=8") || slices.Contains(got[0].args, "--queues=8") {
		t.Errorf("%+v %v", got, err)
	}
	for _, bad := range []string{"queues", "queues=", "=1", "queues=1,,2"} {
		if _, err := varied(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// TestClusterHasItsSize checks that a cluster, with the lab's pods and policy, has the
// requested size and allows the flows of the loads.
func TestClusterHasItsSize(t *testing.T) {
	for _, s := range []result.Scenario{{Pods: 10, Policies: 1, Namespaces: 1}, {Pods: 1000, Policies: 100, Namespaces: 20}} {
		c, w := makeCluster(s), policy.NewStore()
		c.Fill(w)
		server, hostile := netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2")
		contender := newTestContender(server, hostile, sourceCount(s))
		for _, p := range labPods(labNamespace(c), contender) {
			w.SetPod(kubepod.Read(p))
		}
		w.SetPolicy(netpol.Read(labPolicy(labNamespace(c), s)))
		snapshot, _ := w.Commit()
		if n := snapshot.Counts(); n.Pods != s.Pods || n.Policies != s.Policies || n.Namespaces != s.Namespaces {
			t.Errorf("%s: %+v", s, n)
		}
		if problems := w.Problems(); len(problems) > 0 {
			t.Errorf("%s: %v", s, problems)
		}
		fresh := freshPorts(s)
		if keys := fresh.Count * sourceCount(s); keys < freshKeys-sourceCount(s) {
			t.Errorf("%s: only %d keys", s, keys)
		}
		last := fresh.Nth(uint64(fresh.Count - 1))
		for _, tt := range []struct {
			from  netip.Addr
			proto filter.Protocol
			port  uint16
			want  filter.Action
		}{
			{contender.sources[0], filter.TCP, seenPort, filter.Allow},
			{contender.sources[len(contender.sources)-1], filter.TCP, last, filter.Allow},
			{contender.sources[0], filter.UDP, fresh.First, filter.Allow},
			{contender.sources[0], filter.TCP, streamPort, filter.Allow},
			{contender.sources[0], filter.UDP, probePort, filter.Deny},
			{hostile, filter.TCP, seenPort, filter.Deny},
		} {
			if v := snapshot.Decide(filter.NewKey(tt.from, server, tt.proto, tt.port)); v.Action != tt.want {
				t.Errorf("%s: from %s, %s %d: %s (%s)", s, tt.from, tt.proto, tt.port, v.Action, v.Reason)
			}
		}
	}
	for _, p := range makeCluster(result.Scenario{Pods: 100, Policies: 3, Namespaces: 1}).Pods {
		if p.Status.Phase != corev1.PodRunning {
			t.Fatalf("pod %s is not running", p.Name)
		}
	}
}

func TestCheckAims(t *testing.T) {
	s := result.Scenario{Pods: 10, Policies: 1, Namespaces: 1}
	r := &result.Result{}
	for _, row := range rows {
		r.Rows = append(r.Rows, row.Row)
	}
	add := func(row, load string, m result.Metric, values ...float64) {
		for _, v := range values {
			r.Add(result.Key{Scenario: s, Row: row, Load: load, Metric: m}, v)
		}
	}
	add("none", "tcp-16", connections, 100, 200, 100)
	add("kernel", "tcp-16", connections, 98, 190, 99) // ratios 0.98, 0.95, 0.99
	add("accept", "tcp-64", agentPerCPU, 40, 40, 40)
	add("user", "tcp-64", agentPerCPU, 21, 22, 19)
	add("user", "churn", dropped, 0, 1, 0)
	add("visitors6", "tcp-1", queuedPackets, 0, 0, 0)
	add("newcomers", "tcp-64", queuedPackets, 0, 0, 7)
	add("user", "effect", denyNew, 1, 2, 40)
	got := make(map[string]result.Aim)
	for _, a := range checkAims(r, s) {
		got[a.Row+" "+a.Load] = a
	}
	for name, want := range map[string]struct {
		value  float64
		missed bool
	}{"kernel tcp-16": {0.98, false}, "user tcp-64": {0.525, true}, "user churn": {1, true}, "visitors6 tcp-1": {0, false}, "newcomers tcp-64": {7, true}, "user effect": {39.24, false}} {
		if a := got[name]; a.Missed != want.missed || a.Got < want.value-1e-9 || a.Got > want.value+1e-9 {
			t.Errorf("%s: %+v, want %+v", name, a, want)
		}
	}
	if len(got) != 6 {
		t.Errorf("aims without figures: %+v", got)
	}
}

func TestProgress(t *testing.T) {
	var out strings.Builder
	p := &progress{out: &out, terminal: true, began: time.Now().Add(-50 * time.Second), planned: 100 * time.Second}
	p.in("10/1/1")
	p.step(50*time.Second, "first")
	if !strings.Contains(out.String(), "  0%, 1m40s left: 10/1/1: first") {
		t.Errorf("%q", out.String())
	}
	p.step(time.Second, "second") // the first step has taken its planned 50 s, half of the total
	if !strings.Contains(out.String(), " 50%, 50s left: 10/1/1: second") {
		t.Errorf("%q", out.String())
	}
}

func TestCPUName(t *testing.T) {
	if got := cpuName("processor\t: 0\nmodel name\t: Fast: 9\nmodel name\t: other\n", "unknown"); got != "Fast: 9" {
		t.Errorf("%q", got)
	}
	if got := cpuName("Features : fp\n", "unknown"); got != "unknown" {
		t.Errorf("%q", got)
	}
}

// newTestContender returns a contender whose pods have addresses but do not exist.
func newTestContender(server, hostile netip.Addr, clients int) *contender {
	t := &contender{server: &lab.Host{IPv4: server}, hostile: &lab.Host{IPv4: hostile}}
	for a := hostile.Next(); len(t.sources) < clients; a = a.Next() {
		t.sources = append(t.sources, a)
	}
	return t
}
