package telemetry

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/cmd/sluice/agent/status"
	"sluice/watch/node"
)

func TestStatusText(t *testing.T) {
	ill := busyState(t)
	ill.Watches[1].Broken, ill.Watches[1].Since = "User \"x\" cannot watch networkpolicies: give it the verb", noon.Add(-50*time.Hour)
	ill.Watches[2].Version = "" // not installed
	ill.Failing = []string{"mangle of IPv6: ip6tables-restore: the lock is held"}
	ill.Problems = []status.Problem{{Kind: "policy", Where: "default/bad, spec.ingress[0].from[0].ipBlock.cidr", Detail: `"10.0.0.01/8" is no CIDR`, Hint: "write 10.0.0.0/8"}}
	starting := &State{Settings: busyState(t).Settings, Now: noon, Started: noon.Add(-4 * time.Second), Watches: []status.Watch{{Kind: "Pod", Since: noon}}}
	for name, s := range map[string]*State{
		"well.txt": busyState(t), "ill.txt": ill, "starting.txt": starting, "forbidden.txt": forbiddenState(t), "bridge.txt": bridgeState(t),
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			status := s.Status()
			if err := status.WriteText(&out, false); err != nil {
				t.Fatal(err)
			}
			golden(t, name, out.Bytes())
			if status.Good() != (name == "well.txt") {
				t.Errorf("Good returned %t", status.Good())
			}
		})
	}
}

// forbiddenState is the state of an agent whose ClusterRole is older than the agent. README.md shows
// its status.
func forbiddenState(t *testing.T) *State {
	s := busyState(t)
	s.Settings.Sources, s.Ready, s.Snapshot = []string{"10.96.0.1:443"}, time.Time{}, nil
	s.Started, s.Watches[2].Synced, s.Watches[2].Since = noon.Add(-40*time.Second), false, noon.Add(-39*time.Second)
	s.Watches[2].Broken = `list clusternetworkpolicies at 10.96.0.1:443: clusternetworkpolicies.policy.networking.k8s.io is forbidden: ` +
		`User "system:serviceaccount:kube-system:sluice" cannot list resource "clusternetworkpolicies" in API group "policy.networking.k8s.io" at the cluster scope: ` +
		`let this user list and watch clusternetworkpolicies of API group "policy.networking.k8s.io" in the whole cluster, with a ClusterRole and a ClusterRoleBinding`
	return s
}

// bridgeState is the state of an agent on a node whose pods share a bridge, and whose sysctls let their
// packets bypass iptables. README.md shows its status.
func bridgeState(t *testing.T) *State {
	s := busyState(t)
	root := t.TempDir()
	for setting, value := range map[string]string{"bridge-nf-call-iptables": "0", "bridge-nf-call-ip6tables": "1"} {
		path := filepath.Join(root, "net", "bridge", setting)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range node.CheckSettings(root, []node.Link{{Name: "cni0"}}, true) {
		s.Problems = append(s.Problems, status.Problem{Kind: "sysctl", Where: p.Setting + ", " + p.Where, Detail: p.Detail, Hint: p.Hint})
	}
	return s
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
	if err := s.Status().WriteText(&out, false); err != nil || !strings.Contains(out.String(), " 1 packet without") {
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
