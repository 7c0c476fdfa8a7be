package engine_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// recorder is a Memory and a FlowTracker that records keys.
type recorder struct{ remembered, tracked []string }

func (r *recorder) Remember(k policy.IDKey, action filter.Action) {
	r.remembered = append(r.remembered, fmt.Sprint(k, action))
}

func (r *recorder) Track(_ *policy.Snapshot, k filter.Key) {
	r.tracked = append(r.tracked, k.String())
}

// Only ordered rules decide packets to the node, even if the snapshot does not list the
// destination as an address of the node. Evaluate skips packets that IPVS translates, and holds
// packets of a starting pod.
func TestEvaluateToNode(t *testing.T) {
	w := policy.NewStore()
	w.SetNode([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	w.SetPod(kubepod.Read(pod("web", "10.1.0.1", map[string]string{"app": "web"})))
	w.SetPod(kubepod.Read(pod("other", "10.1.0.2", nil)))
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")})
	w.SetPolicy(netpol.Read(denyAll("default")))
	form := &policy.Policy{
		Ref: policy.Ref{Kind: "Ordered", Namespace: "default", Name: "p"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespace: "default", Pods: labels.SelectorFromSet(labels.Set{"app": "web"})},
		Rules:   [2][]policy.Rule{filter.Egress: {{Action: policy.Deny, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 80, High: 80}}}}},
	}
	var published policy.Published
	publish := func() { s, _ := w.Commit(); published.Publish(s) }
	publish()
	var said seen
	ipvs := false
	config := engine.Config{Published: &published, Observer: &said, Translated: func(k filter.Key) (bool, bool) { return ipvs && k.Port == 443, ipvs }}
	for _, tt := range []struct {
		name, src, dst string
		port           uint16
		policy, ipvs   bool
		want           string // the action, and the reason if it is observed
		remembered     bool
		tracked        bool
	}{
		{name: "NetworkPolicy alone", src: "10.1.0.1", dst: "192.0.2.1", port: 80, want: "allow, own-node"},
		{name: "a group, NetworkPolicy alone", src: "10.1.0.1", dst: "224.0.0.251", port: 80, want: "allow, own-node"},
		{name: "a starting pod, NetworkPolicy alone", src: "10.1.0.9", dst: "192.0.2.1", port: 80, want: "allow, own-node"},
		{name: "a rule denies", policy: true, src: "10.1.0.1", dst: "192.0.2.1", port: 80, want: "deny, egress-denied", remembered: true},
		{name: "no rule", policy: true, src: "10.1.0.1", dst: "192.0.2.1", port: 81, want: "allow, own-node", remembered: true, tracked: true},
		{name: "a new address", policy: true, src: "10.1.0.1", dst: "192.0.2.77", port: 80, want: "deny, egress-denied"},
		{name: "a group", policy: true, src: "10.1.0.1", dst: "224.0.0.251", port: 81, want: "allow, own-node", tracked: true},
		{name: "another pod", policy: true, src: "10.1.0.2", dst: "192.0.2.1", port: 80, want: "allow, own-node"},
		{name: "a starting pod", policy: true, src: "10.1.0.9", dst: "192.0.2.1", port: 80, want: "hold"},
		{name: "a starting pod and a group", policy: true, src: "10.1.0.9", dst: "224.0.0.251", port: 80, want: "hold"},
		{name: "from outside", policy: true, src: "198.51.100.1", dst: "192.0.2.1", port: 80, want: "allow, own-node"},
		{name: "IPVS translates", policy: true, ipvs: true, src: "10.1.0.1", dst: "192.0.2.1", port: 443, want: "skip"},
		{name: "IPVS does not translate", policy: true, ipvs: true, src: "10.1.0.1", dst: "192.0.2.1", port: 80, want: "deny, egress-denied"},
	} {
		if ipvs = tt.ipvs; tt.policy {
			w.SetPolicy(form)
			publish()
		}
		r := new(recorder)
		config.Memory, config.Tracker = r, r
		said = nil
		e := engine.New(config, cache.NewFlows(16))
		e.Enter()
		data := datagram(key(tt.src, tt.dst, tt.port))
		action, pending := e.Evaluate(data, filter.AtInput)
		got := action.String()
		if len(said) > 0 {
			got = said[0][strings.LastIndex(said[0], ": ")+2:]
		}
		if got != tt.want || (action == filter.Hold) != pending.IsValid() {
			t.Errorf("%s: %s, pending %s, want %s", tt.name, got, pending, tt.want)
		}
		if (len(r.remembered) == 1) != tt.remembered || (len(r.tracked) == 1) != tt.tracked {
			t.Errorf("%s: remembered %q, tracked %q", tt.name, r.remembered, r.tracked)
		}
		if action == filter.Hold {
			if late := e.Expire(data, filter.AtInput, true); late != filter.Deny {
				t.Errorf("%s: %s after waiting", tt.name, late)
			}
		}
		e.Exit()
		e.Close()
	}
}
