package main

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"sluice/bench/result"
)

// kind is the kind of a contender's node.
type kind uint8

const (
	bare     kind = iota // conntrack and no enforcement
	byHand               // iptables rules and IP sets
	accepts              // a queue that accepts everything
	isSluice             // sluice run
)

// row describes a contender.
type row struct {
	result.Row
	kind  kind
	fresh bool // no cache still has the key of a connection when the connection begins
	// ends and family select the addresses between which the connections are. Rows with other ends than
	// fewPods have only new TCP connections, and no extras.
	ends   ends
	family family
	on     string   // the row whose node this row shares; empty for a node of its own
	args   []string // arguments of sluice run
	// observed is set if "sluice observe" shows the node's flows during each load.
	observed bool
	needs    string // a flag; the row is left out if sluice run does not have it
}

// rows are the contenders, in the order of the tables.
var rows = []row{
	{
		Row:  result.Row{Name: "none", Label: "no agent", About: "conntrack and one rule that matches the connection's state; the reference of all others"},
		kind: bare,
	},
	{
		Row:  result.Row{Name: "none-fresh", Label: "no agent, never-seen keys", About: "the same node, with connections to thousands of ports, which have a cost for the server"},
		kind: bare, fresh: true, on: "none",
	},
	{
		Row:  result.Row{Name: "hand", Label: "iptables and IP sets by hand", Against: "none", About: "the same policies as rules in the kernel, for the pods of this node and up to 100 others as if they were on it"},
		kind: byHand,
	},
	{
		Row:  result.Row{Name: "accept", Label: "queue that accepts everything", Against: "none", About: "go-nfqueue unchanged, four queues, no decision"},
		kind: accepts,
	},
	{
		Row: result.Row{Name: "fresh", Label: "Sluice, never-seen keys", Against: "none-fresh", About: "no source, destination and port repeat before all caches have forgotten them"},
		// The keys repeat only after thousands of other keys. By then, a cache this small
		// has forgotten them. A miss costs as much as in a large cache.
		kind: isSluice, fresh: true, args: []string{"--kernel-cache", "off", "--cache-size", "1024"},
	},
	{
		Row:  result.Row{Name: "user", Label: "Sluice, cache in user space", Against: "none", About: "keys that were seen before, remembered only by the agent"},
		kind: isSluice, args: []string{"--kernel-cache", "off"},
	},
	{
		Row:  result.Row{Name: "kernel", Label: "Sluice, cache in the kernel", Against: "none", About: "keys that were seen before, remembered by the kernel"},
		kind: isSluice, args: []string{"--kernel-cache", "on"}, needs: "--kernel-cache",
	},
	{
		Row:  result.Row{Name: "observed", Label: "Sluice, cache in the kernel, flows observed", Against: "none", About: "as kernel, while sluice observe -f -o json prints every connection and every denial"},
		kind: isSluice, args: []string{"--kernel-cache", "on"}, needs: "--flow-buffer", observed: true,
	},
	{
		Row:  result.Row{Name: "reject", Label: "Sluice, cache in the kernel, denials rejected", Against: "none", About: "as kernel, with the chain in FORWARD that rejects what is denied"},
		kind: isSluice, args: []string{"--kernel-cache", "on", "--deny-with", "reject"}, needs: "--deny-with",
	},
	{
		Row:  result.Row{Name: "none-newcomers", Label: "no agent, newcomers", About: "the node of the first row, with the connections of the next row"},
		kind: bare, ends: newcomers, on: "none",
	},
	{
		Row:  result.Row{Name: "newcomers", Label: "Sluice, newcomers", Against: "none-newcomers", About: "cache in the kernel; 4,096 pods connect to 4,096 others, and no two of them were ever connected before"},
		kind: isSluice, ends: newcomers, args: []string{"--kernel-cache", "on"}, needs: "--kernel-cache",
	},
	{
		Row:  result.Row{Name: "none-newcomers6", Label: "no agent, newcomers, IPv6", About: "the same over IPv6"},
		kind: bare, ends: newcomers, family: ipv6, on: "none",
	},
	{
		Row:  result.Row{Name: "newcomers6", Label: "Sluice, newcomers, IPv6", Against: "none-newcomers6", About: "newcomers over IPv6"},
		kind: isSluice, ends: newcomers, family: ipv6, on: "newcomers", needs: "--kernel-cache",
	},
	{
		Row:  result.Row{Name: "none-visitors", Label: "no agent, visitors", About: "the node of the first row, with the connections of the next two rows"},
		kind: bare, ends: visitors, on: "none",
	},
	{
		Row:  result.Row{Name: "visitors", Label: "Sluice, visitors of a pod behind ipBlocks", Against: "none-visitors", About: "the agent of newcomers; 131,072 addresses outside of the cluster, one after the other, connect to a pod with 32 ipBlocks"},
		kind: isSluice, ends: visitors, on: "newcomers", needs: "--kernel-cache",
	},
	{
		Row:  result.Row{Name: "visitors-all", Label: "Sluice, visitors of a pod open to all", Against: "none-visitors", About: "the same, to a pod whose policy allows all peers"},
		kind: isSluice, ends: visitorsOfOpenPod, on: "newcomers", needs: "--kernel-cache",
	},
	{
		Row:  result.Row{Name: "none-visitors6", Label: "no agent, visitors, IPv6", About: "the node of the first row, with the connections of the next two rows"},
		kind: bare, ends: visitors, family: ipv6, on: "none",
	},
	{
		Row:  result.Row{Name: "visitors6", Label: "Sluice, visitors of a pod behind ipBlocks, IPv6", Against: "none-visitors6", About: "visitors over IPv6"},
		kind: isSluice, ends: visitors, family: ipv6, on: "newcomers", needs: "--kernel-cache",
	},
	{
		Row:  result.Row{Name: "visitors-all6", Label: "Sluice, visitors of a pod open to all, IPv6", Against: "none-visitors6", About: "visitors-all over IPv6"},
		kind: isSluice, ends: visitorsOfOpenPod, family: ipv6, on: "newcomers", needs: "--kernel-cache",
	},
}

// hasEnds reports whether the row's node has the ends of newcomers and visitors: it is the node of
// such a row, or of the rows without an agent.
func (r row) hasEnds() bool { return r.kind == bare || r.ends != fewPods }

// hasExtras reports whether the extras are measured on the row.
func (r row) hasExtras() bool { return !r.fresh && r.ends == fewPods }

// selectRows returns the rows with the given names, together with their reference rows, or
// all rows if there are no names. It leaves out rows that this machine or this sluice does
// not support, and returns a note with the reason for each.
func selectRows(names []string, help string) (selected []row, notes []string, err error) {
	wanted := make(map[string]bool)
	for _, name := range names {
		if !slices.Contains(rowNames(), name) {
			return nil, nil, fmt.Errorf("there is no row %q: give some of %s", name, strings.Join(rowNames(), ", "))
		}
		want(wanted, name)
	}
	for _, r := range rows {
		if len(names) > 0 && !wanted[r.Name] {
			continue
		}
		if why := r.lacks(help); why != "" {
			notes = append(notes, fmt.Sprintf("without the row %q: %s", r.Label, why))
			continue
		}
		selected = append(selected, r.known(help))
	}
	return selected, notes, nil
}

// want adds a row, the row whose node it shares and its reference row, and the rows that these need.
func want(wanted map[string]bool, name string) {
	for _, r := range rows {
		if r.Name == name && !wanted[name] {
			wanted[name] = true
			want(wanted, r.on)
			want(wanted, r.Against)
		}
	}
}

// known returns the row with the flags that this sluice has: without --kernel-cache, if help
// does not list that flag.
func (r row) known(help string) row {
	if !strings.Contains(help, "--kernel-cache") {
		r.args = slices.DeleteFunc(slices.Clone(r.args), func(a string) bool { return a == "--kernel-cache" || a == "off" })
	}
	return r
}

// varied returns one row for each value of a flag of sluice run, as in "queues=1,2,4". The
// rows are variants of the "user" row.
func varied(text string) (variants []row, err error) {
	name, list, ok := strings.Cut(strings.TrimLeft(text, "-"), "=")
	if values := strings.Split(list, ","); ok && name != "" && !slices.Contains(values, "") {
		for _, v := range values {
			r := rows[slices.IndexFunc(rows, func(r row) bool { return r.Name == "user" })]
			r.Name, r.Label = name+"="+v, r.Label+", --"+name+" "+v
			r.args = append(slices.Clone(r.args), "--"+name+"="+v)
			variants = append(variants, r)
		}
		return variants, nil
	}
	return nil, fmt.Errorf("--vary %q: give a flag of sluice run and values, such as queues=1,2,4", text)
}

// lacks returns a message that names a missing flag or command that the row needs, or an empty
// string if nothing is missing.
func (r row) lacks(help string) string {
	if r.needs != "" && !strings.Contains(help, r.needs) {
		return "this sluice run has no flag " + r.needs
	}
	if _, err := exec.LookPath("ipset"); r.kind == byHand && err != nil {
		return "there is no command ipset: install the package ipset"
	}
	return ""
}

func rowNames() (names []string) {
	for _, r := range rows {
		names = append(names, r.Name)
	}
	return names
}
