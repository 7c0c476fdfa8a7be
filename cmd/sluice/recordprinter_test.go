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
	p := recordPrinter{out: &out, format: "text", zone: time.UTC}
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
	p := recordPrinter{out: &out, format: "text", zone: time.UTC}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		p.print(recordAt(time.Duration(i)*100*time.Microsecond, uint16(i%20_000)))
		out.Reset()
	}
}

// observe tells once which settings the node lacks for the measures of connections.
func TestUnmeasured(t *testing.T) {
	ended := recordAt(0, 80)
	ended.Event = "ended"
	measured := recordAt(0, 80)
	measured.Event, measured.Seconds, measured.Sent = "ended", 1, &flow.Traffic{}
	counted := recordAt(0, 80)
	counted.Event, counted.Sent = "ended", &flow.Traffic{}
	for _, tt := range []struct {
		format  string
		records []*flow.Record
		want    string
	}{
		{"text", []*flow.Record{recordAt(0, 80), ended, ended}, "set net.netfilter.nf_conntrack_timestamp=1 and net.netfilter.nf_conntrack_acct=1 on the node"},
		{"text", []*flow.Record{counted}, "set net.netfilter.nf_conntrack_timestamp=1 on the node"},
		{"text", []*flow.Record{recordAt(0, 80), measured}, ""},
		{"json", []*flow.Record{ended}, ""},
	} {
		records := make(chan *flow.Record, len(tt.records))
		for _, r := range tt.records {
			records <- r
		}
		close(records)
		var out, errs bytes.Buffer
		if n := showRecords(env{stdout: &out, stderr: &errs}, &observeOptions{format: tt.format}, new(flow.Filter), records); n != len(tt.records) {
			t.Errorf("%d shown", n)
		}
		if text := errs.String(); strings.Count(text, "\n") > 1 || !strings.Contains(text, tt.want) || tt.want == "" && text != "" {
			t.Errorf("%s: %q, want %q", tt.format, text, tt.want)
		}
	}
}
