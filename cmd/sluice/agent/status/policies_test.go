package status

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// The text has a bounded number of the policies that select pods of the node, each with a bounded number
// of pods. The wide text has all policies and pods.
func TestPoliciesInText(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	s := &Status{Settings: Settings{Node: "node-1"}, Now: now}
	for i := range 1000 {
		p := PolicyInForce{Kind: "NetworkPolicy", Namespace: "shop", Name: fmt.Sprintf("p%03d", i), Version: fmt.Sprint(i), Digest: "00112233445566", Since: now.Add(-time.Minute)}
		for pod := range i % 10 {
			p.Pods = append(p.Pods, fmt.Sprintf("shop/pod-%d", pod))
		}
		s.Policies = append(s.Policies, p)
	}
	s.Policies = append(s.Policies, PolicyInForce{Kind: "ClusterNetworkPolicy", Name: "platform", Tier: "Admin", Digest: "aabbccddeeff00", Since: now})
	text := func(all bool) string {
		var b strings.Builder
		if err := s.WriteText(&b, all); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	short := text(false)
	for _, want := range []string{
		"\nPolicies: 900 of 1001 select pods of node-1.\n  shop/p001  version 1, for 1m0s   shop/pod-0\n",
		"shop/p009  version 9, for 1m0s   shop/pod-0, shop/pod-1, shop/pod-2, shop/pod-3 and 5 more\n",
		"  and 880 more: see them with -o wide\n",
	} {
		if !strings.Contains(short, want) {
			t.Errorf("%q is missing in\n%s", want, short)
		}
	}
	if lines := strings.Count(short, "\n"); lines > 50 {
		t.Errorf("%d lines", lines)
	}
	wide := text(true)
	for _, want := range []string{"shop/pod-7, shop/pod-8\n", "  admin/platform  digest aabbccddeeff, for 0s"} {
		if !strings.Contains(wide, want) {
			t.Errorf("%q is missing with -o wide", want)
		}
	}
	if n := strings.Count(wide, "\n  shop/p"); n != 1000 || !strings.Contains(wide, "no pod here") {
		t.Errorf("-o wide has %d policies", n)
	}
}
