package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
)

// httpPort is the port of the agents' metrics.
const httpPort = 10301

// pods are the pods of the lab. Each is on the node with the index node, and serves the TCP port.
var pods = []struct {
	namespace, name string
	node            int
	port            uint16
}{
	{"shop", "web", 0, 8080}, {"shop", "cart", 1, 8080}, {"shop", "payment", 0, 8443}, {"shop", "db", 1, 5432},
	{"monitoring", "prometheus", 0, 9090}, {"guest", "scanner", 1, 8080},
}

// policiesFile has the policies that are there from the start. newPolicyFile has a policy that is added
// later.
const (
	policiesFile = `
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: db}, spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: cart}}}], ports: [{port: 5432}]}]}}
---
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: payment}, spec: {podSelector: {matchLabels: {app: payment}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
---
{apiVersion: policy.networking.k8s.io/v1beta1, kind: ClusterNetworkPolicy, metadata: {name: no-guests}, spec: {tier: Admin, priority: 10, subject: {namespaces: {matchLabels: {kubernetes.io/metadata.name: shop}}}, ingress: [{name: guests, action: Deny, from: [{namespaces: {matchLabels: {kubernetes.io/metadata.name: guest}}}]}]}}
`
	newPolicyFile = `
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {namespace: shop, name: cart}, spec: {podSelector: {matchLabels: {app: cart}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}}
`
)

// shop is a lab of two nodes with pods and agents.
type shop struct {
	lab    *lab.Lab
	sluice string
	dir    string
	hosts  map[string]*lab.Host
	agents []*agenttest.Agent
}

// open builds the lab and starts the agents.
func open(ctx context.Context, sluice string) (s *shop, err error) {
	s = &shop{hosts: make(map[string]*lab.Host)}
	if s.sluice, err = filepath.Abs(sluice); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "sluice-dashboard-"); err != nil {
		return nil, err
	}
	if s.lab, err = lab.New(lab.Options{Nodes: 2}); err == nil {
		err = s.build(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *shop) build(ctx context.Context) error {
	var cluster strings.Builder
	for i, n := range s.lab.Nodes {
		fmt.Fprintf(&cluster, "---\n{apiVersion: v1, kind: Node, metadata: {name: node-%d, labels: {kubernetes.io/os: linux}}, status: {addresses: [{type: InternalIP, address: %q}]}}\n", i+1, n.IPv4)
	}
	seen := make(map[string]bool)
	for _, p := range pods {
		h, err := s.lab.Nodes[p.node].AddPod(p.namespace + "/" + p.name)
		if err != nil {
			return err
		}
		if err := h.Serve("tcp", p.port); err != nil {
			return err
		}
		s.hosts[p.name] = h
		if !seen[p.namespace] {
			fmt.Fprintf(&cluster, "---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {kubernetes.io/metadata.name: %s}}}\n", p.namespace, p.namespace)
		}
		seen[p.namespace] = true
		fmt.Fprintf(&cluster, "---\n{apiVersion: v1, kind: Pod, metadata: {namespace: %s, name: %s, labels: {app: %s}}, spec: {nodeName: node-%d, containers: [{name: a, image: a}]}, status: {phase: Running, podIP: %q, podIPs: [{ip: %q}]}}\n",
			p.namespace, p.name, p.name, p.node+1, h.IPv4, h.IPv4)
	}
	for i := range s.lab.Nodes {
		if err := s.startAgent(ctx, i, cluster.String()); err != nil {
			return err
		}
	}
	return nil
}

// startAgent starts the agent of a node. Each agent has a directory of manifests of its own, so that a new
// policy can reach one agent later than the other.
func (s *shop) startAgent(ctx context.Context, i int, cluster string) error {
	node, dir := s.lab.Nodes[i], s.manifests(i)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for name, text := range map[string]string{"cluster.yaml": cluster, "policies.yaml": policiesFile} {
		if err := agenttest.WriteFile(dir, name, text); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	a, err := agenttest.Start(ctx, agenttest.Options{Sluice: s.sluice, Node: node, Dir: dir, Args: []string{
		"--on-exit", "remove", "--node-name", node.Name, "--http-address", netip.AddrPortFrom(node.IPv4, httpPort).String(),
	}})
	if err == nil {
		s.agents = append(s.agents, a)
	}
	return err
}

func (s *shop) manifests(node int) string {
	return filepath.Join(s.dir, fmt.Sprint("node-", node+1))
}

func (s *shop) close() (err error) {
	for _, a := range s.agents {
		err = errors.Join(err, a.Stop())
	}
	if s.lab != nil {
		err = errors.Join(err, s.lab.Close())
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// flow is traffic from one pod to another: rate connections a second, from begin to end, which are
// fractions of the period. If port is 0, each connection goes to a random port, so that the kernel does
// not remember the verdict.
type flow struct {
	from, to   string
	port       uint16
	rate       float64
	begin, end float64
}

// flows are the traffic of all pods: flows that policies allow, flows that policies deny all the time, a
// burst of denials, and a flow that the new policy denies from the middle of the period on.
var flows = []flow{
	{"web", "cart", 8080, 30, 0, 1}, {"cart", "db", 5432, 20, 0, 1}, {"web", "payment", 8443, 8, 0, 1}, {"web", "prometheus", 9090, 5, 0, 1},
	{"web", "db", 5432, 2, 0, 1}, {"payment", "prometheus", 9090, 1, 0, 1}, {"prometheus", "cart", 8080, 6, 0.4, 1},
	{"scanner", "db", 5432, 3, 0, 1}, {"cart", "db", 0, 4, 0, 1}, {"scanner", "payment", 8443, 40, 0.6, 0.8},
}

// traffic sends the flows for the period. In the middle of the period, the first node gets the new policy;
// the second node gets it a little later. In the last third, sluice observe follows the flows of the first
// node.
func (s *shop) traffic(ctx context.Context, period time.Duration) error {
	began := time.Now()
	part := func(f float64) time.Time { return began.Add(time.Duration(f * float64(period))) }
	ctx, cancel := context.WithDeadline(ctx, part(1))
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	for _, f := range flows {
		all.Go(func() { s.send(ctx, f, part(f.begin), part(f.end)) })
	}
	steps := []struct {
		at float64
		do func() error
	}{
		{0.5, func() error { return agenttest.WriteFile(s.manifests(0), "new.yaml", newPolicyFile) }},
		{0.58, func() error { return agenttest.WriteFile(s.manifests(1), "new.yaml", newPolicyFile) }},
		{0.7, func() error { return s.observe(ctx) }},
	}
	for _, step := range steps {
		sleepUntil(ctx, part(step.at))
		if err := step.do(); err != nil {
			return err
		}
	}
	sleepUntil(ctx, part(1))
	return nil
}

// observe starts sluice observe on the first node. It runs until ctx ends.
func (s *shop) observe(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, s.sluice, "observe", "-f", "--socket", filepath.Join(s.manifests(0), ".socket"))
	if err := s.lab.Nodes[0].Start(cmd); err != nil {
		return fmt.Errorf("start sluice observe: %w", err)
	}
	go func() { _ = cmd.Wait() }() // it ends when ctx ends, by a signal
	return nil
}

// send makes the connections of a flow, at its rate with random pauses.
func (s *shop) send(ctx context.Context, f flow, from, until time.Time) {
	sleepUntil(ctx, from)
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	var all sync.WaitGroup
	defer all.Wait()
	for ctx.Err() == nil {
		to := netip.AddrPortFrom(s.hosts[f.to].IPv4, f.port)
		if f.port == 0 {
			to = netip.AddrPortFrom(to.Addr(), uint16(10_000+rand.N(50_000)))
		}
		all.Go(func() { s.hosts[f.from].Connect(ctx, "tcp", to, 500*time.Millisecond) })
		sleepUntil(ctx, time.Now().Add(time.Duration(rand.ExpFloat64()/f.rate*float64(time.Second))))
	}
}

// sleepUntil returns at a time, or when ctx ends.
func sleepUntil(ctx context.Context, at time.Time) {
	select {
	case <-ctx.Done():
	case <-time.After(time.Until(at)):
	}
}
