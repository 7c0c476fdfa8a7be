package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sluice/bench/load"
)

// serverCommand and clientCommand are the two ends of a measurement between two machines, or
// between two pods of a cluster (deploy/bench). The harness uses the same server.
func serverCommand(e env) *cobra.Command {
	tcp, udp := []string{"8080"}, []string{"8080"}
	o := load.ServerOptions{}
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Serve bench client until interrupted",
		Example: `  bin/bench server
  bin/bench server --tcp 8080,20000-27999`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.TCP, err = parsePorts(tcp); err != nil {
				return err
			}
			if o.UDP, err = parsePorts(udp); err != nil {
				return err
			}
			s, err := load.Serve(o)
			if err != nil {
				return err
			}
			fmt.Fprintln(e.stdout, ready)
			<-cmd.Context().Done()
			return s.Close()
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&tcp, "tcp", tcp, "`PORTS` that accept TCP connections, numbers and ranges")
	f.StringSliceVar(&udp, "udp", udp, "`PORTS` that echo datagrams")
	f.Uint16Var(&o.Stream, "stream", streamPort, "the `PORT` that discards streams; 0 for none")
	return cmd
}

func parsePorts(texts []string) (ports []load.Ports, err error) {
	for _, text := range texts {
		p, err := load.ParsePorts(text)
		if err != nil {
			return nil, err
		}
		ports = append(ports, p)
	}
	return ports, nil
}

// clientRun describes the measurements of a client against a server.
type clientRun struct {
	ports, from []string
	clients     []int
	stream      uint16
	during      time.Duration
	rounds      int
	wait        time.Duration
}

func clientCommand(e env) *cobra.Command {
	v := clientRun{clients: []int{1, 16, 64}, ports: []string{"8080"}}
	cmd := &cobra.Command{
		Use:   "client SERVER",
		Short: "Measure connections to a bench server on another machine",
		Long: `Client measures new TCP connections and UDP requests to a server, a name or an
address, and one TCP stream. It prints a line for each load and round.

Run it with and without an agent on the nodes, and with and without policies,
alternately and several times: only differences within an hour on the same two
machines are due to the agent. deploy/bench runs both ends as pods.`,
		Example: `  bin/bench client 10.1.2.3
  bin/bench client 10.1.2.3 --ports 20000-27999 --clients 64   # keys that were never seen`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return v.run(cmd.Context(), e, args[0]) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&v.ports, "ports", v.ports, "the server's `PORT` or range of ports")
	f.StringSliceVar(&v.from, "from", nil, "`ADDRESS,...` of this machine to connect from, alternately")
	f.IntSliceVar(&v.clients, "clients", v.clients, "`NUMBER,...` of clients at the same time, one after the other")
	f.Uint16Var(&v.stream, "stream", streamPort, "the server's `PORT` for a stream; 0 for none")
	f.DurationVar(&v.during, "for", 5*time.Second, "duration of each measurement")
	f.IntVar(&v.rounds, "rounds", 3, "number of measurements of each")
	f.DurationVar(&v.wait, "wait", time.Minute, "how long to wait for the server")
	return cmd
}

func (v clientRun) run(ctx context.Context, e env, server string) error {
	to, err := v.target()
	if err != nil {
		return err
	}
	c := new(load.Client)
	if err := v.await(ctx, c, &to, server); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%-8s %7s %10s %9s %9s %9s %8s %6s\n", "load", "clients", "per second", "p50 µs", "p99 µs", "p99.9 µs", "failed", "late")
	for range v.rounds {
		for _, do := range []string{"tcp", "udp"} {
			for _, n := range v.clients {
				a, err := c.Do(ctx, load.Order{Do: do, Target: to, Clients: n, For: v.during})
				if err != nil {
					return err
				}
				fmt.Fprintf(e.stdout, "%-8s %7d %10.0f %9.0f %9.0f %9.0f %8d %6d\n", do, n, a.Rate(), float64(a.P50), float64(a.P99), float64(a.P999), a.Failed, a.Late)
			}
		}
		if v.stream == 0 {
			continue
		}
		stream := to
		stream.Ports = load.Ports{First: v.stream}
		a, err := c.Do(ctx, load.Order{Do: "stream", Target: stream, For: v.during})
		if err != nil {
			return err
		}
		fmt.Fprintf(e.stdout, "%-8s %7d %10.2f Gbit/s\n", "stream", 1, float64(a.Bytes)*8/1e9/a.Took.Seconds())
	}
	return nil
}

// target returns the target from the flags, without the server's address.
func (v clientRun) target() (to load.Target, err error) {
	ports, err := parsePorts(v.ports)
	if err != nil {
		return to, err
	}
	if len(ports) != 1 {
		return to, errors.New("--ports: give one port or one range")
	}
	to.Ports = ports[0]
	for _, text := range v.from {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil {
			return to, fmt.Errorf("--from: %w", err)
		}
		to.From = append(to.From, a)
	}
	return to, nil
}

// await looks up the server and waits until it accepts a connection. In a cluster, the pods of
// client and server start in any order, and the server's name cannot be resolved until its pod
// is ready.
func (v clientRun) await(ctx context.Context, c *load.Client, to *load.Target, server string) error {
	const pause = 100 * time.Millisecond
	for end := time.Now().Add(v.wait); ; {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", server)
		if err != nil {
			err = fmt.Errorf("look up the server: %w", err)
		} else {
			to.To = addrs[0].Unmap()
			out, e := c.Connect(ctx, *to, 1, pause)
			switch {
			case e != nil:
				return e
			case out.Done > 0:
				return nil
			}
			err = fmt.Errorf("the server at %s, port %s, has not accepted a connection within %v: is it running, and do policies allow it?", to.To, to.Ports, v.wait)
		}
		if time.Now().After(end) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
