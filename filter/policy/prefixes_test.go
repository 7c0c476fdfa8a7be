package policy

import (
	"net/netip"
	"slices"
	"testing"
)

func TestPrefixesOf(t *testing.T) {
	for _, tt := range []struct {
		low, high string
		want      []string
	}{
		{"10.0.0.1", "10.0.0.1", []string{"10.0.0.1/32"}},
		{"10.0.0.0", "10.0.0.255", []string{"10.0.0.0/24"}},
		{"10.0.0.1", "10.0.0.6", []string{"10.0.0.1/32", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6/32"}},
		{"0.0.0.0", "255.255.255.255", []string{"0.0.0.0/0"}},
		{"255.255.255.254", "255.255.255.255", []string{"255.255.255.254/31"}},
		{"fd00::1", "fd00::3", []string{"fd00::1/128", "fd00::2/127"}},
		{"::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", []string{"::/0"}},
	} {
		var got []string
		for _, p := range prefixesOf(nil, addrRange{netip.MustParseAddr(tt.low), netip.MustParseAddr(tt.high)}) {
			got = append(got, p.String())
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("from %s to %s: %v, want %v", tt.low, tt.high, got, tt.want)
		}
	}
}
