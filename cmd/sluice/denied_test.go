package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sluice/filter/flow"
)

// testdata/denied.json and testdata/observe.jsonl have records that an agent made in the demo (step both).
// The commands denied and observe print them as denied.txt and observe.txt. README.md shows a part of
// denied.txt.
func TestDeniedAndObserveText(t *testing.T) {
	now := time.Date(2026, 11, 27, 10, 37, 14, 0, time.UTC)
	var out bytes.Buffer
	e := env{stdout: &out}

	var all, shown []*flow.DenialRecord
	if err := json.Unmarshal(readTestdata(t, "denied.json"), &all); err != nil {
		t.Fatal(err)
	}
	opts := observeOptions{format: "text", to: []string{"default/db"}, ports: []string{"6379/tcp"}}
	selected, err := opts.filter()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		if selected.Selects(&d.Record) {
			shown = append(shown, d)
		}
	}
	if err := writeDenials(e, &opts, shown, now); err != nil {
		t.Fatal(err)
	}
	compareTestdata(t, "denied.txt", out.Bytes())

	out.Reset()
	p := recordPrinter{out: &out, format: "text", zone: time.UTC}
	for d := json.NewDecoder(bytes.NewReader(readTestdata(t, "observe.jsonl"))); d.More(); {
		r := new(flow.Record)
		if err := d.Decode(r); err != nil {
			t.Fatal(err)
		}
		p.print(r)
	}
	p.flush(time.Time{})
	compareTestdata(t, "observe.txt", out.Bytes())
}

// Denials that differ only in the addresses of pods are one row, with their packets added up. A denial at
// another port is a row of its own.
func TestDenialRows(t *testing.T) {
	denial := func(src string, port uint16, count uint64, first, last int) *flow.DenialRecord {
		at := time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC)
		return &flow.DenialRecord{
			Record: flow.Record{
				Time: at.Add(time.Duration(last) * time.Second), Event: "denied", Reason: "ingress-denied", Src: netip.MustParseAddr(src), DstPort: port, Protocol: "TCP", Count: count,
				From: &flow.End{Kind: flow.PodEnd, Namespace: "default", Pod: "web"}, Into: &flow.End{Kind: flow.PodEnd, Namespace: "default", Pod: "db"},
			},
			First: at.Add(time.Duration(first) * time.Second),
		}
	}
	rows := denialRows([]*flow.DenialRecord{denial("10.0.0.1", 80, 3, 5, 9), denial("10.0.0.1", 81, 1, 8, 8), denial("fd00::1", 80, 4, 2, 7)})
	if len(rows) != 2 || rows[0].count != 7 || rows[0].first.Second() != 2 || rows[0].last.Second() != 9 || rows[1].count != 1 {
		t.Errorf("%+v", rows)
	}
}

func readTestdata(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// compareTestdata compares a text with a file of testdata. If SLUICE_UPDATE_SCRIPTS is set, it first
// writes the text into the file.
func compareTestdata(t *testing.T, name string, got []byte) {
	t.Helper()
	if os.Getenv("SLUICE_UPDATE_SCRIPTS") != "" {
		if err := os.WriteFile(filepath.Join("testdata", name), got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := readTestdata(t, name); !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%swant\n%s", name, got, want)
	}
}

// Below the table, denied tells since when there are denials and what the table does not have.
func TestSayOfTable(t *testing.T) {
	now := time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC)
	one := []*flow.DenialRecord{{}}
	for _, tt := range []struct {
		all   flow.DenialTable
		shown int
		want  string
	}{
		{flow.DenialTable{}, 0, "nothing was denied since the agent began 2.0s ago\n"},
		{flow.DenialTable{Denials: one}, 0, "no such denial since the agent began 2.0s ago: 1 other denial does not match the conditions\n"},
		{flow.DenialTable{Denials: one}, 1, ""},
		{flow.DenialTable{Denials: one, Displaced: 7}, 1, "(7 earlier denials are not kept: the agent keeps the last 512)\n"},
	} {
		var out bytes.Buffer
		tt.all.Since = now.Add(-2 * time.Second)
		sayOfTable(env{stdout: &out}, &tt.all, tt.shown, now)
		if out.String() != tt.want {
			t.Errorf("%+v: %q, want %q", tt.all, out.String(), tt.want)
		}
	}
}
