//go:build linux

package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sluice/bench/testbed/syncbuf"
	"sluice/filter/flow"
)

// socketAgent is a fake agent that answers on a socket.
type socketAgent struct {
	server *http.Server
	flows  chan *flow.Record // the records to stream; nil ends the stream
	asked  chan string       // the queries of the requests
	over   bool              // whether another agent takes over
}

func newSocketAgent(t *testing.T, path string) *socketAgent {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	a := &socketAgent{flows: make(chan *flow.Record, 10), asked: make(chan string, 100)}
	a.server = &http.Server{Handler: a}
	go func() { _ = a.server.Serve(l) }()
	t.Cleanup(func() { a.server.Close() })
	return a
}

func (a *socketAgent) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.asked <- r.URL.RawQuery
	if a.over {
		http.Error(w, "another agent takes over", http.StatusServiceUnavailable)
		return
	}
	for {
		_ = http.NewResponseController(w).Flush()
		select {
		case record := <-a.flows:
			if record == nil || json.NewEncoder(w).Encode(record) != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// observed is a running sluice observe.
type observed struct {
	t         *testing.T
	out, errs syncbuf.Buffer
	stop      func()
	exit      chan int
}

func startObserve(t *testing.T, args ...string) *observed {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(stop)
	o := &observed{t: t, stop: stop, exit: make(chan int, 1)}
	go func() {
		e := env{stdout: &o.out, stderr: &o.errs, getenv: func(string) string { return "" }}
		o.exit <- run(ctx, e, append([]string{"observe", "-f"}, args...))
	}()
	return o
}

func (o *observed) await(what string, ok func() bool) {
	o.t.Helper()
	for end := time.Now().Add(waitTimeout); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			o.t.Fatalf("not %s: %s%s", what, o.out.String(), o.errs.String())
		}
	}
}

// When the agent ends, observe tells the user and goes on with the next agent. It does not ask the next
// agent for earlier records. It adds a record about the time between the two agents.
func TestObserveFollowsTheNextAgent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	a := newSocketAgent(t, path)
	o := startObserve(t, "--socket", path, "--last", "5", "--since", "1000000h", "-o", "json")
	if q := <-a.asked; q != "denied=false&follow=true&last=5" {
		t.Errorf("asked for %s", q)
	}
	a.flows <- record("n1", "before", 1)
	o.await("shown", func() bool { return strings.Contains(o.out.String(), "before") })
	a.server.Close() // removes its socket, too
	o.await("gone", func() bool {
		return o.errs.String() == "sluice: the agent has gone: flows are shown again when it answers on "+path+"\n"
	})
	a = newSocketAgent(t, path)
	a.flows <- record("n1", "after", 2)
	o.await("shown again", func() bool { return strings.Contains(o.out.String(), "after") })
	if q := <-a.asked; q != "denied=false&follow=true&last=0" {
		t.Errorf("asked again for %s", q)
	}
	if ok := regexp.MustCompile(`\nsluice: the agent answers again: nothing was seen for [\d.]+[mµ]?s\n$`).MatchString(o.errs.String()); !ok {
		t.Errorf("said %q", o.errs.String())
	}
	var all []flow.Record
	for d := json.NewDecoder(strings.NewReader(o.out.String())); d.More(); {
		var r flow.Record
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	if len(all) != 3 || all[1].Event != "unrecorded" || all[1].Missing != "all" || all[1].Seconds <= 0 {
		t.Errorf("%s", o.out.String())
	}
	o.stop()
	if exit := <-o.exit; exit != 0 {
		t.Errorf("exit %d after an interruption: %s", exit, o.errs.String())
	}
}

// While an agent hands over, it refuses streams. observe asks again until the next agent has the socket.
func TestObserveFollowsATakeover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	a := newSocketAgent(t, path)
	a.over = true
	o := startObserve(t, "--socket", path)
	<-a.asked
	<-a.asked
	next := filepath.Join(t.TempDir(), "next")
	b := newSocketAgent(t, next)
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	b.flows <- record("n1", "after", 2)
	o.await("shown", func() bool {
		return regexp.MustCompile(`^\S+  \(flows from \S+ to \S+ were not recorded\)\n\S+  deny    default/after → default/db:80/TCP  ingress-denied\n$`).MatchString(o.out.String())
	})
	if !strings.Contains(o.errs.String(), "the agent does not enforce yet, or another one has taken over: flows are shown again when it answers on "+path) {
		t.Errorf("said %q", o.errs.String())
	}
}

// If waiting for the next agent cannot help, observe ends with an error that tells what to do.
func TestObserveEnds(t *testing.T) {
	dir := t.TempDir()
	if exit, _, stderr := sluice(t, "observe", "-f", "--socket", filepath.Join(dir, "none")); exit != exitFailed || !strings.Contains(stderr, "no agent answers on "+dir) {
		t.Errorf("without an agent: exit %d, %s", exit, stderr)
	}
	path := filepath.Join(dir, "s")
	newSocketAgent(t, path).flows <- nil
	o := startObserve(t, "--socket", path)
	o.await("gone", func() bool { return strings.Contains(o.errs.String(), "answers again") })
	o.stop()
	<-o.exit

	older := filepath.Join(dir, "older")
	l, err := net.Listen("unix", older)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	if exit, _, stderr := sluice(t, "observe", "-f", "--socket", older); exit != exitFailed || !strings.Contains(stderr, "answers 404 Not Found: 404 page not found") {
		t.Errorf("an agent without flows: exit %d, %s", exit, stderr)
	}
	// The next agent is an older version that cannot stream flows.
	a := newSocketAgent(t, path+"2")
	o = startObserve(t, "--socket", path+"2")
	<-a.asked
	if err := os.Rename(older, path+"2"); err != nil {
		t.Fatal(err)
	}
	a.flows <- nil
	if exit := <-o.exit; exit != exitFailed || !strings.Contains(o.errs.String(), "answers 404 Not Found") {
		t.Errorf("exit %d, %s", exit, o.errs.String())
	}
}
