// Command dashboard records what the panels of deploy/monitoring/dashboard.json show. Two agents enforce
// policies on real packets in a lab, and a real Prometheus scrapes them. The command then asks Prometheus
// the queries of the panels, and writes the answers. make picture-dashboard draws them.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	var o options
	flag.StringVar(&o.sluice, "sluice", "bin/sluice", "the program `FILE`")
	flag.StringVar(&o.dashboard, "dashboard", "deploy/monitoring/dashboard.json", "the dashboard `FILE`")
	flag.StringVar(&o.out, "o", "bin/dashboard-data.json", "the `FILE` to write")
	flag.DurationVar(&o.period, "for", 4*time.Minute, "how long to record")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dashboard:", err)
		os.Exit(1)
	}
}

type options struct {
	sluice, dashboard, out string
	period                 time.Duration
}

// run records for a period, and writes the answers to the queries.
func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("this needs root, because it makes network namespaces and iptables rules in them")
	}
	board, err := readDashboard(o.dashboard)
	if err != nil {
		return err
	}
	s, err := open(ctx, o.sluice)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	p, err := s.startPrometheus(ctx)
	if err != nil {
		return err
	}
	defer p.stop()
	began := time.Now()
	if err := s.traffic(ctx, o.period); err != nil {
		return err
	}
	data, err := p.answer(ctx, board, began, time.Now())
	if err != nil {
		return err
	}
	text, err := json.Marshal(data)
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, text, 0o644)
}
