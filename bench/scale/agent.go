package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/lab"
	"sluice/filter/event"
)

// eventKinds are the kinds of events, in the order in which they are triggered.
var eventKinds = []string{"status", "label", "restart", "policy"}

// debugAddress is the address on its node at which the agent serves /debug/.
const debugAddress = "127.0.0.1:10301"

// settleDelay is the time between two readings of the memory, so that the second one shows an
// idle agent.
const settleDelay = 10 * time.Second

// process is sluice run on a node of a lab. The cluster is served on the same node.
type process struct {
	*agenttest.Agent
	served string // address of the process that serves the cluster
	client http.Client
	added  int // number of added pods: one after each series of events, to mark its end
}

// measureProcess measures the memory of a complete agent in its own process. Unlike the
// measurement in this process, it includes the rules, the queues and the kernel's flow cache.
func measureProcess(ctx context.Context, opts options) (err error) {
	if opts.sluice == "" {
		return nil
	}
	if os.Geteuid() != 0 {
		fmt.Println("\nsluice run: not measured, it needs root")
		return nil
	}
	l, err := lab.New(lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	node := l.Nodes[0]
	p := &process{client: http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, to string) (net.Conn, error) {
			at, err := netip.ParseAddrPort(to)
			if err != nil {
				return nil, err
			}
			return node.DialTCP(ctx, at)
		},
	}}}
	defer p.client.CloseIdleConnections()
	address, _, stop, err := startServer(ctx, opts, node.Start)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	p.served = address
	dir, err := os.MkdirTemp("", "scale-")
	if err != nil {
		return fmt.Errorf("make a directory for the agent: %w", err)
	}
	defer os.RemoveAll(dir)
	kubeconfig := filepath.Join(dir, "config")
	text := fmt.Sprintf(`{clusters: [{name: c, cluster: {server: "http://%s"}}], contexts: [{name: c, context: {cluster: c}}], current-context: c}`, address)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the agent's kubeconfig: %w", err)
	}
	began := time.Now()
	p.Agent, err = agenttest.Start(ctx, agenttest.Options{
		Sluice: opts.sluice, Node: node,
		Args: []string{"--kubeconfig", kubeconfig, "--node-name", nodeName(0), "--socket", filepath.Join(dir, "socket"), "--http-address", debugAddress},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	return p.report(ctx, opts, time.Since(began))
}

// report prints the measurements.
func (p *process) report(ctx context.Context, opts options, took time.Duration) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "\nsluice run\tresident\tpeak\t\n")
	if err := p.row(w, fmt.Sprintf("synced, after %v", took.Round(time.Millisecond))); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(settleDelay):
	}
	if err := p.row(w, fmt.Sprintf("%v later", settleDelay)); err != nil {
		return err
	}
	if err := p.heap(ctx, opts.heap); err != nil {
		return err
	}
	for _, sort := range eventKinds {
		if err := p.events(ctx, opts, sort); err != nil {
			return err
		}
		if err := p.row(w, fmt.Sprintf("after %d %s events", opts.events, sort)); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (p *process) row(w io.Writer, when string) error {
	rss, peak, err := resident(fmt.Sprint(p.PID()))
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s\t%d MiB\t%d MiB\t\n", when, rss>>20, peak>>20)
	return nil
}

// events triggers events of the kind that the parameter "sort" names (see eventKinds), and then
// adds a pod. It waits until the agent has published the pod.
func (p *process) events(ctx context.Context, opts options, sort string) error {
	mark := p.Mark()
	p.added++
	url := fmt.Sprintf("http://%s/happen/%s/%d?last=192.0.2.%d", p.served, sort, opts.events, 200+p.added)
	if err := triggerEvents(ctx, &p.client, url); err != nil {
		return err
	}
	_, err := p.Await(ctx, mark, func(l agenttest.Line) bool {
		return l.Is(event.Published) && l.Number("pods") == opts.pods+p.added
	})
	return err
}

// heap writes a profile of the agent's heap to a file. If the name is empty, it does nothing.
func (p *process) heap(ctx context.Context, file string) error {
	if file == "" {
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+debugAddress+"/debug/pprof/heap?gc=1", nil)
	if err != nil {
		return fmt.Errorf("ask for the agent's heap: %w", err)
	}
	answer, err := p.client.Do(req)
	if err != nil {
		return fmt.Errorf("ask for the agent's heap: %w", err)
	}
	defer answer.Body.Close()
	f, err := os.Create(file)
	if err == nil {
		_, err = io.Copy(f, answer.Body)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return fmt.Errorf("write a profile of the agent's heap: %w", err)
	}
	return nil
}
