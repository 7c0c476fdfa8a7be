package agent

import (
	"fmt"
	"runtime"
	"testing"

	"sluice/filter/policy"
)

// With 10,000 policies, enforced takes less than 300 bytes for each.
func TestEnforcedIsSmall(t *testing.T) {
	const n = 10_000
	w := policy.NewStore()
	for i := range n {
		w.SetEncoded(versioned(fmt.Sprintf("policy-%d", i), "a", fmt.Sprint(i)))
	}
	s, _ := w.Commit()
	s2, _ := w.Commit() // the names in the first one would be counted, too
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var e enforced
	e.applied(s, true)
	e.applied(s2, true)
	e.swept(s2.Number())
	runtime.GC()
	runtime.ReadMemStats(&after)
	if got := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; len(e.policies) != n || got > 300 {
		t.Errorf("%d policies take %d bytes each", len(e.policies), got)
	} else {
		t.Logf("%d bytes for each policy", got)
	}
	runtime.KeepAlive(s)
	runtime.KeepAlive(w)
}
