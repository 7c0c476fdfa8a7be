package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sluice/bench/baseline"
	"sluice/bench/load"
	"sluice/bench/result"
	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/cluster"
	"sluice/bench/testbed/lab"
	"sluice/filter/policy/kubepod"
	"sluice/filter/policy/netpol"
)

// testbed is a cluster of some size in which all contenders run.
type testbed struct {
	env
	result.Scenario
	sluice     string // path of the program
	lab        *lab.Lab
	dir        string // contains a directory of manifests for each contender
	cluster    *cluster.Cluster
	contenders []*contender
	used       int // number of nodes in use
}

// contender is the node of a row. A server and a hostile program run in pods of this node. The client has the
// addresses of many pods of other nodes.
type contender struct {
	row
	node                    *lab.Node
	server, client, hostile *lab.Host
	sources                 []netip.Addr
	// visited are the two pods for visitors: behind ipBlocks, and open to all. They are nil unless the node
	// has the ends of newcomers and visitors.
	visited        [2]*lab.Host
	dir            string // the agent's directory of manifests
	agent          *agenttest.Agent
	pid            int // PID of the process that reads the queues; 0 if there is none
	traffic, flood *load.Driver
	processes      []*process
}

// open builds a testbed. The caller must close it, also after an error. If a row that needs
// a feature of the kernel does not start, open leaves it out and calls note() with the reason.
func (s *testbed) open(ctx context.Context, rows []row, progress func(string), note func(string, ...any)) (err error) {
	if s.dir, err = os.MkdirTemp("", "sluice-bench-"); err != nil {
		return fmt.Errorf("make a directory for manifests: %w", err)
	}
	s.cluster = makeCluster(s.Scenario)
	shared := filepath.Join(s.dir, "cluster")
	if err := os.Mkdir(shared, 0o700); err != nil {
		return fmt.Errorf("make a directory for manifests: %w", err)
	}
	if err := writeCluster(shared, s.cluster); err != nil {
		return err
	}
	nodes := 0
	for _, r := range rows {
		if r.on == "" {
			nodes++
		}
	}
	if s.lab, err = lab.New(lab.Options{Nodes: nodes}); err != nil {
		return err
	}
	for _, r := range rows {
		progress("starting " + r.Label)
		err := s.addContender(ctx, r, shared)
		switch {
		case err == nil:
		case r.needs != "" && ctx.Err() == nil:
			note("%s: without the row %q: %v", s.Scenario, r.Label, err)
			s.contenders = slices.DeleteFunc(s.contenders, func(t *contender) bool { return t.Name == r.Name })
		default:
			return fmt.Errorf("start the row %q: %w", r.Label, err)
		}
	}
	return nil
}

// addContender prepares the node of a row.
func (s *testbed) addContender(ctx context.Context, r row, shared string) error {
	if r.on != "" {
		return s.share(ctx, r)
	}
	t := &contender{row: r, node: s.lab.Nodes[s.used]}
	s.used++
	s.contenders = append(s.contenders, t)
	if err := s.pods(t); err != nil {
		return err
	}
	if err := s.install(ctx, t, shared); err != nil {
		return err
	}
	return s.programs(ctx, t)
}

// share adds a contender on the node of another row.
func (s *testbed) share(ctx context.Context, r row) error {
	of := s.contender(r.on)
	if of == nil {
		return fmt.Errorf("the row %s, whose node it shares, has not started", r.on)
	}
	t := *of
	// The contender of the row r.on ends its processes.
	t.row, t.processes = r, nil
	s.contenders = append(s.contenders, &t)
	if r.ends == fewPods {
		return nil
	}
	// A client of its own, because each client counts the pairs that it has used.
	return s.driver(ctx, &t, t.client, &t.traffic)
}

// contender returns the contender that measures the row of the given name, or nil.
func (s *testbed) contender(name string) *contender {
	for _, t := range s.contenders {
		if t.Name == name {
			return t
		}
	}
	return nil
}

// pods starts a contender's pods.
func (s *testbed) pods(t *contender) (err error) {
	for _, p := range []struct {
		name string
		host **lab.Host
	}{{"server", &t.server}, {"client", &t.client}, {"hostile", &t.hostile}} {
		if *p.host, err = t.node.AddPod(p.name); err != nil {
			return err
		}
	}
	if err := t.client.AddRange(clientRange); err != nil {
		return err
	}
	t.sources = sources(s.Scenario)
	if t.hasEnds() {
		if err := t.addEnds(); err != nil {
			return err
		}
	}
	// Let clients use all ports, and let closed connections expire soon. Otherwise ten
	// seconds of load would fill the conntrack table.
	if err := setting(t.client, "ipv4/ip_local_port_range", "1024 65535"); err != nil {
		return err
	}
	for name, value := range map[string]string{"tcp_timeout_close": "1", "tcp_timeout_syn_sent": "2", "udp_timeout": "1", "udp_timeout_stream": "2"} {
		if err := setting(t.node.Host, "netfilter/nf_conntrack_"+name, value); err != nil {
			return err
		}
	}
	return nil
}

// setting sets a kernel parameter in /proc/sys/net on a host.
func setting(h *lab.Host, name, value string) error {
	return h.Do(func() error {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set a kernel parameter: %w", err)
		}
		return nil
	})
}

// install sets up what the contender's row measures on its node: iptables rules, a program that
// accepts every packet, or an agent.
func (s *testbed) install(ctx context.Context, t *contender, shared string) error {
	switch t.kind {
	case bare:
		return baseline.ApplyBaseline(t.node)
	case byHand:
		return s.byHand(t)
	case accepts:
		cmd := exec.Command("iptables-restore", "--noflush")
		cmd.Stdin = strings.NewReader(acceptRules)
		if _, err := t.node.Output(cmd); err != nil {
			return err
		}
		p, err := s.startReady(ctx, t.node.Host, "accept")
		if err != nil {
			return err
		}
		t.processes, t.pid = append(t.processes, p), p.cmd.Process.Pid
		return nil
	}
	t.dir = filepath.Join(s.dir, t.Name)
	if err := os.Mkdir(t.dir, 0o700); err != nil {
		return fmt.Errorf("make a directory for manifests: %w", err)
	}
	if err := linkFiles(shared, t.dir); err != nil {
		return err
	}
	var objects []any
	for _, p := range labPods(labNamespace(s.cluster), t) {
		objects = append(objects, p)
	}
	for _, p := range labPolicies(labNamespace(s.cluster), s.Scenario, t) {
		objects = append(objects, p)
	}
	if err := writeFilesOf(t.dir, "bench", objects); err != nil {
		return err
	}
	return s.startAgent(ctx, t)
}

// byHand installs the policies as iptables rules and IP sets. The rules are for the
// contender's pods and for up to 100 other pods of the cluster, as many as a node usually has.
func (s *testbed) byHand(t *contender) error {
	const neighbors = 100
	local := append([]netip.Addr{t.server.IPv4, t.hostile.IPv4}, t.sources...)
	for _, p := range s.cluster.Pods[:min(neighbors, len(s.cluster.Pods))] {
		local = append(local, netip.MustParseAddr(p.Status.PodIP))
	}
	// Put the contender's pods into the middle of the list, so that their packets pass as many
	// rules as the packets of an average pod of the node.
	pods, half := s.cluster.Pods, min(neighbors, len(s.cluster.Pods))/2
	r := baseline.Write(baseline.Cluster{
		Namespaces: s.cluster.Namespaces,
		Pods:       kubepod.ReadAll(slices.Concat(pods[:half], labPods(labNamespace(s.cluster), t), pods[half:])),
		Policies:   append(netpol.ReadAll(s.cluster.Policies), netpol.Read(labPolicy(labNamespace(s.cluster), s.Scenario))),
	}, local)
	return r.Apply(t.node)
}

// agentTimeout bounds the wait for the start of an agent.
const agentTimeout = time.Minute

// startAgent starts sluice on a contender's node.
func (s *testbed) startAgent(ctx context.Context, t *contender) (err error) {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	args := append([]string{"--socket", s.socket(t)}, t.args...)
	t.agent, err = agenttest.Start(ctx, agenttest.Options{Sluice: s.sluice, Node: t.node, Dir: t.dir, Args: args})
	if err == nil {
		t.pid = t.agent.PID()
	}
	return err
}

// socket returns the path of the socket of a contender's agent. Each agent has a socket of its own:
// agents that share a socket take over from each other.
func (s *testbed) socket(t *contender) string { return filepath.Join(s.dir, t.Name+".socket") }

// programs starts the programs that generate and serve traffic.
func (s *testbed) programs(ctx context.Context, t *contender) error {
	ports := fmt.Sprint(seenPort)
	if t.fresh || t.kind == bare {
		ports += "," + freshPorts(s.Scenario).String()
	}
	type program struct {
		on   *lab.Host
		args []string
	}
	servers := []program{
		// Two servers share the thousands of ports for never-seen keys, because the limit on open
		// files may be too low for one process.
		{t.server, []string{"--tcp", ports, "--udp", fmt.Sprint(probePort), "--stream", fmt.Sprint(streamPort)}},
		{t.server, []string{"--tcp", fmt.Sprint(probePort), "--udp", ports, "--stream", "0"}},
	}
	if t.hasEnds() {
		for _, pod := range t.visited {
			servers = append(servers, program{pod, []string{"--tcp", fmt.Sprint(seenPort), "--udp", fmt.Sprint(probePort), "--stream", "0"}})
		}
	}
	for _, v := range servers {
		server, err := s.startReady(ctx, v.on, append([]string{"server"}, v.args...)...)
		if err != nil {
			return err
		}
		t.processes = append(t.processes, server)
	}
	if err := s.driver(ctx, t, t.client, &t.traffic); err != nil {
		return err
	}
	return s.driver(ctx, t, t.hostile, &t.flood)
}

// driver starts the program that generates traffic on a host.
func (s *testbed) driver(ctx context.Context, t *contender, on *lab.Host, driver **load.Driver) error {
	orders, err := s.start(ctx, on, "orders")
	if err != nil {
		return err
	}
	t.processes, *driver = append(t.processes, orders), orders.driver()
	return nil
}

// close ends all processes and removes the lab and all files.
func (s *testbed) close() error {
	var errs []error
	for _, t := range s.contenders {
		if t.agent != nil && t.on == "" {
			errs = append(errs, t.agent.Stop())
		}
		for _, p := range t.processes {
			p.end()
		}
	}
	if s.lab != nil {
		errs = append(errs, s.lab.Close())
	}
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	return errors.Join(errs...)
}
