package conntrack

import (
	"testing"
	"time"

	"sluice/filter"
)

// The time of the last packet follows from the time at which an entry has left the table, the timeout of its
// state and what was left of the timeout.
func TestLast(t *testing.T) {
	const timeWait = 120 * time.Second
	all := timeouts{udp: 30 * time.Second, udpStream: 120 * time.Second, icmp: 30 * time.Second}
	all.tcp[tcpTimeWait], all.tcp[tcpClose] = timeWait, 10*time.Second
	began := time.Unix(1000, 0)
	at := func(seconds float64) time.Time { return began.Add(time.Duration(seconds * float64(time.Second))) }
	for _, tt := range []struct {
		name            string
		proto           filter.Protocol
		state           uint8
		assured         bool
		stop, remaining float64
		want            float64 // -1: not known
	}{
		{"closed", filter.TCP, tcpTimeWait, true, 123.5, 0, 3.5},
		{"reset", filter.TCP, tcpClose, true, 12, 0, 2},
		{"replaced by a connection with the same ports", filter.TCP, tcpTimeWait, true, 33, 90, 4},
		{"refused, and removed at once", filter.TCP, tcpClose, false, 0.1, 119, 0.1},
		{"removed at once", filter.TCP, tcpTimeWait, true, 5, 119, 5},
		{"state not reported", filter.TCP, 0, true, 123, 0, -1},
		{"unknown state", filter.TCP, 99, true, 123, 0, -1},
		{"UDP", filter.UDP, 0, false, 31, 0, 1},
		{"UDP, a stream", filter.UDP, 0, true, 125, 0, 5},
		{"ICMP", filter.ICMP, 0, false, 30, 0, 0},
		{"timeout changed", filter.UDP, 0, false, 20, 0, 0},
		{"timeout not known", filter.ICMPv6, 0, false, 30, 0, -1},
		{"SCTP", filter.SCTP, 0, true, 30, 0, -1},
	} {
		e := &Event{Began: began, assured: tt.assured}
		e.Key.Protocol, e.tcpState = tt.proto, tt.state
		got, want := all.last(e, at(tt.stop), time.Duration(tt.remaining*float64(time.Second))), at(tt.want)
		if tt.want < 0 {
			want = time.Time{}
		}
		if !got.Equal(want) {
			t.Errorf("%s: %v, want %v", tt.name, got.Sub(began), want.Sub(began))
		}
	}
	if got := all.last(&Event{}, time.Time{}, 0); !got.IsZero() {
		t.Errorf("without times: %v", got)
	}
}
