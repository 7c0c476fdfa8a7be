package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"sync"
	"time"

	"sluice/filter/flow"
	"sluice/watch/kube"
)

const (
	// mergeDelay is how long each record is held back, so that the records of several nodes are shown in
	// the order of their times. A record that arrives later than that is shown out of order.
	mergeDelay = 500 * time.Millisecond
	// maxMerged bounds the records that are held back. Beyond it, the oldest are shown at once.
	maxMerged = 16384
	// agentsInterval is the time between two lists of the agents, which find those on new nodes.
	agentsInterval = 10 * time.Second
)

// args returns the arguments for sluice in the pod of an agent, so that it asks this agent for the flows
// that the user wants.
func (o *observeOptions) args(command string) []string {
	args := []string{"sluice", command, "-o", "json", "--socket", o.socket}
	add := func(flag string, values ...string) {
		for _, v := range values {
			if v != "" {
				args = append(args, flag+"="+v)
			}
		}
	}
	if o.since > 0 {
		add("--since", o.since.String())
	}
	add("--verdict", o.verdict)
	add("--namespace", o.namespaces...)
	add("--from", o.from...)
	add("--to", o.to...)
	add("--port", o.ports...)
	add("--policy", o.policies...)
	return args
}

// observeAll shows the flows of all nodes.
func observeAll(ctx context.Context, e env, f fleet, opts observeOptions) error {
	pods, err := opts.pods(ctx, f)
	if err != nil {
		return err
	}
	sayWithoutAgent(ctx, e, f, pods)
	arrived, ordered := make(chan *flow.Record), make(chan *flow.Record)
	o := observedFleet{env: e, fleet: f, opts: &opts, records: arrived}
	go func() {
		defer close(arrived)
		if opts.follow {
			o.follow(ctx, pods)
		} else {
			onEach(pods, func(_ int, pod kube.AgentPod) { o.once(ctx, pod) })
		}
	}()
	if opts.follow {
		go mergeByTime(arrived, ordered)
	} else {
		go lastByTime(arrived, ordered, opts.last)
	}
	selected, err := opts.filter()
	if err != nil {
		return err
	}
	shown := showRecords(e, &opts, &selected, ordered)
	if ctx.Err() != nil {
		return nil // the user has interrupted it
	}
	if shown == 0 && len(o.silent.names) == 0 {
		e.say("the agents have kept no such flow: they record while a command shows them: -f shows what happens from now on, and %s denied the last denials", e.name())
	}
	return o.silent.err()
}

// observedFleet reads the records of all nodes.
type observedFleet struct {
	env     env
	fleet   fleet
	opts    *observeOptions
	records chan<- *flow.Record
	silent  silentNodes

	watched sync.Map // the nodes that are followed
	gone    sync.Map // by node: when its stream broke off. A node that answers again is removed
}

// once reads the records that the agent of a node has kept.
func (o *observedFleet) once(ctx context.Context, pod kube.AgentPod) {
	args := o.opts.args("observe")
	if o.opts.last > 0 {
		args = append(args, "--last="+strconv.Itoa(o.opts.last))
	}
	err := askNode(ctx, o.fleet, pod, args, func(in io.Reader) error { return readRecords(ctx, in, pod.Node, o.records) })
	if err != nil && ctx.Err() == nil {
		o.silent.add(o.env, pod.Node, err)
	}
}

// follow reads the records of all nodes as they come, until ctx ends. If nodes are added meanwhile, it
// follows them, too.
func (o *observedFleet) follow(ctx context.Context, pods []kube.AgentPod) {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		for _, pod := range pods {
			if _, is := o.watched.LoadOrStore(pod.Node, true); !is {
				group.Go(func() { o.followNode(ctx, pod) })
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(agentsInterval):
		}
		if now, err := o.fleet.Pods(ctx); err == nil {
			pods = now
		}
	}
}

// followNode reads the records of a node until ctx ends. If the stream breaks off, it tells the user, and
// connects to the agent that the node then has. It also returns if the node has had no agent for
// agentsInterval.
func (o *observedFleet) followNode(ctx context.Context, pod kube.AgentPod) {
	defer o.watched.Delete(pod.Node)
	for said := ""; ; {
		began := time.Now()
		err := o.stream(ctx, pod)
		if ctx.Err() != nil {
			return
		}
		o.gone.LoadOrStore(pod.Node, time.Now())
		if time.Since(began) > 2*agentsInterval {
			said = ""
		}
		if text := fmt.Sprint(err); text != said {
			o.env.say("%s has ended the flows, connecting again: %v", pod.Node, err)
			said = text
		}
		var found bool
		if pod, found = o.next(ctx, pod, began.Add(retryNodeInterval)); !found {
			return
		}
	}
}

// next waits until the time at, and returns the pod of the node's agent at that time. If there is no such
// pod, it waits for one, because a DaemonSet makes the next pod within seconds. found is false if ctx
// ends, or if the node has had no agent for longer than agentsInterval.
func (o *observedFleet) next(ctx context.Context, pod kube.AgentPod, at time.Time) (next kube.AgentPod, found bool) {
	var without time.Time
	for {
		select {
		case <-ctx.Done():
			return pod, false
		case <-time.After(time.Until(at)):
		}
		pods, err := o.fleet.Pods(ctx)
		if err != nil {
			return pod, true
		}
		i := slices.IndexFunc(pods, func(p kube.AgentPod) bool { return p.Node == pod.Node })
		now := time.Now()
		switch {
		case i >= 0:
			return pods[i], true
		case without.IsZero():
			without = now
			o.env.say("%s has no agent any more", pod.Node)
		case now.Sub(without) > agentsInterval:
			return pod, false
		}
		at = now.Add(retryNodeInterval)
	}
}

// followArgs returns the arguments of the command that follows a node. After a stream has broken off, the
// command does not ask for earlier records again.
func (o *observedFleet) followArgs(node string) []string {
	opts := *o.opts
	_, again := o.gone.Load(node)
	if again {
		opts.since, opts.last = 0, 0
	}
	args := append(opts.args("observe"), "--follow", "--end-with-stdin")
	if opts.last > 0 {
		args = append(args, "--last="+strconv.Itoa(opts.last))
	}
	return args
}

// stream reads records until the command in the pod ends. It always returns an error, because the command
// should not end.
func (o *observedFleet) stream(ctx context.Context, pod kube.AgentPod) error {
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := o.fleet.Run(ctx, pod, kube.Command{Args: o.followArgs(pod.Node), Out: out})
		out.CloseWithError(err)
		done <- err
	}()
	begun := begin{Reader: in, begun: func() { o.answers(ctx, pod.Node) }}
	err := readRecords(ctx, &begun, pod.Node, o.records)
	_ = in.CloseWithError(errors.New("not read any more"))
	if failed := <-done; failed != nil {
		return failed
	}
	if err == nil {
		err = errors.New("the agent has ended")
	}
	return err
}

// answers is called when a node answers. If the stream of the node had broken off, answers tells the user
// for how long no flows were seen, and adds a record about this time.
func (o *observedFleet) answers(ctx context.Context, node string) {
	if gone, was := o.gone.LoadAndDelete(node); was {
		sayAgain(o.env, node, gone.(time.Time))
		passGap(ctx, o.records, node, gone.(time.Time))
	}
}

// begin is a reader that calls begun before it returns the first bytes.
type begin struct {
	io.Reader
	begun func() // nil after the call
}

func (b *begin) Read(into []byte) (n int, err error) {
	n, err = b.Reader.Read(into)
	if n > 0 && b.begun != nil {
		b.begun()
		b.begun = nil
	}
	return n, err
}

// mergeByTime passes records on from in to out, in the order of their times. It holds each record back for
// mergeDelay. Records that arrive later than that are out of order.
func mergeByTime(in <-chan *flow.Record, out chan<- *flow.Record) {
	defer close(out)
	type kept struct {
		*flow.Record
		until time.Time
	}
	var all []kept // ordered by time
	tick := time.NewTicker(mergeDelay / 10)
	defer tick.Stop()
	pass := func(n int) {
		for _, k := range all[:n] {
			out <- k.Record
		}
		all = slices.Delete(all, 0, n)
	}
	for {
		select {
		case r, more := <-in:
			if !more {
				pass(len(all))
				return
			}
			i, _ := slices.BinarySearchFunc(all, r.Time, func(k kept, at time.Time) int {
				if k.Time.After(at) {
					return 1
				}
				return -1 // so that r comes after records with the same time
			})
			all = slices.Insert(all, i, kept{r, time.Now().Add(mergeDelay)})
			pass(max(0, len(all)-maxMerged))
		case now := <-tick.C:
			n := 0
			for i := range all {
				if !now.Before(all[i].until) {
					n = i + 1 // with those before it, because they are older
				}
			}
			pass(n)
		}
	}
}

// lastByTime passes records on from in to out, in the order of their times. It passes the last flows, at
// most as many as the parameter last, and the records about missing flows among and after them. If last is
// 0, it passes all records.
func lastByTime(in <-chan *flow.Record, out chan<- *flow.Record, last int) {
	defer close(out)
	var all []*flow.Record
	for r := range in {
		all = append(all, r)
	}
	slices.SortStableFunc(all, func(a, b *flow.Record) int { return a.Time.Compare(b.Time) })
	flows, begin := 0, len(all)
	for last > 0 && flows < last && begin > 0 {
		if begin--; !all[begin].IsMissing() {
			flows++
		}
	}
	if last > 0 {
		all = all[begin:]
	}
	for _, r := range all {
		out <- r
	}
}

// deniedOfAll shows the last denials of all nodes, the most recent first.
func deniedOfAll(ctx context.Context, e env, f fleet, opts observeOptions) error {
	pods, err := opts.pods(ctx, f)
	if err != nil {
		return err
	}
	sayWithoutAgent(ctx, e, f, pods)
	var silent silentNodes
	lists := make([][]*flow.DenialRecord, len(pods))
	onEach(pods, func(i int, pod kube.AgentPod) {
		err := askNode(ctx, f, pod, opts.args("denied"), func(in io.Reader) error { return json.NewDecoder(in).Decode(&lists[i]) })
		if err != nil && ctx.Err() == nil {
			silent.add(e, pod.Node, err)
			lists[i] = nil
		}
	})
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b *flow.DenialRecord) int { return b.Time.Compare(a.Time) })
	if err := writeDenials(e, &opts, all, time.Now()); err != nil {
		return err
	}
	if len(all) == 0 && opts.format != "json" && len(silent.names) < len(pods) {
		sayNoDenials(e, &opts, len(silent.names) > 0)
	}
	return silent.err()
}

// sayNoDenials tells that no node has denials to show. If some is true, only some nodes have answered.
func sayNoDenials(e env, opts *observeOptions, some bool) {
	what, where := "nothing was denied", "since the agents began"
	if opts.since > 0 || opts.selective() {
		what = "no such denial"
	}
	if some {
		where = "on the nodes that have answered, since their agents began"
	}
	fmt.Fprintf(e.stdout, "%s %s\n", what, where)
}
