package policy

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// A rank table finds the ranks of the selectors that are in a set, whatever the form of the set,
// and whether or not the table has a bitmap of the selectors.
func TestColumns(t *testing.T) {
	forms := map[string]int{}
	for seed := range uint64(3000) {
		r := rand.New(rand.NewPCG(seed, 0))
		table, row := randomTable(r)
		var ids idBits
		ids.few = r.IntN(2) * 1000
		near := table.ids[r.IntN(len(table.ids))]
		for range r.IntN(200) {
			ids.set(near&^127 + r.Uint32N(256))
		}
		set := ids.take()
		begin := ranks{noRank, codedRank(r.IntN(100))}
		for _, c := range []*columns{&table.some, &table.whole} {
			forms[formOf(c, &set)]++
			want := begin
			for i, id := range table.ids {
				if set.has(id) && (i >= int(table.whole.begin)) == (c == &table.whole) {
					want = want.min(row[i])
				}
			}
			if got := table.lowest(c, row, &set, begin); got != want {
				t.Fatalf("seed %d, %s: %v, want %v", seed, formOf(c, &set), got, want)
			}
		}
	}
	for _, form := range []string{"bitmap, list", "bitmap, long list", "bitmap, dense", "list, list", "list, long list", "list, dense"} {
		if forms[form] < 10 {
			t.Errorf("only %d cases of %q: %v", forms[form], form, forms)
		}
	}
}

// randomTable returns a table with selectors and a row for them.
func randomTable(r *rand.Rand) (*rankTable, []ranks) {
	t := &rankTable{}
	used := map[uint32]bool{}
	for part := range 2 {
		var ids []uint32
		spread := []uint32{100, 2000, 1 << 20}[r.IntN(3)]
		for range 1 + r.IntN(40) {
			if id := r.Uint32N(spread); !used[id] {
				used[id] = true
				ids = append(ids, id)
			}
		}
		slices.Sort(ids)
		begin := uint32(len(t.ids))
		t.ids = append(t.ids, ids...)
		if c := newColumns(ids, begin); part == 0 {
			t.some = c
		} else {
			t.whole = c
		}
	}
	row := make([]ranks, len(t.ids)+1)
	for i := range row {
		row[i] = ranks{codedRank(r.IntN(1000)), codedRank(r.IntN(1000))}
	}
	return t, row
}

func formOf(c *columns, set *idSet) string {
	form := "bitmap, "
	if len(c.words) == 0 {
		form = "list, "
	}
	switch {
	case set.dense != nil:
		return form + "dense"
	case len(set.list) > fewIDs:
		return form + "long list"
	}
	return form + "list"
}

// codeOf keeps every unknown action unknown, so that a rule with one denies.
func TestCodesOfRanks(t *testing.T) {
	for action := range Action(255) {
		for _, portless := range []bool{false, true} {
			code := codeOf([]rank{{}, {action: action, portless: portless}}, 1)
			if got := Action(code & unknownAction); got != action && (action <= Pass || got <= Pass) {
				t.Errorf("action %d is coded as %d", action, got)
			}
			if code>>rankShift != 1 || (code&portlessBit != 0) != portless {
				t.Errorf("action %d, portless %t: code %b", action, portless, code)
			}
		}
	}
	if codeOf(nil, noRule) != noRank {
		t.Error("no rule has a code other than noRank")
	}
}
