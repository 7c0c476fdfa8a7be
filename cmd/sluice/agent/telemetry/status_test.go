package telemetry

import (
	"bytes"
	"encoding/json"
	"maps"
	"strings"
	"testing"
	"time"
)

func TestStatusText(t *testing.T) {
	ill := busyState(t)
	ill.Watches[1].Broken, ill.Watches[1].Since = "User \"x\" cannot watch networkpolicies: give it the verb", noon.Add(-50*time.Hour)
	ill.Watches[2].Version = "" // not installed
	ill.Failing = []string{"mangle of IPv6: ip6tables-restore: the lock is held"}
	ill.Problems = []Problem{{Kind: "policy", Where: "default/bad, spec.ingress[0].from[0].ipBlock.cidr", Detail: `"10.0.0.01/8" is no CIDR`, Hint: "write 10.0.0.0/8"}}
	starting := &State{Settings: busyState(t).Settings, Now: noon, Started: noon.Add(-4 * time.Second), Watches: []Watch{{Kind: "Pod", Since: noon}}}
	for name, s := range map[string]*State{"well.txt": busyState(t), "ill.txt": ill, "starting.txt": starting} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			status := s.Status()
			if err := status.WriteText(&out); err != nil {
				t.Fatal(err)
			}
			golden(t, name, out.Bytes())
			if status.Good() != (name == "well.txt") {
				t.Errorf("Good returned %t", status.Good())
			}
		})
	}
}

// The status and the metrics show the same counts of live connections, and their parts add up.
func TestLiveConnectionsAddUp(t *testing.T) {
	s := busyState(t)
	live := s.Status().Live
	if sum := live.Unchanged + live.Allowed + live.Revoked + live.Restored; sum != live.Judged || live.Judged == 0 {
		t.Errorf("%+v: the sum of the parts is %d, want %d", live, sum, live.Judged)
	}
	families, err := Registry(func() *State { return s }).Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]int)
	for _, f := range families {
		if f.GetName() == "sluice_connections_rejudged_total" {
			for _, m := range f.GetMetric() {
				got[m.GetLabel()[0].GetValue()] = int(m.GetCounter().GetValue())
			}
		}
	}
	want := map[string]int{"unchanged": live.Unchanged, "allowed": live.Allowed, "revoked": live.Revoked, "restored": live.Restored}
	if !maps.Equal(got, want) {
		t.Errorf("the metric has %v, and the status %v", got, want)
	}
}

func TestStatusUsesTheSingular(t *testing.T) {
	s := busyState(t)
	s.Kernel.Open = 1
	var out bytes.Buffer
	if err := s.Status().WriteText(&out); err != nil || !strings.Contains(out.String(), " 1 packet without") {
		t.Errorf("%v:\n%s", err, out.String())
	}
}

func TestStatusJSON(t *testing.T) {
	text, err := json.MarshalIndent(busyState(t).Status(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "status.json", append(text, '\n'))
}

func TestAgo(t *testing.T) {
	s := &Status{Now: noon}
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 3*time.Hour + 2*time.Minute + time.Second: "3h2m", 49 * time.Hour: "2 days",
	} {
		if got := s.ago(noon.Add(-d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
