package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/filter/flow"
)

func recordAt(at time.Duration, port uint16) *flow.Record {
	return &flow.Record{
		Time: time.Unix(1_800_000_000, 0).Add(at), Event: "denied", Protocol: "TCP", DstPort: port,
		Src: netip.MustParseAddr("192.0.2.1"), Dst: netip.MustParseAddr("192.0.2.2"),
	}
}

// Equal records within a second are printed as two lines: one for the first record, and one with the
// number of the others. The test prints 10 records of each of 3 flows, within 2.4 s.
func TestRecordPrinterMerges(t *testing.T) {
	var out bytes.Buffer
	p := recordPrinter{out: &out, format: "text"}
	for i := range 30 {
		p.print(recordAt(time.Duration(i)*80*time.Millisecond, uint16(80+i%3)))
	}
	p.flush(time.Time{})
	lines := strings.Count(out.String(), "\n")
	if merged := strings.Count(out.String(), "  ×4\n"); lines != 12 || merged != 6 || len(p.recent)+len(p.known) > 0 {
		t.Errorf("%d lines, %d of them for 4 records; kept %d and %d:\n%s", lines, merged, len(p.recent), len(p.known), out.String())
	}
}

// BenchmarkRecordPrinter measures a record among 10,000 different ones within a second.
func BenchmarkRecordPrinter(b *testing.B) {
	var out bytes.Buffer
	p := recordPrinter{out: &out, format: "text"}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.print(recordAt(time.Duration(i)*100*time.Microsecond, uint16(i%20_000)))
		out.Reset()
	}
}
