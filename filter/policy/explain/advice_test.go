package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sluice/filter/policy"
	"sluice/filter/policy/inventory"
)

func prefixes(text string) (all []netip.Prefix) {
	for _, p := range strings.Fields(text) {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// A range that is an exception of another range is joined with it into one range.
func TestJoinRanges(t *testing.T) {
	for name, tt := range map[string]struct {
		ranges [][2]string // prefix and exceptions
		want   string
	}{
		"alone":           {[][2]string{{"10.0.0.0/8", "10.1.0.0/16"}}, "10.0.0.0/8 except 10.1.0.0/16"},
		"filled":          {[][2]string{{"10.0.0.0/8", "10.1.0.0/16"}, {"10.1.0.0/16", ""}}, "10.0.0.0/8"},
		"filled in part":  {[][2]string{{"10.1.0.0/16", "10.1.2.0/24 10.1.3.0/24"}, {"10.0.0.0/8", "10.1.0.0/16 10.2.0.0/16"}}, "10.0.0.0/8 except 10.1.2.0/24, 10.1.3.0/24, 10.2.0.0/16"},
		"filled in turn":  {[][2]string{{"10.1.0.0/16", "10.1.2.0/24"}, {"10.1.2.0/24", ""}, {"10.0.0.0/8", "10.1.0.0/16"}}, "10.0.0.0/8"},
		"twice":           {[][2]string{{"10.1.0.0/16", ""}, {"10.1.0.0/16", ""}}, "10.1.0.0/16"},
		"apart":           {[][2]string{{"10.1.0.0/16", ""}, {"10.3.0.0/16", ""}}, "10.1.0.0/16, 10.3.0.0/16"},
		"of two families": {[][2]string{{"::/0", ""}, {"0.0.0.0/0", "10.0.0.0/8"}}, "0.0.0.0/0 except 10.0.0.0/8, ::/0"},
	} {
		t.Run(name, func(t *testing.T) {
			var all []inventory.Range
			for _, r := range tt.ranges {
				all = append(all, inventory.Range{Prefix: netip.MustParsePrefix(r[0]), Except: prefixes(r[1])})
			}
			var got []string
			for _, r := range joinRanges(all) {
				got = append(got, r.String())
			}
			if text := strings.Join(got, ", "); text != tt.want {
				t.Errorf("%s, want %s", text, tt.want)
			}
		})
	}
}

// The prefixes that cover a range without its exceptions contain exactly the remaining addresses.
func TestWithout(t *testing.T) {
	all, except := netip.MustParsePrefix("10.0.0.0/26"), prefixes("10.0.0.3/32 10.0.0.8/29 10.0.0.32/28")
	got := without(all, except)
	for a := all.Addr(); all.Contains(a); a = a.Next() {
		in := func(p netip.Prefix) bool { return p.Contains(a) }
		if slices.ContainsFunc(got, in) == slices.ContainsFunc(except, in) {
			t.Errorf("%s is in the prefixes %v and the exceptions %v, or in neither", a, got, except)
		}
	}
	if got := without(all, prefixes("10.0.0.0/8")); got != nil {
		t.Errorf("%v remain of nothing", got)
	}
}

// Advice to add a policy that newly isolates pods names these pods.
func TestEffectsWords(t *testing.T) {
	e := Explanation{Effects: &Effects{Isolates: []*policy.Pod{{Namespace: "shop", Name: "canary"}}}}
	var b strings.Builder
	e.writeEffects(&b)
	if want := "this opens nothing else\nthis also isolates shop/canary, which no policy isolates now: what no rule allows them is then denied\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	if !(&Effects{Opens: make([]Opening, 9)}).better(e.Effects) {
		t.Error("to isolate a pod is better than to open flows")
	}
	if got := fmt.Sprint(portTexts([]policy.PortRange{{Protocol: 6, Low: 81, High: 90}, {Protocol: 17, Low: 1, High: 65535}, {Protocol: 6, Low: 80, High: 80}})); got != "[TCP 80-90 every UDP port]" {
		t.Error(got)
	}
}
