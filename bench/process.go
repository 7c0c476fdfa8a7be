package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"sluice/bench/load"
	"sluice/bench/testbed/lab"
	"sluice/bench/testbed/syncbuf"
)

// ready is the line that the programs of the harness print when they are ready.
const ready = "ready"

// process is a process of this program on a host of the lab. The process ends with the lab.
type process struct {
	cmd      *exec.Cmd
	in       io.WriteCloser
	out      io.ReadCloser
	stderr   *syncbuf.Buffer
	stopKill func() bool
}

// start starts this program on a host. The process is killed when ctx ends, even while it
// executes an order of the driver.
func (e env) start(ctx context.Context, on *lab.Host, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(e.self, args...), stderr: new(syncbuf.Buffer)}
	// In a process group of its own, the process does not receive a terminal's Ctrl-C. Only
	// the harness receives it, and cleans up.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = p.stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err == nil {
		if p.out, err = p.cmd.StdoutPipe(); err == nil {
			err = on.Start(p.cmd)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("start bench %s: %w", args[0], err)
	}
	p.stopKill = context.AfterFunc(ctx, func() { _ = p.cmd.Process.Kill() })
	return p, nil
}

// startReady starts this program and waits until it is ready.
func (e env) startReady(ctx context.Context, on *lab.Host, args ...string) (*process, error) {
	p, err := e.start(ctx, on, args...)
	if err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(p.out).ReadString('\n')
	if err == nil && strings.TrimSpace(line) == ready {
		return p, nil
	}
	p.end()
	return nil, fmt.Errorf("start bench %s on %s: it has ended: %s", args[0], on.Name, strings.TrimSpace(p.stderr.String()))
}

// driver returns a driver that sends orders to the process.
func (p *process) driver() *load.Driver { return load.NewDriver(p.in, p.out) }

// end ends the process and waits for it.
func (p *process) end() {
	p.stopKill()
	_ = p.cmd.Process.Kill() // an error means that the process has already ended
	_ = p.cmd.Wait()         // the error only reports the kill
}

// ordersCommand returns the command of the client that the harness starts in pods.
func ordersCommand(e env) *cobra.Command {
	return &cobra.Command{
		Use: "orders", Hidden: true, Args: cobra.NoArgs,
		Short: "Execute orders from standard input",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return load.ServeOrders(cmd.Context(), e.stdin, e.stdout)
		},
	}
}
