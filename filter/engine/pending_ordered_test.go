package engine_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// An ordered rule may deny a pod by its labels, although the pod's address is allowed while the
// pod is not known. So a packet from or to such an address is held if a rule that names pods by
// labels may still change the verdict.
func TestEvaluateHoldsForOrderedRules(t *testing.T) {
	const web, open, local, remote, outside = "10.1.0.1", "10.1.0.2", "10.1.0.9", "10.2.0.9", "192.0.2.1"
	tcp := func(port uint16) []policy.PortRange {
		return []policy.PortRange{{Protocol: filter.TCP, Low: port, High: port}}
	}
	pods := []policy.Peer{{Namespaces: labels.Everything(), Pods: labels.SelectorFromSet(labels.Set{"is": "foe"})}}
	rules := []policy.Rule{
		{Action: policy.Deny, Peers: pods, Ports: tcp(80)},
		{Action: policy.Deny, Ports: []policy.PortRange{{Protocol: filter.TCP, Name: "admin"}}},
		{Action: policy.Deny, Ports: tcp(22)},
		{Action: policy.Accept, Ports: tcp(443)},
		{Action: policy.Deny, Peers: pods, Ports: tcp(443)},
		{Action: policy.Accept, Peers: pods, Ports: tcp(90)},
		{Action: policy.Pass, Peers: pods, Ports: tcp(91)},
		{Action: policy.Accept, Ports: tcp(91)},
	}
	ingress := slices.Concat(rules[:1], rules[2:])
	w := policy.NewStore()
	w.SetPod(kubepod.Read(pod("web", web, map[string]string{"app": "web"})))
	w.SetPod(kubepod.Read(pod("open", open, nil)))
	w.SetPodRanges([]netip.Prefix{netip.MustParsePrefix("10.1.0.0/24")})
	w.SetNodeRanges("other", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")})
	w.SetPolicy(&policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "p"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.SelectorFromSet(labels.Set{"app": "web"})},
		Rules:   [2][]policy.Rule{filter.Egress: rules, filter.Ingress: ingress},
	})
	s, _ := w.Commit()
	var published policy.Published
	published.Publish(s)
	for _, tt := range []struct {
		src, dst string
		port     uint16
		want     filter.Action
		pending  string
		expired  string // the verdict after Expire, with the fail mode open
	}{
		{remote, web, 80, filter.Hold, remote, "allow, not-denied"},
		{web, remote, 80, filter.Hold, remote, "allow, not-denied"},
		{local, web, 80, filter.Hold, local, "allow, pod-not-known"},
		{web, local, 80, filter.Hold, local, "allow, pod-not-known"},
		{web, outside, 80, filter.Allow, "", ""},
		{remote, web, 8080, filter.Allow, "", ""},
		{web, remote, 8080, filter.Hold, remote, "allow, not-denied"}, // the port may be named admin
		{remote, open, 80, filter.Allow, "", ""},
		{remote, web, 22, filter.Deny, "", ""},
		{local, web, 22, filter.Deny, "", ""},
		{remote, web, 443, filter.Allow, "", ""},
		{remote, web, 90, filter.Allow, "", ""},
		{remote, web, 91, filter.Hold, remote, "allow, rule"},
	} {
		r := new(recorder)
		var said seen
		e := engine.New(engine.Config{Published: &published, Observer: &said, Tracker: r, FailOpen: true}, cache.NewFlows(16))
		e.Enter()
		data := datagram(key(tt.src, tt.dst, tt.port))
		action, pending := e.Evaluate(data, filter.AtPostrouting)
		if action != tt.want || pending.IsValid() != (tt.pending != "") || pending.IsValid() && pending.String() != tt.pending {
			t.Errorf("%s > %s %d: %v for %v, want %v for %q", tt.src, tt.dst, tt.port, action, pending, tt.want, tt.pending)
		}
		if tt.pending != "" {
			e.Expire(data, filter.AtPostrouting, true)
			if len(said) != 1 || !strings.HasSuffix(said[0], tt.expired) || len(r.tracked) != 1 {
				t.Errorf("%s > %s %d expired: observed %q, tracked %q; want %s", tt.src, tt.dst, tt.port, said, r.tracked, tt.expired)
			}
		}
		e.Exit()
		e.Close()
	}
}

// If no pod with an address in another node's ranges becomes known, only the first packet of the
// address waits: with an overlay network, packets of the other node itself have such a source.
func TestStrangersWaitOnce(t *testing.T) {
	w := policy.NewStore()
	w.SetPod(kubepod.Read(pod("web", "10.1.0.1", nil)))
	w.SetNodeRanges("other", []netip.Prefix{netip.MustParsePrefix("10.2.0.0/24")})
	w.SetPolicy(&policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "p"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.Everything()},
		Rules: [2][]policy.Rule{filter.Ingress: {
			{Action: policy.Deny, Peers: []policy.Peer{{Namespaces: labels.Everything(), Pods: labels.SelectorFromSet(labels.Set{"is": "foe"})}}},
		}},
	})
	var published policy.Published
	s, _ := w.Commit()
	published.Publish(s)
	r := new(recorder)
	config := engine.Config{Published: &published, Tracker: r, Strangers: new(engine.Strangers)}
	evaluate := func(port uint16, expire, waited bool) filter.Action {
		e := engine.New(config, cache.NewFlows(16))
		defer e.Close()
		e.Enter()
		defer e.Exit()
		data := datagram(key("10.2.0.0", "10.1.0.1", port))
		action, _ := e.Evaluate(data, filter.AtPostrouting)
		if action == filter.Hold && expire {
			return e.Expire(data, filter.AtPostrouting, waited)
		}
		return action
	}
	if got := evaluate(80, true, false); got != filter.Deny {
		t.Errorf("no room to wait: %s", got)
	}
	if got := evaluate(80, false, false); got != filter.Hold {
		t.Errorf("before any packet has waited: %s", got)
	}
	if got := evaluate(80, true, true); got != filter.Allow {
		t.Errorf("after waiting: %s", got)
	}
	if got := evaluate(81, false, false); got != filter.Allow {
		t.Errorf("the next connection: %s", got)
	}
	if len(r.tracked) < 2 {
		t.Errorf("tracked %q: live connections must be judged again if a pod gets the address", r.tracked)
	}
	foe := pod("foe", "10.2.0.0", map[string]string{"is": "foe"})
	w.SetPod(kubepod.Read(foe))
	s, _ = w.Commit()
	published.Publish(s)
	if got := evaluate(81, false, false); got != filter.Deny {
		t.Errorf("a pod has the address: %s", got)
	}
}
