package filter_test

import (
	"net/netip"
	"testing"

	"sluice/filter"
)

func TestNewKey(t *testing.T) {
	tests := []struct {
		src, dst string
		protocol filter.Protocol
		port     uint16
		want     string
	}{
		{"10.0.0.1", "10.0.0.2", filter.TCP, 80, "10.0.0.1 > 10.0.0.2 TCP 80"},
		{"::ffff:10.0.0.1", "10.0.0.2", filter.UDP, 0, "10.0.0.1 > 10.0.0.2 UDP 0"},
		{"fd00::1", "fd00::2", filter.SCTP, 65535, "fd00::1 > fd00::2 SCTP 65535"},
		{"10.0.0.1", "10.0.0.2", filter.ICMP, 80, "10.0.0.1 > 10.0.0.2 ICMP"},
		{"fd00::1", "fd00::2", filter.ICMPv6, 1, "fd00::1 > fd00::2 ICMPv6"},
		{"10.0.0.1", "10.0.0.2", 47, 80, "10.0.0.1 > 10.0.0.2 47"},
	}
	for _, test := range tests {
		k := filter.NewKey(netip.MustParseAddr(test.src), netip.MustParseAddr(test.dst), test.protocol, test.port)
		if got := k.String(); got != test.want {
			t.Errorf("%s, want %s", got, test.want)
		}
		if k.Protocol.HasPorts() != (k.Transport == filter.Ported) || k.Transport != filter.Ported && k.Port != 0 {
			t.Errorf("%s is %s with port %d", k, k.Transport, k.Port)
		}
	}
}

// All packets between two addresses have the same pair key, which is not the key of any
// packet.
func TestPair(t *testing.T) {
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	pair := filter.NewKey(a, b, filter.TCP, 80).Pair()
	if got, want := pair.String(), "10.0.0.1 > 10.0.0.2 any"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if pair != filter.NewKey(a, b, filter.ICMP, 0).Pair() || pair == (filter.Key{Src: pair.Src, Dst: pair.Dst}) {
		t.Error("the key of a pair depends on the packet, or is the key of a packet")
	}
}

// The zero Key is opaque, and the zero Verdict denies.
func TestZeroValuesAllowNothing(t *testing.T) {
	var k filter.Key
	if k.Transport != filter.Opaque {
		t.Errorf("the zero key is %s, want opaque", k.Transport)
	}
	var v filter.Verdict
	if v.Action != filter.Deny || v.Reason != filter.NoReason {
		t.Errorf("the zero verdict is %s, %s", v.Action, v.Reason)
	}
}

func TestSideAllows(t *testing.T) {
	isolation, rule := &filter.Isolation{Policies: []string{"a/b"}}, &filter.Rule{Policy: "a/b", Action: filter.RuleAccepts}
	for side, want := range map[filter.Side]bool{
		{}:                                 true,
		{Isolation: isolation}:             false,
		{Isolation: isolation, Rule: rule}: true,
	} {
		if side.Allows() != want {
			t.Errorf("%v allows: %t", side, side.Allows())
		}
	}
}

// Each reason has a different name, because logs and metrics show only the name.
func TestReasonsHaveNames(t *testing.T) {
	seen := map[string]filter.Reason{}
	r := filter.NoReason
	for ; r.String() != "invalid"; r++ {
		if other, ok := seen[r.String()]; ok || r.String() == "" {
			t.Errorf("reason %d is called %q, as is %d", r, r, other)
		}
		seen[r.String()] = r
	}
	if r <= filter.NotSynced {
		t.Errorf("reason %d has no name", r)
	}
}
