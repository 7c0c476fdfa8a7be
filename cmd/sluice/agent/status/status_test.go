package status

import (
	"testing"
	"time"
)

func TestAgo(t *testing.T) {
	noon := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	s := &Status{Now: noon}
	for d, want := range map[time.Duration]string{
		0: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 3*time.Hour + 2*time.Minute + time.Second: "3h2m", 49 * time.Hour: "2 days",
	} {
		if got := s.ago(noon.Add(-d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
