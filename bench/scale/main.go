// Command scale measures what following a large cluster costs an agent: the time
// until it knows all, what each event costs, and the memory that it takes.
//
// The cluster is served by a process of its own (this program again, with -serve),
// over HTTP, as protobuf and with streaming lists, like the real API server. The
// agent's side is first the source and the keeper that sluice runs, in this process,
// so that nothing else adds to what an event costs; and then sluice run itself, on a
// node of a lab, so that its resident set is that of an agent.
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

// options are the size of the cluster and of what happens in it.
type options struct {
	pods, policies, namespaces, nodes int
	events                            int
	pages                             bool
	sluice, heap                      string
}

func main() {
	var opts options
	serve := flag.Bool("serve", false, "serve the cluster, and print the address")
	flag.IntVar(&opts.pods, "pods", 100_000, "how many pods there are")
	flag.IntVar(&opts.policies, "policies", 10_000, "how many policies there are")
	flag.IntVar(&opts.namespaces, "namespaces", 1_000, "over how many namespaces both are spread")
	flag.IntVar(&opts.nodes, "nodes", 1_000, "how many nodes there are")
	flag.IntVar(&opts.events, "events", 20_000, "how many events of each sort are measured")
	flag.BoolVar(&opts.pages, "pages", false, "list in pages, as from a server without streaming lists")
	flag.StringVar(&opts.heap, "heap", "", "write a profile of the heap of sluice run after sync to this file")
	flag.StringVar(&opts.sluice, "sluice", "", "the program whose memory is measured; empty for none")
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

// args are the options as arguments for the serving process.
func (o options) args() []string {
	return []string{
		"-serve", fmt.Sprint("-pods=", o.pods), fmt.Sprint("-policies=", o.policies),
		fmt.Sprint("-namespaces=", o.namespaces), fmt.Sprint("-nodes=", o.nodes), fmt.Sprint("-pages=", o.pages),
	}
}
