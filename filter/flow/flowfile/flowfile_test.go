package flowfile_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	"sluice/filter/flow"
	"sluice/filter/flow/flowfile"
	"sluice/filter/flow/hubbleflow"
)

// text describes a flow for comparisons.
func text(f flowfile.Flow) string {
	if f.Skip != "" {
		return "skip: " + string(f.Skip)
	}
	end := func(e *flow.End) string {
		if e == nil {
			return "?"
		}
		name := e.Kind + " " + e.Namespace + "/" + e.Pod + " " + e.Node
		if e.Workload != nil {
			name += " of " + e.Workload.Name
		}
		return fmt.Sprint(name, " ", e.Labels)
	}
	r := f.Record
	return fmt.Sprintf("%s %s %s %s %s %d: %s to %s, %s", r.Time.UTC().Format("15:04:05"), r.Event, r.Reason, r.Node, r.Protocol, r.DstPort, end(r.From), end(r.Into), r.Src)
}

// lines are lines in all forms, as agents write them. want is the flow that a line contains, or the reason
// to skip it.
var lines = []struct{ name, line, want string }{
	{"ours", `{"time":"2026-11-26T10:00:01Z","node":"n1","event":"allowed","reason":"rule","src":"10.0.0.1","sport":4000,"dst":"10.0.0.2","dport":80,"proto":"TCP","from":{"kind":"pod","namespace":"shop","pod":"web-1","workload":{"kind":"Deployment","name":"web"},"labels":{"app":"web"},"node":"n1"},"to":{"kind":"world"}}`,
		"10:00:01 allowed rule n1 TCP 80: pod shop/web-1 n1 of web map[app:web] to world /  map[], 10.0.0.1"},
	{"ours, left out", `{"time":"2026-11-26T10:00:01Z","event":"left-out","count":7}`, "10:00:01 left-out    0: ? to ?, invalid IP"},
	{"ours, not recorded", `{"time":"2026-11-26T10:00:01Z","node":"n1","event":"unrecorded","missing":"all","seconds":60}`, "10:00:01 unrecorded  n1  0: ? to ?, invalid IP"},
	{"log", `{"time":"2026-11-26T10:00:02Z","level":"INFO","msg":"verdict","event":"verdict","verdict":"deny","reason":"ingress-denied","src":"203.0.113.9","dst":"10.0.0.2","proto":"TCP","sport":1,"dport":22,"to":"shop/db-0"}`,
		"10:00:02 denied ingress-denied  TCP 22: ? to pod shop/db-0  map[], 203.0.113.9"},
	{"log of another event", `{"time":"2026-11-26T10:00:02Z","msg":"ready","event":"ready","from":{"a":1}}`, "skip: lines of a log without a flow"},
	{"Hubble", `{"flow":{"time":"2026-11-26T10:00:03.5Z","verdict":"FORWARDED","IP":{"source":"10.0.0.1","destination":"10.0.0.2","ipVersion":"IPv4"},"l4":{"TCP":{"source_port":4000,"destination_port":80,"flags":{"SYN":true}}},"source":{"ID":7,"identity":9,"namespace":"shop","labels":["k8s:app=web","k8s:io.kubernetes.pod.namespace=shop","k8s:io.cilium.k8s.policy.cluster=default"],"pod_name":"web-1","workloads":[{"name":"web","kind":"Deployment"}]},"destination":{"identity":1,"labels":["reserved:host"]},"Type":"L3_L4","node_name":"kind/n1","event_type":{"type":4,"sub_type":3},"is_reply":false,"traffic_direction":"EGRESS"},"node_name":"kind/n1","time":"2026-11-26T10:00:03.5Z"}`,
		"10:00:03 allowed  n1 TCP 80: pod shop/web-1 n1 of web map[app:web] to host / n1 map[], 10.0.0.1"},
	{"Hubble, without the object around it, of a later version", `{"time":"2026-11-26T10:00:04Z","verdict":"DROPPED","drop_reason":133,"drop_reason_desc":"POLICY_DENIED","new_field":{"a":[1]},"IP":{"source":"203.0.113.9","destination":"10.0.0.2"},"l4":{"UDP":{"source_port":4000,"destination_port":53}},"source":{"identity":2,"labels":["reserved:world"]},"destination":{"namespace":"shop","pod_name":"db-0"},"node_name":"n1","event_type":{"type":1},"traffic_direction":"INGRESS"}`,
		"10:00:04 denied ingress-denied n1 UDP 53: world /  map[] to pod shop/db-0 n1 map[], 203.0.113.9"},
	{"Hubble, dropped for another reason", `{"flow":{"time":"2026-11-26T10:00:04Z","verdict":"DROPPED","drop_reason_desc":"CT_MAP_INSERTION_FAILED","IP":{"source":"10.0.0.9","destination":"10.0.0.2"},"l4":{"ICMPv4":{"type":8}}}}`,
		"10:00:04 denied ct-map-insertion-failed  ICMP 0: ? to ?, 10.0.0.9"},
	{"Hubble, reply", `{"flow":{"verdict":"FORWARDED","IP":{"source":"10.0.0.2","destination":"10.0.0.1"},"l4":{"TCP":{"source_port":80,"destination_port":4000}},"is_reply":true}}`, "skip: replies"},
	{"Hubble, reply, not said", `{"flow":{"verdict":"FORWARDED","IP":{"source":"10.0.0.2"},"l4":{"TCP":{"source_port":80,"destination_port":4000,"flags":{"SYN":true,"ACK":true}}}}}`, "skip: replies"},
	{"Hubble, unknown direction", `{"flow":{"verdict":"FORWARDED","IP":{"source":"10.0.0.2"},"l4":{"UDP":{"source_port":53,"destination_port":4000}},"event_type":{"type":4}}}`, "skip: packets in an unknown direction: requests or replies"},
	{"Hubble, request", `{"flow":{"verdict":"FORWARDED","IP":{"source":"10.0.0.2"},"l7":{"type":"REQUEST","http":{"method":"GET"}},"Type":"L7"}}`, "skip: requests of HTTP, DNS and others within connections"},
	{"Hubble, translated", `{"flow":{"verdict":"TRANSLATED","IP":{"source":"10.0.0.2"},"is_reply":false}}`, "skip: events without a verdict"},
	{"Hubble, lost", `{"lost_events":{"source":"PERF_EVENT_RING_BUFFER","num_events_lost":"5"},"node_name":"n1","time":"2026-11-26T10:00:05Z"}`, "10:00:05 left-out  n1  0: ? to ?, invalid IP"},
	{"ours, not recorded", `{"time":"2026-11-26T10:00:01Z","event":"unrecorded","missing":"all","seconds":3}`, "10:00:01 unrecorded    0: ? to ?, invalid IP"},
	{"ours, revoked", `{"time":"2026-11-26T10:00:01Z","event":"denied","revoked":true,"src":"10.0.0.1","dst":"10.0.0.2","dport":80,"proto":"TCP"}`, "skip: connections from before, which changed policies have closed"},
	{"log, revoked", `{"time":"2026-11-26T10:00:02Z","msg":"verdict","event":"verdict","verdict":"deny","revoked":true,"src":"10.0.0.1","dst":"10.0.0.2","proto":"TCP","dport":80}`, "skip: connections from before, which changed policies have closed"},
	{"Hubble, revoked, of ours", `{"flow":{"verdict":"DROPPED","emitter":{"name":"Sluice"},"IP":{"source":"10.0.0.1","destination":"10.0.0.2"},"l4":{"UDP":{"destination_port":53}},"event_type":{"type":5}}}`, "skip: connections from before, which changed policies have closed"},
}

func TestParse(t *testing.T) {
	p := flowfile.NewParser() // one for all lines, as for a file with lines of several forms
	for _, tt := range lines {
		f, ok := p.Parse([]byte(tt.line))
		if !ok {
			t.Errorf("%s: not read", tt.name)
		} else if got := text(f); got != tt.want {
			t.Errorf("%s:\n%s, want\n%s", tt.name, got, tt.want)
		}
	}
}

// A record that is converted to Hubble's form and read again is the same record, except for its rules.
func TestHubbleFormOfOurRecord(t *testing.T) {
	p := flowfile.NewParser()
	for _, tt := range lines[:2] {
		f, _ := p.Parse([]byte(tt.line))
		again, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(hubbleflow.Response(f.Record))
		if err != nil {
			t.Fatal(err)
		}
		back, ok := p.Parse(again)
		if !ok {
			t.Fatalf("not read: %s", again)
		}
		back.Reason = f.Reason // allowed flows of Hubble have no reason
		if got, want := text(back), text(f); got != want {
			t.Errorf("%s:\n%s, want\n%s", tt.name, got, want)
		}
	}
}

// A denial of "sluice denied -o json" has the time of its first packet, and the number of packets.
func TestParseDenial(t *testing.T) {
	f, ok := flowfile.NewParser().Parse([]byte(`{"time":"2026-11-26T10:00:09Z","first":"2026-11-26T10:00:01Z","event":"denied","reason":"ingress-denied","count":7}`))
	if !ok || f.Count != 7 || f.Time.Sub(f.First).Seconds() != 8 {
		t.Errorf("%+v, %t", f, ok)
	}
}

func TestReader(t *testing.T) {
	file := lines[0].line + "\n\n{\"from\":\"a\",\"to\":\"b\"}\n" + `{"flow":{"x":"` + strings.Repeat("x", flowfile.MaxLine) + "\"}}\nnot JSON\n" + lines[5].line
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := io.WriteString(z, file); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]io.Reader{"plain": strings.NewReader(file), "gzip": &packed} {
		want := "allowed|line 3 is not a flow in a known form|line 4 is longer than 1048576 bytes|line 5 is not JSON|allowed"
		if text := strings.Join(events(t, in), "|"); text != want {
			t.Errorf("%s: %s, want %s", name, text, want)
		}
	}
}

// events returns the events and the errors of lines in a file.
func events(t *testing.T, in io.Reader) (got []string) {
	t.Helper()
	r, err := flowfile.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	for {
		f, err := r.Next()
		var wrong *flowfile.LineError
		switch {
		case errors.Is(err, io.EOF):
			return got
		case errors.As(err, &wrong):
			got = append(got, err.Error())
			continue
		case err != nil:
			t.Fatal(err)
		}
		got = append(got, f.Event)
	}
}

// The elements of an array are lines, whatever lines the file has.
func TestReaderOfArray(t *testing.T) {
	for file, want := range map[string]string{
		"[\n  " + strings.ReplaceAll(lines[0].line, ",", ",\n  ") + ",\n  5, {}]\n": "allowed|line 2 is not a flow in a known form|line 3 is not a flow in a known form",
		"[]": "",
	} {
		if text := strings.Join(events(t, strings.NewReader(file)), "|"); text != want {
			t.Errorf("%s: %s, want %s", file, text, want)
		}
	}
	for file, want := range map[string]string{
		"[" + lines[0].line:          "line 2: unexpected EOF",
		"[" + lines[0].line + ", oh": "line 2: invalid character",
	} {
		r, err := flowfile.NewReader(strings.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Next(); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if _, err := r.Next(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", file, err, want)
		}
	}
}

// A compressed file that breaks off is an error, because flows may be missing.
func TestReaderOfBrokenGzip(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = io.WriteString(z, lines[0].line+"\n") // a buffer returns no error
	_ = z.Flush()
	r, err := flowfile.NewReader(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := r.Next(); err != nil || f.Event != "allowed" {
		t.Errorf("%v, %v", f, err)
	}
	if _, err := r.Next(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v, want an unexpected end", err)
	}
}

func BenchmarkParse(b *testing.B) {
	for _, i := range []int{0, 3, 5} {
		b.Run(lines[i].name, func(b *testing.B) {
			p := flowfile.NewParser()
			b.SetBytes(int64(len(lines[i].line)))
			for b.Loop() {
				p.Parse([]byte(lines[i].line))
			}
		})
	}
}
