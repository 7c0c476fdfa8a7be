package reach_test

import (
	"fmt"
	"testing"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/reach"
)

func spans(verdict reach.Verdict, low, high uint16) []reach.Span {
	deny, a := &reach.Answer{}, &reach.Answer{Verdict: verdict}
	return []reach.Span{
		{Protocol: filter.TCP, Low: 1, High: low - 1, Answer: deny}, {Protocol: filter.TCP, Low: low, High: high, Answer: a},
		{Protocol: filter.TCP, Low: high + 1, High: 65535, Answer: deny},
		{Protocol: filter.UDP, Low: 1, High: 65535, Answer: deny}, {Protocol: filter.SCTP, Low: 1, High: 65535, Answer: deny}, {Protocol: filter.ICMP, Answer: deny},
	}
}

// OnlyDeclared is true if some declared ports are open, and no other port is open, not even for one
// family.
func TestOnlyDeclared(t *testing.T) {
	declared := []policy.NamedPort{{Protocol: filter.TCP, Number: 80}, {Name: "b", Protocol: filter.TCP, Number: 81}}
	tests := map[string]struct {
		spans    []reach.Span
		declared []policy.NamedPort
		want     bool
	}{
		"exactly":          {spans(reach.Allow, 80, 81), declared, true},
		"one is closed":    {spans(reach.Allow, 80, 80), declared, true},
		"one more":         {spans(reach.Allow, 80, 82), declared, false},
		"of one family":    {spans(reach.Mixed, 80, 81), declared, false},
		"nothing declared": {spans(reach.Allow, 80, 81), nil, false},
		"nothing open":     {spans(reach.Deny, 80, 81), declared, false},
	}
	for name, tt := range tests {
		if got := reach.OnlyDeclared(tt.spans, tt.declared); got != tt.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestOthers(t *testing.T) {
	all := spans(reach.Allow, 80, 81)
	for name, tt := range map[string]struct {
		spans []reach.Span
		want  string
	}{
		"none":   {nil, "[TCP UDP SCTP ICMP]"},
		"all":    {all, "[]"},
		"middle": {all[1:2], "[TCP 1-79 TCP 82-65535 UDP SCTP ICMP]"},
		"but":    {append(all[:1:1], all[2:]...), "[TCP 80-81]"},
		"ends":   {[]reach.Span{all[0], all[2], all[5]}, "[TCP 80-81 UDP SCTP]"},
	} {
		if got := fmt.Sprint(reach.Others(tt.spans)); got != tt.want {
			t.Errorf("%s: %s, want %s", name, got, tt.want)
		}
	}
}

// Joined joins spans that touch even if their answers differ.
func TestJoined(t *testing.T) {
	all := spans(reach.Allow, 80, 81)
	closed := func(v reach.Verdict) bool { return v == reach.Deny }
	if got := fmt.Sprint(reach.Joined(all, closed)); got != "[TCP 1-79 TCP 82-65535 UDP SCTP ICMP]" {
		t.Error(got)
	}
	all[1].Answer = &reach.Answer{Verdict: reach.Deny}
	if got := fmt.Sprint(reach.Joined(all, closed)); got != "[TCP UDP SCTP ICMP]" {
		t.Error(got)
	}
}
