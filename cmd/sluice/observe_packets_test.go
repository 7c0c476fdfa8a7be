//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/gopacket/layers"
	"google.golang.org/protobuf/encoding/protojson"

	"sluice/bench/testbed/lab"
	"sluice/cmd/sluice/agent/status"
	"sluice/filter/flow"
	"sluice/filter/flow/hubbleflow"
	"sluice/filter/policy/matrix"
)

// watched collects the records that an agent streams.
type watched struct {
	t       *testing.T
	mu      sync.Mutex
	records []*flow.Record
	cancel  func()
	done    chan error
}

// watch starts to watch the flows of the agent.
func (s *testbed) watch(t *testing.T) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	answer, err := status.Open(ctx, s.socket, "/flows?follow=true")
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	w := &watched{t: t, cancel: cancel, done: make(chan error, 1)}
	go func() {
		defer answer.Close()
		for decoder := json.NewDecoder(answer); ; {
			r := new(flow.Record)
			if err := decoder.Decode(r); err != nil {
				w.done <- err
				return
			}
			w.mu.Lock()
			w.records = append(w.records, r)
			w.mu.Unlock()
		}
	}()
	t.Cleanup(w.stop)
	return w
}

func (w *watched) stop() {
	if w.cancel == nil {
		return
	}
	w.cancel()
	w.cancel = nil
	if err := <-w.done; !errors.Is(err, context.Canceled) && !errors.Is(err, io.EOF) {
		w.t.Errorf("read flows: %v", err)
	}
}

// count returns how many records match, and how many records were left out.
func (w *watched) count(match func(*flow.Record) bool) (n, left int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.records {
		switch {
		case r.Event == "left-out":
			left += int(r.Count)
		case match(r):
			n++
		}
	}
	return n, left
}

// With the kernel's flow cache, a watcher gets one record for each connection and for each denied packet,
// or the number of records that are missing. The records have the right pods and policies.
func TestObserveOnPackets(t *testing.T) {
	attempts := 10_000
	if testing.Short() {
		attempts = 500
	}
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs()...)
	w := s.watch(t)
	db := s.host("default/db")
	to := netip.AddrPortFrom(db.IPv4, 6379)
	pr := s.newProberBetween(t, "default/other", "default/db", false)
	began := time.Now()
	for i := range attempts {
		if r := s.host("default/web").Connect(t.Context(), "tcp", to, probeTimeout); r.Outcome != lab.Reached {
			t.Fatalf("connection %d: %v", i, r)
		}
		syn := &layers.TCP{SYN: true, SrcPort: layers.TCPPort(20_000 + i), DstPort: 6379, Seq: 1, Window: 100}
		if err := pr.host("default/other").Send(pr.packet(layers.IPProtocolTCP, syn)); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d connections and as many denied packets in %v", attempts, time.Since(began))
	isAllowed := func(r *flow.Record) bool {
		return r.Event == "allowed" && r.DstPort == 6379 && r.From.Pod == "web" && r.Into.Pod == "db"
	}
	isDenied := func(r *flow.Record) bool {
		return r.Event == "denied" && r.DstPort == 6379 && r.From.Pod == "other" && r.Into.Pod == "db"
	}
	s.eventually(t, "all flows are seen or counted", func() bool {
		allowed, left := w.count(isAllowed)
		denied, _ := w.count(isDenied)
		return allowed+denied+left >= 2*attempts
	})
	w.stop()
	allowed, left := w.count(isAllowed)
	denied, _ := w.count(isDenied)
	t.Logf("%d allowed and %d denied are seen, %d left out", allowed, denied, left)
	if allowed > attempts || denied > attempts || allowed+denied+left != 2*attempts || allowed < attempts/2 {
		t.Errorf("%d allowed and %d denied, of %d each", allowed, denied, attempts)
	}
	seen, kernel := make(map[string]bool), 0
	var all []*flow.Record
	for _, r := range w.records {
		if !isAllowed(r) && !isDenied(r) {
			continue
		}
		key := r.Event + netip.AddrPortFrom(r.Src, r.SrcPort).String()
		if seen[key] && isDenied(r) { // a new connection may reuse the port of one that has ended
			t.Fatalf("twice: %s", key)
		}
		seen[key] = true
		if r.By == "kernel" {
			kernel++
		}
		all = append(all, r)
		if r.Ingress == nil || strings.Join(r.Policies(), " ") != "default/access-demo1" || r.Egress != nil || (r.Ingress.Action == "accept") != isAllowed(r) {
			t.Fatalf("%+v: ingress %+v", r, r.Ingress)
		}
	}
	s.checkExplained(t, all)
	if kernel < denied/2 {
		t.Errorf("%d of %d denied packets are the kernel's, so that they are not what the test is about", kernel, denied)
	}
	want := fmt.Sprintf(`sluice_policy_denied_total{direction="ingress",policy="default/access-demo1",rule="",rule_name="",tier="NetworkPolicy"} %d`+"\n", attempts)
	if status, text := s.scrape(t, "/metrics"); status != http.StatusOK || !strings.Contains(text, want) {
		t.Errorf("/metrics: %d, want %s", status, want)
	}
	exit, out, stderr := sluice(t, "denied", "--socket", s.socket, "--to", "default/db", "-o", "json")
	var denials []*flow.DenialRecord
	if err := json.Unmarshal([]byte(out), &denials); err != nil || exit != 0 {
		t.Fatalf("sluice denied: %v, exit status %d, %s", err, exit, stderr)
	}
	if len(denials) != 1 || denials[0].Count != uint64(attempts) || denials[0].Why() != "ingress: no rule of default/access-demo1" {
		t.Errorf("sluice denied: %s", out)
	}
	s.checkMatrix(t, w.records, allowed, denied)
}

// checkMatrix writes records into two files, in Sluice's JSON and in Hubble's. It checks that sluice
// matrix counts the same flows from each file: the allowed flows at an open port, and the denied flows at
// a closed port.
func (s *testbed) checkMatrix(t *testing.T, records []*flow.Record, allowed, denied int) {
	t.Helper()
	var ours, hubbles bytes.Buffer
	encoder := json.NewEncoder(&ours)
	for _, r := range records {
		if err := encoder.Encode(r); err != nil {
			t.Fatal(err)
		}
		if answer := hubbleflow.Response(r); answer != nil {
			line, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(answer)
			if err != nil {
				t.Fatal(err)
			}
			hubbles.Write(append(line, '\n'))
		}
	}
	for name, text := range map[string]string{"sluice": ours.String(), "hubble": hubbles.String()} {
		file := filepath.Join(t.TempDir(), name+".jsonl")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		exit, out, stderr := sluice(t, "matrix", "-f", s.dir, "--flows", file, "-o", "json", "--from-namespace", "default", "--to-namespace", "default")
		var m matrix.Matrix
		if err := json.Unmarshal([]byte(out), &m); err != nil || exit != 0 {
			t.Fatalf("%s: %v, exit status %d, %s", name, err, exit, stderr)
		}
		var got []string
		for _, c := range m.Flows {
			for i := 0; c.Seen != nil && c.To == "default/db" && i < len(c.Seen.Ports); i++ {
				p := c.Seen.Ports[i]
				got = append(got, fmt.Sprintf("%s %s %s: %d allowed, %d denied", c.From, p.Port, p.Verdict, p.Allowed, p.Denied))
			}
		}
		want := fmt.Sprintf("default/other TCP 6379 deny: 0 allowed, %d denied; default/web TCP 6379 allow: %d allowed, 0 denied", denied, allowed)
		if text := strings.Join(got, "; "); text != want || m.Seen.Pairs.Changed != 0 {
			t.Errorf("%s: %s, want %s; %+v", name, text, want, m.Seen)
		}
	}
}
