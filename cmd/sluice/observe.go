package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter"
	"sluice/filter/flow"
	"sluice/filter/flow/hubbleflow"
)

// observeOptions are the flags of observe and denied.
type observeOptions struct {
	fleetOptions
	socket       string
	follow       bool
	last         int
	since        time.Duration
	verdict      string
	namespaces   []string
	from, to     []string
	ports        []string
	policies     []string
	format       string
	endWithStdin bool
}

func observeCommand(e env) *cobra.Command {
	opts := observeOptions{format: "text", socket: status.DefaultSocket}
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Show the flows on this node: what is allowed and denied, by which policy",
		Long: `Observe asks the agent of this node, over its unix socket, which connections begin and end,
which packets are denied, and which policies decide. It also shows what the kernel allows
and denies without the agent.

With -f it prints flows as they happen, until it is interrupted. If the agent ends, or another
one takes over, it says so and goes on with the next agent; it prints no flow again. Without
-f, it prints the last flows that the agent has kept. The agent records flows only while a
command shows them, so that they cost nothing at other times. A line says when flows were
not recorded. The agent always keeps the last denials: see sluice denied.

In the text, the first of several equal flows is printed at once, and those that follow within
a second as one line with their number. In each second, the agent records at most 20,000
connections that begin, 20,000 that end and 20,000 denied packets. Of the packets that the
kernel denies, it records at most 1,000 a second from one source. If there are more, it
records a part of them, and a line tells how many are missing.

If policies change and close a connection that had begun before, it is shown as denied once,
with the note "(open connection)" or, unless it is TCP, "(open or idle connection)"; in JSON,
"revoked" is true. It is not a new attempt. A connection that had ended is not shown again.

The end of a connection is seen when its entry leaves the kernel's table, usually two minutes
after both ends have closed it. Its duration is the time from the first to the last packet, and
needs net.netfilter.nf_conntrack_timestamp=1 on the node. How much each end has sent needs
net.netfilter.nf_conntrack_acct=1. Both must be set before the connection begins.

A flow must match all conditions. If a flag is given several times, one of its values must
match. --from and --to take a pod or a workload (web, shop/web or deploy/web), labels (app=web
or shop/app=web), all of a namespace (ns/shop), an address or a range, world, host (this node),
remote-node or node/NAME. --to and --port also take the address and the port of a Service. If
one namespace is given with -n, names and labels without one are in this namespace.

With --all-nodes or --context it asks every agent through the Kubernetes API: it executes a
command in the agent's pod, with the rights of the user. It prints the flows of all nodes in
the order of their times. It names each node that does not answer. With -f, it asks these
nodes again; without -f, the exit status is then 2.`,
		Example: `  sluice observe -f
  sluice observe -f --verdict denied -n shop
  sluice observe -f --from shop/web --to world --port 443
  sluice observe --last 100 -o json
  sluice observe --context production -f --verdict denied
  sluice observe -f -o hubble | hubble observe --input-file - --print-policy-names`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := opts.filter(); err != nil {
				return err
			}
			if !opts.wanted() {
				return observe(cmd.Context(), e, opts)
			}
			f, err := opts.open()
			if err != nil {
				return err
			}
			return observeAll(cmd.Context(), e, f, opts)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.socket, "socket", opts.socket, "`PATH` of the agent's socket")
	flags.BoolVarP(&opts.follow, "follow", "f", false, "print flows as they happen")
	flags.Var(newNumberFlag(&opts.last, 0, 1<<20), "last", "how many flows from before to print that match the conditions; without -f, all that the agent has\nkept unless given; with -f and several nodes, so many of each node")
	flags.DurationVar(&opts.since, "since", 0, "only flows that are not older, such as 5m")
	flags.Var(verdictFlag{newChoiceFlag(&opts.verdict, "", "allowed", "denied")}, "verdict", "allowed or denied")
	flags.StringArrayVarP(&opts.namespaces, "namespace", "n", nil, "flows with an end in this `NAMESPACE`; repeatable")
	flags.StringArrayVar(&opts.from, "from", nil, "flows from this `END`; repeatable")
	flags.StringArrayVar(&opts.to, "to", nil, "flows to this `END`; repeatable")
	flags.StringArrayVarP(&opts.ports, "port", "p", nil, "flows to this `PORT`, as in 80 or 53/udp; repeatable")
	flags.StringArrayVar(&opts.policies, "policy", nil, "flows that this `POLICY` decides, as in shop/db, admin/platform or db; repeatable")
	flags.VarP(newChoiceFlag(&opts.format, "text", "json", "hubble"), "output", "o", "text; json with an object on each line; hubble: the same in the form of Hubble, for hubble observe\n--input-file -, without the ends of connections")
	flags.BoolVar(&opts.endWithStdin, "end-with-stdin", false, "end when the standard input ends, as when the client of a remote command has gone; with -f, an\nempty line shows that flows are seen from now on")
	addAllNodesFlag(flags, &opts.fleetOptions)
	return cmd
}

// verdictFlag is a choiceFlag that also takes the words for verdicts in the output of other commands.
type verdictFlag struct{ *choiceFlag[string] }

func (v verdictFlag) Set(text string) error {
	switch text {
	case filter.Allow.String():
		text = flow.Opened.String()
	case filter.Deny.String():
		text = flow.Denied.String()
	}
	return v.choiceFlag.Set(text)
}

// filter returns the conditions that the flags set, but --since.
func (o *observeOptions) filter() (flow.Filter, error) {
	if o.since < 0 {
		return flow.Filter{}, fmt.Errorf("--since %v is in the future: write %v", o.since, -o.since)
	}
	return o.conditions().Filter()
}

func (o *observeOptions) conditions() flow.Conditions {
	return flow.Conditions{Verdict: o.verdict, Namespaces: o.namespaces, From: o.from, To: o.to, Ports: o.ports, Policies: o.policies}
}

// request returns the path and the query of the request to the agent. If earlier is false, it requests
// only records from now on.
func (o *observeOptions) request(earlier bool) string {
	last := o.last
	switch {
	case !earlier:
		last = 0
	case last == 0 && (!o.follow || o.since > 0), !o.follow && o.selective():
		last = 1 << 20 // all that the agent has kept
	}
	// With the conditions in the query, the agent makes no text of the records that are not selected, and
	// this command does not read them. The command selects the records again, because an older agent
	// ignores the conditions.
	query := o.conditions().Values()
	query.Set("last", strconv.Itoa(last))
	query.Set("follow", strconv.FormatBool(o.follow))
	query.Set("denied", strconv.FormatBool(o.verdict == "denied"))
	return "/flows?" + query.Encode()
}

// selective reports whether the flags set conditions. If they do, the last flows that fulfill them may be
// older than the last flows that the agent has kept.
func (o *observeOptions) selective() bool {
	return o.verdict != "" || len(o.namespaces)+len(o.from)+len(o.to)+len(o.ports)+len(o.policies) > 0
}

func observe(ctx context.Context, e env, opts observeOptions) error {
	selected, err := opts.filter()
	if err != nil {
		return err
	}
	if opts.endWithStdin {
		var stop func()
		ctx, stop = untilEnd(ctx, e.stdin)
		defer stop()
	}
	records := make(chan *flow.Record)
	failed := make(chan error, 1)
	lines := &lineCopier{out: &lockedWriter{w: e.stdout}}
	e.stdout = lines.out
	go func() {
		defer close(records)
		s := socketStream{env: e, opts: &opts, records: records}
		if opts.format == "json" && opts.since == 0 && !opts.selective() {
			s.lines = lines
		}
		if opts.follow {
			failed <- s.follow(ctx)
		} else {
			failed <- s.once(ctx)
		}
	}()
	shown := showRecords(e, &opts, &selected, lastOf(&opts, &selected, records))
	err = <-failed
	switch {
	case ctx.Err() != nil:
		return nil // the user has interrupted it, or the standard input has ended
	case err != nil:
		return err
	case shown == 0 && !lines.copied:
		e.say("the agent has kept no such flow: it records while a command shows them: -f shows what happens from now on, and %s denied the last denials", e.name())
	}
	return nil
}

// lastOf returns a channel with those of the records that are selected: at most the last opts.last flows.
// If opts.follow is set or opts.last is 0, it returns records itself.
func lastOf(opts *observeOptions, selected *flow.Filter, records <-chan *flow.Record) <-chan *flow.Record {
	if opts.follow || opts.last == 0 {
		return records
	}
	some, last := make(chan *flow.Record), make(chan *flow.Record)
	go func() {
		defer close(some)
		for r := range records {
			if selected.Selects(r) {
				some <- r
			}
		}
	}()
	go lastByTime(some, last, opts.last)
	return last
}

// untilEnd returns a context that ends when the input in ends.
func untilEnd(ctx context.Context, in io.Reader) (context.Context, func()) {
	ctx, stop := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, in) // an error is an end, too
		stop()
	}()
	return ctx, stop
}

// readRecords reads records until the end of the input. It sets the node of records that name none.
func readRecords(ctx context.Context, in io.Reader, node string, records chan<- *flow.Record) error {
	for decoder := json.NewDecoder(bufio.NewReader(in)); ; {
		r := new(flow.Record)
		switch err := decoder.Decode(r); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		r.Node = cmp.Or(r.Node, node)
		select {
		case records <- r:
		case <-ctx.Done():
			return nil
		}
	}
}

// showRecords prints the selected records, and returns their number.
func showRecords(e env, opts *observeOptions, selected *flow.Filter, records <-chan *flow.Record) (shown int) {
	p := recordPrinter{out: e.stdout, format: opts.format, zone: time.Local, nodes: opts.wanted()}
	began, hinted := time.Now(), opts.format != "text"
	tick := time.NewTicker(mergeInterval / 4)
	defer tick.Stop()
	for {
		select {
		case r, more := <-records:
			switch {
			case !more:
				p.flush(time.Time{})
				return shown
			case opts.since > 0 && r.Time.Before(began.Add(-opts.since)), !selected.Selects(r):
				continue
			}
			shown++
			p.print(r)
			if settings := unmeasured(r); settings != "" && !hinted {
				e.say("note: the ends of connections lack a duration or sizes: set %s on the node, for connections that begin from then on", settings)
				hinted = true
			}
		case now := <-tick.C:
			p.flush(now)
		}
	}
}

// unmeasured returns the settings of the kernel without which the end of a TCP connection has no duration or no
// sizes. It returns nothing if the record has both, or is about something else.
func unmeasured(r *flow.Record) string {
	var settings []string
	if r.Event != flow.Ended.String() || r.Protocol != filter.TCP.String() {
		return ""
	}
	if r.Seconds+r.Idle == 0 {
		settings = append(settings, "net.netfilter.nf_conntrack_timestamp=1")
	}
	if r.Sent == nil {
		settings = append(settings, "net.netfilter.nf_conntrack_acct=1")
	}
	return strings.Join(settings, " and ")
}

// mergeInterval is the time within which equal flows after the first are shown as one line.
const mergeInterval = time.Second

// recordPrinter prints records as they come. In text, it prints the first of several equal records at
// once. If equal records follow within mergeInterval, it prints one line with their number.
type recordPrinter struct {
	out    io.Writer
	format string
	zone   *time.Location
	nodes  bool                      // whether lines name the node
	width  int                       // the length of the longest name of a node so far
	recent []*recent                 // in the order in which they came
	known  map[flow.Likeness]*recent // the same, by their likeness
}

// recent is a record that was printed. Equal records that come before the time until are merged into it.
// more is the number of these.
type recent struct {
	flow.Record
	likeness flow.Likeness
	until    time.Time
	more     uint64
}

func (p *recordPrinter) print(r *flow.Record) {
	switch p.format {
	case "json":
		if line, err := r.AppendJSON(nil); err == nil {
			_, _ = p.out.Write(append(line, '\n'))
		}
		return
	case "hubble":
		if answer := hubbleflow.Response(r); answer != nil {
			_ = json.NewEncoder(p.out).Encode(answer)
		}
		return
	}
	p.flush(r.Time)
	likeness, merges := r.Likeness()
	if o := p.known[likeness]; o != nil && merges {
		o.more += max(r.Count, 1)
		o.Time = r.Time
		return
	}
	p.line(r)
	if !merges {
		return
	}
	o := &recent{Record: *r, likeness: likeness, until: r.Time.Add(mergeInterval)}
	if p.known == nil {
		p.known = make(map[flow.Likeness]*recent)
	}
	p.recent, p.known[likeness] = append(p.recent, o), o
}

// flush removes each recent record whose interval has ended at the time until. If until is zero, it
// removes all. If other records were merged into a recent record, flush prints a line with their number.
func (p *recordPrinter) flush(until time.Time) {
	// p.recent is almost in the order of the times of its records, because records come almost in this
	// order. So the loop stops at the first record whose interval has not ended.
	n := 0
	for ; n < len(p.recent) && (until.IsZero() || !until.Before(p.recent[n].until)); n++ {
		o := p.recent[n]
		delete(p.known, o.likeness)
		if o.more > 0 {
			o.Count = o.more
			p.line(&o.Record)
		}
	}
	p.recent = p.recent[n:]
}

func (p *recordPrinter) line(r *flow.Record) {
	node := ""
	if p.nodes {
		p.width = max(p.width, len(r.Node))
		node = fmt.Sprintf("%-*s  ", p.width, r.Node)
	}
	fmt.Fprintf(p.out, "%s  %s%s\n", r.Time.In(p.zone).Format("15:04:05.000"), node, r.Text())
}
