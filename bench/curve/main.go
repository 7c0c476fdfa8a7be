// Command curve measures how many connections of a node go to user space, over time: those for which
// the kernel's flow cache has no verdict yet.
//
// It generates a cluster, random connections between the pods of one node and the rest of the world,
// and rollouts, which replace pods. It asks the programs of cache/bpf about the first packet of each
// connection. If they have no answer, the evaluator of filter/engine decides, and the kernel remembers
// the verdict, as in an agent. No packet is sent. For comparison, a second evaluator, without the
// kernel's cache, decides all of the connections.
//
//	go run ./bench/curve
//	go run ./bench/curve -any 0 -rollout 0
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"sluice/cache/bpf"
)

// options holds the values of the flags.
type options struct {
	pods, apps, nodes    int
	connections, rollout int
	anyPercent, flows    int
	seed                 uint64
}

func main() {
	var opts options
	flag.IntVar(&opts.pods, "pods", 10_000, "number of pods")
	flag.IntVar(&opts.apps, "apps", 500, "number of workloads; a policy selects the pods of each")
	flag.IntVar(&opts.nodes, "nodes", 100, "number of nodes; the pods of the first one are the local pods")
	flag.IntVar(&opts.connections, "connections", 5_000_000, "number of connections")
	flag.IntVar(&opts.rollout, "rollout", 1_000, "after this many connections, one pod of the cluster is replaced; 0 for never")
	flag.IntVar(&opts.anyPercent, "any", 20, "percentage of connections from or to any pod, at any port")
	flag.IntVar(&opts.flows, "flows", bpf.DefaultFlows, "room for verdicts in the kernel")
	flag.Uint64Var(&opts.seed, "seed", 1, "seed of the cluster and of the connections")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := measure(ctx, opts)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "curve:", err)
		os.Exit(1)
	}
}

const legend = `connections, replaced: connections until now, and pods that were replaced until now
kernel, user: verdicts in the flow caches of the kernel and of user space
queued: connections that the kernel had no verdict for; share: of those since the row before
alone: verdicts in the flow cache of user space without that of the kernel
decided: connections that this cache had no verdict for; share: as before

`

// measure makes the connections and prints the table.
func measure(ctx context.Context, opts options) (err error) {
	w, err := newWorld(opts)
	if err != nil {
		return err
	}
	n, err := newNode(w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	fmt.Print(legend)
	fmt.Printf("%d pods of %d workloads, %d of them on this node; %d policies\n", opts.pods, w.cluster.Apps(), len(w.local), len(w.cluster.Policies))
	fmt.Println("connections  replaced   kernel     user    queued     share      alone   decided     share")
	var last sample
	for count, next := 0, 1000; count < opts.connections && ctx.Err() == nil; {
		if err := n.connect(w.connection()); err != nil {
			return err
		}
		count++
		if opts.rollout > 0 && count%opts.rollout == 0 {
			w.replacePod()
			if err := n.commit(); err != nil {
				return err
			}
		}
		if count != next && count != opts.connections {
			continue
		}
		next = following(next)
		now, err := n.sample(count)
		if err != nil {
			return err
		}
		now.print(w.replaced, last)
		last = now
	}
	return ctx.Err()
}

// following returns the next number of the series 1000, 2000, 5000, 10,000 and so on.
func following(n int) int {
	first := n
	for first >= 10 {
		first /= 10
	}
	if first == 2 {
		return n / 2 * 5
	}
	return n * 2
}
