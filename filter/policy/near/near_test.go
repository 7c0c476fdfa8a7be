package near_test

import (
	"testing"

	"sluice/filter/policy/near"
)

func TestName(t *testing.T) {
	names := []string{"podSelector", "policyTypes", "ingress", "egress", "db"}
	tests := []struct {
		name, want string
	}{
		{"podselector", "podSelector"},
		{"podSelecter", "podSelector"},
		{"policyType", "policyTypes"},
		{"ingres", "ingress"},
		{"egerss", "egress"},
		{"bd", "db"},
		{"ingress", "ingress"},
		{"frontend", ""},
		{"", ""},
	}
	for _, tt := range tests {
		got, ok := near.Name(tt.name, names)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("%q: %q, %t; want %q", tt.name, got, ok, tt.want)
		}
	}
}
