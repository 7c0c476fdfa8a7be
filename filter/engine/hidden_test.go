package engine_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/cache"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// behindOptions returns an IPv6 packet whose upper header begins behind destination options. Of
// a long header, only what the queue copies is returned.
func behindOptions(k filter.Key, options int, upper []byte) []byte {
	const ipv6, copied = 40, 256
	b := make([]byte, ipv6+options, ipv6+options+len(upper))
	b[0], b[6], b[7] = 0x60, 60, 64
	binary.BigEndian.PutUint16(b[4:], uint16(options+len(upper)))
	copy(b[8:], k.Src[:])
	copy(b[24:], k.Dst[:])
	b[ipv6], b[ipv6+1] = byte(k.Protocol), byte(options/8-1)
	b = append(b, upper...)
	return b[:min(len(b), copied)]
}

// A rule that denies ports also denies packets whose ports the agent cannot read, because the
// receiver may be able to read them. Packets of protocols without ports, and packets that may pass
// at every port, stay allowed.
func TestHiddenPortsAreDenied(t *testing.T) {
	const web, free, outside, node = "fd00::1", "fd00:1::1", "2001:db8::1", "fd00::77"
	w := policy.NewStore()
	for name, addr := range map[string]string{"web": web, "free": free} {
		w.SetPod(kubepod.Read(pod(name, addr, map[string]string{"app": name})))
	}
	w.SetNode([]netip.Addr{netip.MustParseAddr(node)})
	w.SetPolicy(&policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "no-ssh"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.SelectorFromSet(labels.Set{"app": "web"})},
		Rules: [2][]policy.Rule{
			filter.Egress:  {{Action: policy.Deny, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 22, High: 22}}}},
			filter.Ingress: {{Action: policy.Deny, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 22, High: 22}}}},
		},
	})
	w.SetPod(kubepod.Read(pod("mild", "fd00::3", map[string]string{"app": "mild"})))
	w.SetPolicy(&policy.Policy{
		Ref: policy.Ref{Kind: "ClusterNetworkPolicy", Name: "mild"}, Tier: policy.Admin,
		Subject: policy.Subject{Namespaces: labels.Everything(), Pods: labels.SelectorFromSet(labels.Set{"app": "mild"})},
		Rules:   [2][]policy.Rule{filter.Egress: {{Action: policy.Accept, Ports: []policy.PortRange{{Protocol: filter.TCP, Low: 22, High: 22}}}}},
	})
	s, _ := w.Commit()
	var published policy.Published
	published.Publish(s)
	syn := make([]byte, 20)
	syn[3], syn[12], syn[13] = 22, 5<<4, 0x02
	for _, tt := range []struct {
		name     string
		src, dst string
		protocol filter.Protocol
		options  int
		at       filter.Hook
		want     filter.Action
	}{
		{"a port that can be read", web, outside, filter.TCP, 8, filter.AtPostrouting, filter.Deny},
		{"hidden, egress", web, outside, filter.TCP, 264, filter.AtPostrouting, filter.Deny},
		{"hidden, ingress", outside, web, filter.TCP, 264, filter.AtPostrouting, filter.Deny},
		{"partly hidden", web, outside, filter.TCP, 208, filter.AtPostrouting, filter.Deny},
		{"hidden, to the node", web, node, filter.TCP, 264, filter.AtInput, filter.Deny},
		{"hidden, to a new address of the node", web, "fd00::78", filter.TCP, 264, filter.AtInput, filter.Deny},
		{"encrypted", web, outside, 50, 8, filter.AtPostrouting, filter.Allow},
		{"no rule denies", "fd00::3", outside, filter.TCP, 264, filter.AtPostrouting, filter.Allow},
		{"no rule denies, to the node", "fd00::3", node, filter.TCP, 264, filter.AtInput, filter.Allow},
		{"no policy", free, outside, filter.TCP, 264, filter.AtPostrouting, filter.Allow},
		{"no policy, to the node", free, node, filter.TCP, 264, filter.AtInput, filter.Allow},
		{"no policy, to a node with IPVS", free, node, filter.TCP, 272, filter.AtInput, filter.Deny},
	} {
		r := new(recorder)
		ipvs := func(filter.Key) (bool, bool) { return false, tt.options == 272 }
		e := engine.New(engine.Config{Published: &published, Tracker: r, Memory: r, Translated: ipvs}, cache.NewFlows(16))
		k := key(tt.src, tt.dst, 22)
		k.Protocol = tt.protocol
		data := behindOptions(k, tt.options, syn)
		e.Enter()
		for range 2 { // also from the flow cache
			if got, _ := e.Evaluate(data, tt.at); got != tt.want {
				t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
			}
		}
		e.Exit()
		e.Close()
		if tt.want == filter.Deny && len(r.tracked) > 0 {
			t.Errorf("%s: tracked %q", tt.name, r.tracked)
		}
	}
}
