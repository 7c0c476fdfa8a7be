// Command scale measures what it costs an agent to follow a large cluster: the time until
// it is synced, the cost of each event, and the memory.
//
// A separate process (this program with -serve) serves the cluster over HTTP, as protobuf
// and with streaming lists, like the real API server. There are two measurements. The first
// one runs only the source and the controller of sluice, in this process, so that nothing
// else adds to the cost of an event. The second one starts sluice run on a node of a lab, and
// measures the resident set of a complete agent.
//
//	go run ./bench/scale -sluice bin/sluice
//	go run ./bench/scale -pods 10000 -policies 1000 -namespaces 100
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// options holds the values of the flags.
type options struct {
	pods, policies, namespaces, nodes int
	events                            int
	pages                             bool
	sluice, heap                      string
}

func main() {
	var opts options
	serve := flag.Bool("serve", false, "serve the cluster, and print the address")
	flag.IntVar(&opts.pods, "pods", 100_000, "number of pods")
	flag.IntVar(&opts.policies, "policies", 10_000, "number of policies")
	flag.IntVar(&opts.namespaces, "namespaces", 1_000, "number of namespaces of both")
	flag.IntVar(&opts.nodes, "nodes", 1_000, "number of nodes")
	flag.IntVar(&opts.events, "events", 20_000, "number of events of each kind")
	flag.BoolVar(&opts.pages, "pages", false, "list in pages, as from a server without streaming lists")
	flag.StringVar(&opts.heap, "heap", "", "write a profile of the heap of sluice run after sync to this file")
	flag.StringVar(&opts.sluice, "sluice", "", "the program to measure; empty for none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	run := measure
	if *serve {
		run = serveCluster
	}
	err := run(ctx, opts)
	if err == nil && !*serve {
		err = measureProcess(ctx, opts)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

// args returns the options as arguments of the serving process.
func (o options) args() []string {
	return []string{
		"-serve", fmt.Sprint("-pods=", o.pods), fmt.Sprint("-policies=", o.policies),
		fmt.Sprint("-namespaces=", o.namespaces), fmt.Sprint("-nodes=", o.nodes), fmt.Sprint("-pages=", o.pages),
	}
}
