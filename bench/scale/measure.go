package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"sluice/filter/policy"
	"sluice/watch"
	"sluice/watch/kube"
)

// agent is the part of sluice that follows a cluster.
type agent struct {
	address   string
	source    *kube.Source
	published policy.Published
	changed   chan struct{}
	rounds    byte
}

// usage is the state of the process's resource counters at one moment.
type usage struct {
	at      time.Time
	cpu     time.Duration
	mallocs uint64
	bytes   uint64
}

func measure(ctx context.Context, opts options) (err error) {
	address, sizes, stop, err := startServer(ctx, opts, (*exec.Cmd).Start)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	a := &agent{address: address, changed: make(chan struct{}, 1)}
	a.source, err = kube.New(&rest.Config{Host: "http://" + address}, kube.Options{NodeName: nodeName(0), NodeRanges: true})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	group, inner := errgroup.WithContext(ctx)
	controller := watch.New(policy.NewStore(), &a.published, watch.Options{Stages: []watch.Stage{watch.StageFunc{Name: "notice", Func: func(context.Context, watch.Change) error {
		select {
		case a.changed <- struct{}{}:
		default:
		}
		return nil
	}}}})
	before, err := readUsage()
	if err != nil {
		cancel()
		return err
	}
	group.Go(func() error { return controller.Run(inner, a.source) })
	group.Go(func() error {
		defer cancel()
		return a.report(inner, opts, sizes, before, controller)
	})
	return group.Wait()
}

// startServer calls start() to start the serving process, and returns the address of that
// process and the sizes of its objects. The function "stop" ends the process.
func startServer(ctx context.Context, opts options, start func(*exec.Cmd) error) (address, sizes string, stop func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return "", "", nil, fmt.Errorf("start the server: %w", err)
	}
	cmd := exec.CommandContext(ctx, self, opts.args()...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe() // the serving process ends when this pipe is closed
	if err != nil {
		return "", "", nil, fmt.Errorf("start the server: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", "", nil, fmt.Errorf("start the server: %w", err)
	}
	if err := start(cmd); err != nil {
		return "", "", nil, fmt.Errorf("start the server: %w", err)
	}
	stop = func() error {
		_ = in.Close()
		return cmd.Wait()
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", "", nil, errors.Join(fmt.Errorf("start the server: %w", err), stop())
	}
	var pod, pol int
	if _, err := fmt.Sscan(line, &address, &pod, &pol); err != nil {
		return "", "", nil, errors.Join(fmt.Errorf("start the server: it printed %q: %w", strings.TrimSpace(line), err), stop())
	}
	return address, fmt.Sprintf("a pod is %d bytes on the wire, a policy %d", pod, pol), stop, nil
}

// report prints the measurements.
func (a *agent) report(ctx context.Context, opts options, sizes string, before usage, controller *watch.Controller) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-controller.Ready():
	}
	synced, err := readUsage()
	if err != nil {
		return err
	}
	c := a.published.Snapshot().Counts()
	fmt.Printf("%d pods, %d policies, %d namespaces, %d nodes; %s\n\n", c.Pods, c.Policies, c.Namespaces, opts.nodes, sizes)
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "time to sync\t%v\tCPU %v, %d MB allocated\n", synced.at.Sub(before.at).Round(time.Millisecond), (synced.cpu - before.cpu).Round(time.Millisecond), (synced.bytes-before.bytes)>>20)
	// Free memory as a real agent with a heap of this size does when it is ready.
	debug.FreeOSMemory()
	debug.SetGCPercent(40)
	runtime.GC() // a second collection frees what the cleanups after the first have released
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	fmt.Fprintf(w, "live heap\t%d MiB\t\n", m.HeapAlloc>>20)
	for _, what := range eventKinds {
		if err := a.events(ctx, w, what, opts.events); err != nil {
			return err
		}
	}
	return w.Flush()
}

// events triggers n events of a kind as fast as possible, and waits until the last one is in
// force. It prints the cost of each event.
func (a *agent) events(ctx context.Context, w *tabwriter.Writer, what string, n int) error {
	a.rounds++
	last := netip.AddrFrom4([4]byte{192, 0, 2, a.rounds})
	before, err := readUsage()
	if err != nil {
		return err
	}
	number := a.published.Snapshot().Number()
	if err := triggerEvents(ctx, http.DefaultClient, fmt.Sprintf("http://%s/happen/%s/%d?last=%s", a.address, what, n, last)); err != nil {
		return err
	}
	for a.published.Snapshot().Endpoint(last) == nil {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-a.changed:
		}
	}
	after, err := readUsage()
	if err != nil {
		return err
	}
	took := after.at.Sub(before.at)
	fmt.Fprintf(w, "%s events\t%.0f/s\tCPU %v, %d allocations and %d bytes each; %d snapshots\n", what, float64(n)/took.Seconds(),
		(after.cpu-before.cpu)/time.Duration(n), (after.mallocs-before.mallocs)/uint64(n), (after.bytes-before.bytes)/uint64(n), a.published.Snapshot().Number()-number)
	return nil
}

// triggerEvents makes the serving process trigger events.
func triggerEvents(ctx context.Context, client *http.Client, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return fmt.Errorf("make events: %w", err)
	}
	answer, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("make events: %w", err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("make events: the server says %s", answer.Status)
	}
	return nil
}
