package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter/flow"
)

func deniedCommand(e env) *cobra.Command {
	opts := observeOptions{format: "text", socket: status.DefaultSocket}
	cmd := &cobra.Command{
		Use:   "denied",
		Short: "Show who was denied last on this node, and by which policy",
		Long: `Denied asks the agent of this node, over its unix socket, for the last distinct denials: the two
ends, the port, the policies that deny, the number of packets, and when the first and the last
packet were denied. The agent always keeps the last 512 denials since it began, including those
of the kernel. If there were more, a line below the table says so. To see denials as they
happen, use sluice observe -f --verdict denied.

A row with "(closed N connections)" is about connections that had begun before: policies have
changed, and deny them now. They are not new attempts, and their packets are not counted.

If packets of very many addresses outside the cluster are denied, one line counts the packets of
several addresses, and shows one of them.

When policies change later, a row still names the policies that have denied its packets. The agent
counts what the kernel denies at least every 10 seconds, and names the policies that are then in
force.

With --all-nodes or --context it asks every agent through the Kubernetes API: it executes a
command in the agent's pod, with the rights of the user. It names each node that does not
answer; the exit status is then 2.`,
		Example: `  sluice denied
  sluice denied -n shop --since 10m
  sluice denied -o json
  sluice denied --context production --since 10m`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := opts.filter(); err != nil {
				return err
			}
			if !opts.wanted() {
				return denied(cmd.Context(), e, opts)
			}
			f, err := opts.open()
			if err != nil {
				return err
			}
			return deniedOfAll(cmd.Context(), e, f, opts)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&opts.socket, "socket", opts.socket, "`PATH` of the agent's socket")
	flags.DurationVar(&opts.since, "since", 0, "only what was denied since, such as 5m")
	flags.StringArrayVarP(&opts.namespaces, "namespace", "n", nil, "denials with an end in this `NAMESPACE`; repeatable")
	flags.StringArrayVar(&opts.from, "from", nil, "denials of packets from this `END`, as for sluice observe; repeatable")
	flags.StringArrayVar(&opts.to, "to", nil, "denials of packets to this `END`; repeatable")
	flags.StringArrayVarP(&opts.ports, "port", "p", nil, "denials of packets to this `PORT`, as in 80 or 53/udp; repeatable")
	flags.StringArrayVar(&opts.policies, "policy", nil, "what this `POLICY` denies, as in shop/db, admin/platform or db; repeatable")
	flags.VarP(newChoiceFlag(&opts.format, "text", "json"), "output", "o", "text or json")
	addAllNodesFlag(flags, &opts.fleetOptions)
	return cmd
}

func denied(ctx context.Context, e env, opts observeOptions) error {
	selected, err := opts.filter()
	if err != nil {
		return err
	}
	answer, err := status.Open(ctx, opts.socket, "/denials")
	if err != nil {
		return err
	}
	defer answer.Close()
	var all flow.DenialTable
	if err := json.NewDecoder(answer).Decode(&all); err != nil {
		return fmt.Errorf("read the answer of the agent on %s: %w", opts.socket, err)
	}
	var shown []*flow.DenialRecord
	now := time.Now()
	for _, d := range all.Denials {
		if selected.Selects(&d.Record) && (opts.since == 0 || !d.Time.Before(now.Add(-opts.since))) {
			shown = append(shown, d)
		}
	}
	if err := writeDenials(e, &opts, shown, now); err != nil || opts.format == "json" {
		return err
	}
	sayOfTable(e, &all, len(shown), now)
	return nil
}

// sayOfTable prints, below the table, what it does not show.
func sayOfTable(e env, all *flow.DenialTable, shown int, now time.Time) {
	since := "since the agent began " + ago(now, all.Since)
	switch {
	case len(all.Denials) == 0:
		fmt.Fprintf(e.stdout, "nothing was denied %s\n", since)
	case shown == 0:
		fmt.Fprintf(e.stdout, "no such denial %s: %s not match the conditions\n", since, count(len(all.Denials), "other denial does", "other denials do"))
	}
	if all.Displaced > 0 {
		fmt.Fprintf(e.stdout, "(%d earlier denials are not kept: the agent keeps the last %d)\n", all.Displaced, flow.MaxDenials)
	}
}

// writeDenials writes denials in the wanted format and in the given order.
func writeDenials(e env, opts *observeOptions, shown []*flow.DenialRecord, now time.Time) error {
	if opts.format == "json" {
		encoder := json.NewEncoder(e.stdout)
		encoder.SetIndent("", "  ")
		if shown == nil {
			shown = []*flow.DenialRecord{}
		}
		return encoder.Encode(shown)
	}
	return printDenials(e, shown, now, opts.wanted())
}

// printDenials prints a table of denials. If nodes is true, it has a column for the node.
func printDenials(e env, all []*flow.DenialRecord, now time.Time, nodes bool) error {
	if len(all) == 0 {
		return nil
	}
	table := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	if nodes {
		fmt.Fprint(table, "NODE\t")
	}
	fmt.Fprintln(table, "LAST\tFIRST\tPACKETS\tFROM\tTO\tPORT\tWHY")
	for _, r := range denialRows(all) {
		if nodes {
			fmt.Fprint(table, r.node, "\t")
		}
		packets, why := strconv.FormatUint(r.count, 10), r.why
		if r.revoked {
			packets, why = "-", fmt.Sprintf("%s (closed %s)", why, count(int(r.count), "connection", "connections"))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", ago(now, r.last), ago(now, r.first), packets, r.from, r.to, r.port, why)
	}
	return table.Flush()
}

// denialRow is a row of the table of denials.
type denialRow struct {
	denialText
	count       uint64 // of packets or, if revoked is set, of connections
	first, last time.Time
}

// denialText has the texts of a row, without numbers and times.
type denialText struct {
	node, from, to, port, why string
	revoked                   bool
}

// denialRows returns the rows of the table. Denials with the same texts are one row, such as denials
// between the same two pods over IPv4 and over IPv6.
func denialRows(all []*flow.DenialRecord) (rows []*denialRow) {
	known := make(map[denialText]*denialRow)
	for _, d := range all {
		from, to := d.Names()
		text := denialText{d.Node, from, to, strings.TrimLeft(d.Port(), ": "), d.Why(), d.Revoked}
		r := known[text]
		if r == nil {
			r = &denialRow{denialText: text, first: d.First, last: d.Time}
			known[text], rows = r, append(rows, r)
		}
		r.count += d.Count
		if d.First.Before(r.first) {
			r.first = d.First
		}
		if d.Time.After(r.last) {
			r.last = d.Time
		}
	}
	return rows
}

// ago returns how long before now a time is. It counts in tenths of a second below 10 s, in seconds below
// a minute, in minutes below 48 hours, and in days beyond.
func ago(now, at time.Time) string {
	d := now.Sub(at)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs ago", max(d, 0).Seconds())
	case d < time.Minute:
		return d.Truncate(time.Second).String() + " ago"
	case d < 48*time.Hour:
		return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s") + " ago"
	}
	return fmt.Sprintf("%dd ago", int(d.Hours())/24)
}
