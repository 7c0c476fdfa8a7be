//go:build linux

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sluice/bench/testbed/agenttest"
)

// callers opens connections to the agent and keeps them open.
type callers struct {
	t    *testing.T
	dial func(context.Context) (net.Conn, error)
}

// Requests that a caller sends to keep a connection open.
const (
	sendNothing = ""
	halfHeader  = "GET /metrics HTTP/1.1\r\nHost: x\r\nX: "
	halfBody    = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx"
	keepAlive   = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"                         // the connection stays open for another request
	longProfile = "GET /debug/pprof/profile?seconds=300 HTTP/1.1\r\nHost: x\r\n\r\n" // answered only for callers on the node
)

// readNothing requests more data than the socket buffers hold. The caller does not read the
// answers.
var readNothing = strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 50)

// open opens n connections, sends the request on each, and leaves them open until the test
// ends.
func (c callers) open(n int, request string) {
	c.t.Helper()
	for range n {
		ctx, cancel := context.WithTimeout(c.t.Context(), waitTimeout)
		conn, err := c.dial(ctx)
		cancel()
		if err != nil {
			return // the agent may refuse further connections
		}
		c.t.Cleanup(func() { _ = conn.Close() })
		if tcp, is := conn.(*net.TCPConn); is && request == readNothing {
			_ = tcp.SetReadBuffer(1)
		}
		_, _ = io.WriteString(conn, request) // fails if the agent has already closed conn
		if request == keepAlive {
			_ = conn.SetReadDeadline(time.Now().Add(waitTimeout))
			if _, err := conn.Read(make([]byte, 1)); err != nil {
				return // the agent may refuse further connections
			}
		}
	}
}

// limitedTo returns the path of a script that runs sluice with a limit on file descriptors.
func limitedTo(t *testing.T, descriptors int) (program string) {
	t.Helper()
	sluice, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatalf("find the command under test: %v", err)
	}
	program = filepath.Join(t.TempDir(), "limited")
	text := fmt.Sprintf("#!/bin/sh\nulimit -n %d\nexec %s \"$@\"\n", descriptors, sluice)
	if err := os.WriteFile(program, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return program
}

// Callers that open many connections to the agent and keep them open do not stop it:
// policies still change, rules are repaired, and requests for health and metrics are
// answered.
func TestCallersDoNotStopTheAgentOnPackets(t *testing.T) {
	const descriptors, port = 256, 10301
	for name, flood := range map[string]func(s *testbed, pod, node, socket callers){
		"a pod that keeps connections alive": func(_ *testbed, pod, _, _ callers) { pod.open(2*descriptors, keepAlive) },
		"a pod, all at once": func(_ *testbed, pod, _, _ callers) {
			for _, request := range []string{sendNothing, halfHeader, halfBody, readNothing} {
				pod.open(descriptors, request)
			}
		},
		"processes of the node": func(_ *testbed, _, node, _ callers) {
			node.open(1, longProfile)
			for _, request := range []string{keepAlive, readNothing, halfHeader} {
				node.open(descriptors, request)
			}
		},
		"root, on the socket": func(_ *testbed, _, _, socket callers) {
			for _, request := range []string{strings.ReplaceAll(keepAlive, "healthz", "status"), halfHeader, sendNothing} {
				socket.open(descriptors, request)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestbed(t)
			s.write("policies.yaml", policies("default/mute: {podSelector: {matchLabels: {role: backend}}, policyTypes: [Egress]}"))
			ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
			defer cancel()
			a, err := agenttest.Start(ctx, agenttest.Options{Sluice: limitedTo(t, descriptors), Node: s.Nodes[0], Dir: s.dir,
				Args: []string{"--socket", s.socket, "--http-address", fmt.Sprintf("0.0.0.0:%d", port)}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(a.Kill)
			s.agent = a
			at := netip.AddrPortFrom(s.host("node-1").IPv4, port)
			tcp := func(from string) callers {
				return callers{t, func(ctx context.Context) (net.Conn, error) { return s.host(from).DialTCP(ctx, at) }}
			}
			flood(s, tcp("default/other"), tcp("node-1"), callers{t, func(ctx context.Context) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", s.socket)
			}})
			open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", a.PID()))
			if err != nil || len(open) > descriptors*2/3 {
				t.Errorf("%d of %d descriptors are in use, %v", len(open), descriptors, err)
			}

			s.save("policies.yaml", policies(demo1))
			s.check(t, []string{webToDB}, []string{otherToDB})
			for _, f := range families {
				if err := s.Nodes[0].Run(f.iptables, "-w", "-t", "mangle", "-F"); err != nil {
					t.Fatal(err)
				}
			}
			for end := time.Now().Add(waitTimeout); strings.Count(s.leftovers(t), "-A POSTROUTING -j SLUICE\n") != len(families); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("flushed rules are not restored:\n%s", s.leftovers(t))
				}
			}
			s.check(t, []string{webToDB}, []string{otherToDB})

			for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
				if status, text := s.scrape(t, path); status != http.StatusOK {
					t.Errorf("%s on the node: %d %s", path, status, text)
				}
				for _, from := range []string{"node-2", "mine/cart", "node-1"} {
					if status, text := s.scrapeFrom(t, from, at, path); status != http.StatusOK {
						t.Errorf("%s from %s: %d %s", path, from, status, text)
					}
				}
			}
			if status, stdout, stderr := sluice(t, "status", "--socket", s.socket); status != 0 {
				t.Errorf("sluice status: %d %s%s", status, stdout, stderr)
			}
		})
	}
}
