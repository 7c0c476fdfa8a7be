package status

import (
	"slices"
	"testing"

	"sluice/filter/policy"
)

func TestParseRef(t *testing.T) {
	for text, want := range map[string]policy.Ref{
		"default/web":                   {Kind: "NetworkPolicy", Namespace: "default", Name: "web"},
		"networkpolicy/default/web":     {Kind: "NetworkPolicy", Namespace: "default", Name: "web"},
		"NetworkPolicy/admin/web":       {Kind: "NetworkPolicy", Namespace: "admin", Name: "web"},
		"netpol/a/b":                    {Kind: "NetworkPolicy", Namespace: "a", Name: "b"},
		"admin/platform":                {Kind: "ClusterNetworkPolicy", Name: "platform"},
		"baseline/deny":                 {Kind: "ClusterNetworkPolicy", Name: "deny"},
		"clusternetworkpolicy/platform": {Kind: "ClusterNetworkPolicy", Name: "platform"},
		"cnp/platform":                  {Kind: "ClusterNetworkPolicy", Name: "platform"},
	} {
		got, err := ParseRef(text)
		if err != nil || got != want {
			t.Errorf("%q: %v, %v, want %v", text, got, err, want)
		}
		if again, err := ParseRef(RefText(want)); err != nil || again != want {
			t.Errorf("%q: %v, %v", RefText(want), again, err)
		}
	}
	for _, text := range []string{"", "web", "/", "default/", "/web", "pod/a/b", "a/b/c/d", "networkpolicy//x"} {
		if got, err := ParseRef(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func TestMissing(t *testing.T) {
	ref := policy.Ref{Kind: "NetworkPolicy", Namespace: "default", Name: "web"}
	in := PolicyInForce{Kind: ref.Kind, Namespace: "default", Name: "web", Version: "12", Digest: "aabbccddeeff0011"}
	for name, tt := range map[string]struct {
		wanted Wanted
		in     []PolicyInForce
		want   []string
	}{
		"any version":      {Wanted{}, []PolicyInForce{in}, nil},
		"not there":        {Wanted{}, nil, []string{"default/web is not in force"}},
		"same version":     {Wanted{Version: "12"}, []PolicyInForce{in}, nil},
		"later":            {Wanted{Version: "9"}, []PolicyInForce{in}, nil},
		"earlier":          {Wanted{Version: "100"}, []PolicyInForce{in}, []string{"default/web: version 12 is in force, and not 100"}},
		"not a number":     {Wanted{Version: "b"}, []PolicyInForce{in}, []string{"default/web: version 12 is in force, and not b"}},
		"digest":           {Wanted{Digest: in.Digest}, []PolicyInForce{in}, nil},
		"other digest":     {Wanted{Digest: "00"}, []PolicyInForce{in}, []string{"default/web: digest aabbccddeeff is in force, and not 00"}},
		"deleted":          {Wanted{Deleted: true}, nil, nil},
		"not deleted":      {Wanted{Deleted: true}, []PolicyInForce{in}, []string{"default/web (version 12) is still in force"}},
		"another's":        {Wanted{}, []PolicyInForce{{Kind: ref.Kind, Namespace: "other", Name: "web"}}, []string{"default/web is not in force"}},
		"version of files": {Wanted{Version: "12"}, []PolicyInForce{{Kind: ref.Kind, Namespace: "default", Name: "web", Digest: "ab"}}, []string{"default/web: digest ab is in force, and not 12"}},
	} {
		tt.wanted.Ref = ref
		v := Versions{Enforcing: true, Policies: tt.in}
		if left, got := v.Missing([]Wanted{tt.wanted}); !slices.Equal(got, tt.want) || len(left) != len(tt.want) {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
	if _, got := (&Versions{}).Missing([]Wanted{{Ref: ref, Deleted: true}}); len(got) != 1 {
		t.Errorf("before the agent enforces, a policy counts as deleted: %q", got)
	}
}
