//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/authority"
	"sluice/bench/testbed/hubblecli"
	"sluice/bench/testbed/lab"
	"sluice/bench/testbed/syncbuf"
)

// relayAddress is the address of hubble-relay on node-1, and hubblePort the port of all agents.
const (
	relayAddress = "127.0.0.1:4245"
	hubblePort   = "4244"
)

// hubbleBed is a testbed with an agent on each of two nodes, and the real hubble as their client.
type hubbleBed struct {
	*testbed
	hubblecli.Programs
	local string // the socket of the agent on node-1
	home  string // home directory of the commands
}

func newHubbleBed(t *testing.T, args ...string) *hubbleBed {
	t.Helper()
	programs := hubblecli.Require(t)
	s := &hubbleBed{testbed: newTestbed(t), Programs: programs, home: t.TempDir()}
	s.local = "unix://" + filepath.Join(filepath.Dir(s.socket), "hubble.sock")
	var cluster strings.Builder
	cluster.WriteString(testbedNamespaces)
	for _, p := range testbedPods {
		pod := s.pod(p.name, p.labels, p.node, s.hosts[p.name].Addrs()...)
		cluster.WriteString(strings.Replace(pod, "spec: {", fmt.Sprintf("spec: {nodeName: node-%d, ", p.node+1), 1))
	}
	for _, name := range []string{"node-1", "node-2"} {
		fmt.Fprintf(&cluster, "---\n{apiVersion: v1, kind: Node, metadata: {name: %s}, status: {addresses: [{type: ExternalIP, address: 192.0.2.1}, {type: InternalIP, address: %q}]}}\n",
			name, s.hosts[name].IPv4)
	}
	s.write("cluster.yaml", cluster.String())
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs(append(args, "--node-name", "node-1")...)...)
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	program, err := exec.LookPath("sluice")
	if err != nil {
		t.Fatal(err)
	}
	second, err := agenttest.Start(ctx, agenttest.Options{Sluice: program, Node: s.Nodes[1], Dir: s.dir,
		Args: kernelArgs(append(args, "--node-name", "node-2", "--socket", filepath.Join(t.TempDir(), "s"))...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(second.Kill)
	return s
}

// command returns a command that does not read the settings of the user, to be run on node-1.
func (s *hubbleBed) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "HOME="+s.home, "XDG_CONFIG_HOME="+s.home, "HUBBLE_CONFIG_DIR="+s.home)
	return cmd
}

// hubble returns what hubble prints, with its errors.
func (s *hubbleBed) hubble(server string, args ...string) string {
	var out bytes.Buffer
	cmd := s.command(s.Hubble, append(args, "--server", server)...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := s.Nodes[0].Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	_ = cmd.Wait() // tests read the output, which has the error
	return out.String()
}

// background starts a command on node-1, which ends with the test. The function printed returns the
// output so far.
func (s *hubbleBed) background(cmd *exec.Cmd) (printed func() string) {
	s.t.Helper()
	out := new(syncbuf.Buffer)
	cmd.Stdout, cmd.Stderr = out, out
	if err := s.Nodes[0].Start(cmd); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("%s printed:\n%s", filepath.Base(cmd.Path), out)
		}
	})
	return out.String
}

// connect connects to a port of default/db.
func (s *hubbleBed) connect(from string, port uint16, want lab.Outcome) {
	s.t.Helper()
	to := netip.AddrPortFrom(s.hosts["default/db"].IPv4, port)
	if r := s.hosts[from].Connect(s.t.Context(), "tcp", to, probeTimeout); r.Outcome != want {
		s.t.Fatalf("%s to %v: %v, want %v", from, to, r, want)
	}
}

// lines returns the lines of a text that contain all words.
func lines(text string, words ...string) (found []string) {
	for line := range strings.Lines(text) {
		has := true
		for _, w := range words {
			has = has && strings.Contains(line, w)
		}
		if has {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

// An agent serves Hubble's API on hubble.sock, in the directory of its own socket. Only root may open
// hubble.sock.
func TestHubbleSocketOnPackets(t *testing.T) {
	s := newTestbed(t)
	s.write("policies.yaml", policies(demo1))
	s.start(kernelArgs("--node-name", "node-1")...)
	path := filepath.Join(filepath.Dir(s.socket), "hubble.sock")
	s.eventually(t, "the agent listens", func() bool {
		info, err := os.Stat(path)
		if err == nil && info.Mode().Perm() != 0o600 {
			t.Fatalf("%s has the mode %v", path, info.Mode())
		}
		return err == nil
	})
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), waitTimeout)
	defer cancel()
	stream, err := observerpb.NewObserverClient(conn).GetFlows(ctx, &observerpb.GetFlowsRequest{
		Follow: true, Whitelist: []*flowpb.FlowFilter{{DestinationPort: []string{"6379"}, SourcePod: []string{"default/other"}}},
	})
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	to := netip.AddrPortFrom(s.hosts["default/db"].IPv4, 6379)
	for _, from := range []string{"default/web", "default/other"} {
		s.hosts[from].Connect(t.Context(), "tcp", to, probeTimeout)
	}
	a, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	f := a.GetFlow()
	if by := f.GetIngressDeniedBy(); f.GetVerdict() != flowpb.Verdict_DROPPED || f.GetSource().GetPodName() != "other" || f.GetNodeName() != "node-1" ||
		len(by) != 1 || by[0].GetName() != "access-demo1" {
		t.Errorf("%v", f)
	}
}

// The real hubble shows, over the unix socket, the flows that an agent allows and denies, with the names
// of the policies and with each kind of filter.
func TestHubbleOnPackets(t *testing.T) {
	s := newHubbleBed(t)
	if out := s.hubble(s.local, "status"); !strings.Contains(out, "Healthcheck (via "+s.local+"): Ok") {
		t.Errorf("status: %s", out)
	}
	following := s.background(s.command(s.Hubble, "observe", "-f", "--print-policy-names", "--server", s.local))
	s.eventually(t, "hubble follows", func() bool {
		s.connect("default/web", 6379, lab.Reached)
		return len(lines(following(), "default/web:", "-> default/db:6379", "policy-verdict:L3-L4 INGRESS ALLOWED BY access-demo1 (NetworkPolicy)")) > 0
	})
	s.connect("default/other", 6379, lab.TimedOut)
	denied := []string{"default/other:", "-> default/db:6379", "policy-verdict:none INGRESS DENIED BY access-demo1 (NetworkPolicy)"}
	s.eventually(t, "the denial is shown", func() bool { return len(lines(following(), denied...)) > 0 })

	all := lines(s.hubble(s.local, "observe", "--all"), "->")
	for _, tt := range []struct {
		args      string
		has, lack []string
	}{
		{"--verdict DROPPED", []string{"default/other"}, []string{"default/web"}},
		{"--type drop", []string{"default/other"}, []string{"default/web"}},
		{"--from-pod web", []string{"default/web"}, []string{"default/other"}},
		{"--not --from-pod default/web", []string{"default/other"}, []string{"default/web"}},
		{"--from-label role=backend", []string{"default/other"}, []string{"default/web"}},
		{"-n default --to-port 6379 --protocol tcp --ipv4", []string{"default/other", "default/web"}, nil},
		{"--to-ip " + s.hosts["default/db"].IPv4.String() + " --traffic-direction ingress", []string{"default/other", "default/web"}, nil},
		{"-n mine", nil, []string{"->"}},
		{"--since 1h --drop-reason-desc POLICY_DENIED --not-reply --node-name node-1", []string{"default/other"}, []string{"default/web"}},
		// the request of hubble-ui for a namespace
		{`--allowlist {"source_pod":["default/"],"reply":[false]} --denylist {"destination_fqdn":["*.cluster.local*"]}`, []string{"default/other", "default/web"}, nil},
		{"--http-method GET", []string{"filter http_method: Sluice does not know this"}, []string{"->"}},
	} {
		out := s.hubble(s.local, append([]string{"observe", "--all"}, strings.Fields(tt.args)...)...)
		for _, word := range tt.has {
			if !strings.Contains(out, word) {
				t.Errorf("%s: %q is missing in:\n%s", tt.args, word, out)
			}
		}
		for _, word := range tt.lack {
			if strings.Contains(out, word) {
				t.Errorf("%s: %q is in:\n%s", tt.args, word, out)
			}
		}
	}
	if last := lines(s.hubble(s.local, "observe", "--last", "1"), "->"); len(last) != 1 || last[0] != all[len(all)-1] {
		t.Errorf("--last 1: %q, of %q", last, all)
	}
	if first := lines(s.hubble(s.local, "observe", "--first", "2"), "->"); len(first) != 2 || first[0] != all[0] {
		t.Errorf("--first 2: %q, of %q", first, all)
	}
	// hubble shows the same flows if it reads the output of sluice observe.
	_, out, _ := sluice(t, "observe", "--socket", s.socket, "-o", "hubble")
	file := s.command(s.Hubble, "observe", "--input-file", "-", "--print-policy-names", "--all")
	file.Stdin = strings.NewReader(out)
	read, err := file.CombinedOutput()
	if err != nil || len(lines(string(read), denied...)) == 0 {
		t.Errorf("hubble observe --input-file: %v\n%s\nof\n%s", err, read, out)
	}
}

// The real hubble-relay finds the agents of both nodes by the service Peer, and shows the flows of both.
// It connects over TLS, with a client certificate.
func TestHubbleRelayOnPackets(t *testing.T) {
	a := authority.New(t)
	a.Server("server", "*.default.hubble-grpc.cilium.io")
	a.Client("relay")
	args := []string{"--hubble-address", "0.0.0.0:" + hubblePort,
		"--hubble-tls-cert", a.Path("server.crt"), "--hubble-tls-key", a.Path("server.key"), "--hubble-tls-client-ca", a.Path("ca.crt")}
	s := newHubbleBed(t, args...)
	s.background(s.command(s.Relay, "serve", "--gops=false", "--disable-server-tls", "--listen-address", relayAddress,
		"--peer-service", s.hosts["node-1"].IPv4.String()+":"+hubblePort, "--tls-hubble-server-ca-files", a.Path("ca.crt"),
		"--tls-hubble-client-cert-file", a.Path("relay.crt"), "--tls-hubble-client-key-file", a.Path("relay.key")))
	s.eventually(t, "the relay reaches both nodes", func() bool {
		time.Sleep(100 * time.Millisecond) // each check starts a process
		out := s.hubble(relayAddress, "list", "nodes")
		return len(lines(out, "node-1", "Connected")) == 1 && len(lines(out, "node-2", "Connected")) == 1
	})
	s.eventually(t, "the relay is healthy", func() bool { // it checks its nodes every few seconds
		time.Sleep(100 * time.Millisecond)
		return strings.Contains(s.hubble(relayAddress, "status"), "Connected Nodes: 2/2")
	})
	if out := s.hubble(relayAddress, "list", "namespaces"); !strings.Contains(out, "default") || !strings.Contains(out, "mine") {
		t.Errorf("namespaces: %s", out)
	}
	following := s.background(s.command(s.Hubble, "observe", "-f", "--print-policy-names", "--print-node-name", "--server", relayAddress))
	by := "DENIED BY access-demo1 (NetworkPolicy)"
	awaitBoth := func(what string) {
		t.Helper()
		var sent time.Time
		before := len(following())
		s.eventually(t, what, func() bool {
			// The relay sorts flows, and passes them on when none has arrived for a second.
			if time.Since(sent) > 5*time.Second {
				s.connect("default/far", 80, lab.TimedOut)     // node-2 denies it
				s.connect("default/other", 6379, lab.TimedOut) // node-1 denies it
				sent = time.Now()
			}
			text := following()[before:]
			return len(lines(text, "[node-2]", "default/far:", "-> default/db:80", by)) > 0 &&
				len(lines(text, "[node-1]", "default/other:", "-> default/db:6379", by)) > 0
		})
	}
	awaitBoth("the flows of both nodes are shown")
	out := s.hubble(relayAddress, "observe", "--all", "--verdict", "DROPPED", "--node-name", "node-2", "--print-node-name")
	if len(lines(out, "default/far:")) == 0 || strings.Contains(out, "[node-1]") {
		t.Errorf("of node-2: %s", out)
	}

	// The agent from which the relay gets the peers is killed. The relay and the command that follows go
	// on with the next agent.
	s.agent.Kill()
	s.start(kernelArgs(append(args, "--node-name", "node-1")...)...)
	awaitBoth("the flows of the next agent are shown")
}
