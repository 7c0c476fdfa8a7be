package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/reach"
	"sluice/filter/policy/report"
	"sluice/watch/manifests"
)

type reportOptions struct {
	input
	format string
	date   string
}

func reportCommand(e env) *cobra.Command {
	opts := reportOptions{format: "text"}
	cmd := &cobra.Command{
		Use:   "report -f DIR -n NAMESPACE",
		Short: "Report to an auditor who can get into a namespace and out of it",
		Long: `Report lists every peer that can get into the pods of a namespace, or that they can reach:
workloads, nodes, ranges of addresses and the world outside the cluster, with the ports and
the rules that let them, by the same decision that judges packets. It lists what exposes them
to the outside (Ingresses, routes, Services), what is open between the workloads of the
namespace, what is closed and by which policies, and what the answers depend on. It warns of
pods that no policy isolates.

At its top are the scope, the date, a digest of all that was read, which does not depend on
the names of files or their order, and what is missing: kinds of objects that are not read,
parts that cannot be understood, and pods that are left out.

The HTML page is a single file that needs no network and no scripts, for the screen, a phone
and paper. JSON has the names of all peers.

Equal inputs give equal reports, apart from the date: --date or $SOURCE_DATE_EPOCH sets it.
The exit status is 2 if parts of the manifests cannot be understood.`,
		Example: `  sluice report -f ./policies -n pci
  sluice report -f ./policies -n pci -o html > pci.html
  sluice report --context production -n pci,vault -o markdown
  sluice report -f ./policies -n pci -o json --date 2026-01-31`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runReport(cmd.Context(), e, opts) },
	}
	flags := cmd.Flags()
	addInputFlags(cmd, &opts.input)
	addScopeFlags(cmd, &opts.input)
	flags.Lookup("namespace").Usage = "report about this `NAMESPACE` (repeatable, or a list with commas); for a cluster, the default is the context's"
	flags.VarP(newChoiceFlag(&opts.format, "text", "json", "markdown", "md", "html"), "output", "o", "text, json, markdown (md) or html")
	flags.StringVar(&opts.date, "date", "", "`DATE` of the report, as in 2026-01-31 or 2026-01-31T15:04:05Z; the default is now, or $SOURCE_DATE_EPOCH")
	return cmd
}

func runReport(ctx context.Context, e env, opts reportOptions) error {
	date, err := opts.day(e)
	if err != nil {
		return err
	}
	from, err := readInput(ctx, e, nil, &opts.input)
	if err != nil {
		return err
	}
	if len(from.inventory.AllPods()) == 0 {
		return errors.New("there are no pods or workloads in these manifests: add workloads such as Deployments, or Pods, as printed by kubectl get pods -A -o yaml")
	}
	inputs, err := from.digest()
	if err != nil {
		return err
	}
	r := report.New(reach.New(from.inventory), report.Options{
		Namespaces: from.scope, Place: from.places(), Date: date, Inputs: inputs, Version: "sluice " + version(),
		Source: opts.sources(&from.loaded), Read: from.counts(), Missing: from.missing(),
	})
	text, err := formatReport(r, opts.format)
	if err == nil {
		_, err = io.WriteString(e.stdout, text)
	}
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return from.report(e, "the report")
}

func formatReport(r *report.Report, format string) (string, error) {
	switch format {
	case "json":
		return r.JSON()
	case "markdown", "md":
		return r.Markdown(), nil
	case "html":
		return r.HTML()
	}
	return r.Text(), nil
}

// epochVariable is the environment variable with the date of generated files, in seconds since 1970
// (https://reproducible-builds.org/specs/source-date-epoch/).
const epochVariable = "SOURCE_DATE_EPOCH"

// day returns the date of the report: the value of --date, the time in epochVariable, or the current
// time, in this order.
func (o *reportOptions) day(e env) (string, error) {
	epoch := ""
	if e.getenv != nil {
		epoch = e.getenv(epochVariable)
	}
	switch {
	case o.date != "":
		_, err := time.Parse(time.DateOnly, o.date)
		if _, errTime := time.Parse(time.RFC3339, o.date); err != nil && errTime != nil {
			return "", fmt.Errorf("--date %s: write a day or a time, such as 2026-01-31 or 2026-01-31T15:04:05Z", o.date)
		}
		return o.date, nil
	case epoch != "":
		seconds, err := strconv.ParseInt(epoch, 10, 64)
		if err != nil {
			return "", fmt.Errorf("$%s is %s: write a number of seconds since 1970, or give --date", epochVariable, epoch)
		}
		return time.Unix(seconds, 0).UTC().Format(time.RFC3339), nil
	}
	return time.Now().UTC().Format(time.RFC3339), nil
}

// sources names the cluster and the files that the objects were read from.
func (o *reportOptions) sources(l *loaded) (all []string) {
	if l.cluster != "" {
		all = append(all, l.cluster)
	}
	for _, path := range o.paths {
		if path == manifests.Stdin {
			path = "the standard input"
		}
		all = append(all, path)
	}
	return all
}

// counts returns the number of objects of each kind, as in "3 Pods".
func (m *compiled) counts() (all []string) {
	kinds := make(map[string]int)
	for _, p := range m.Policies {
		kinds[p.Ref.Kind]++
	}
	for _, c := range []struct {
		n         int
		one, many string
	}{
		{len(m.Namespaces), "Namespace", "Namespaces"}, {len(m.Pods), "Pod", "Pods"}, {len(m.Workloads), "workload", "workloads"},
		{len(m.Nodes), "Node", "Nodes"}, {len(m.Services), "Service", "Services"}, {len(m.Routing.Routes), "route", "routes"}, {kinds["NetworkPolicy"], "NetworkPolicy", "NetworkPolicies"},
		{kinds["ClusterNetworkPolicy"], "ClusterNetworkPolicy", "ClusterNetworkPolicies"},
	} {
		if c.n > 0 {
			all = append(all, count(c.n, c.one, c.many))
		}
	}
	return all
}

// missing describes the objects that were not read, or not understood.
func (m *compiled) missing() (all []string) {
	for _, n := range m.NotRead {
		text := "not read: " + n.String()
		if n.Effect == "" {
			text += ": this may change what is allowed"
		}
		all = append(all, text)
	}
	for _, p := range m.problems {
		all = append(all, "not understood: "+p.Error())
	}
	for _, p := range m.misunderstood {
		all = append(all, "not understood: "+m.located(p).Error())
	}
	return all
}

// places returns a function that returns the file and line of a rule, as in "pci.yaml:12". For a rule
// of a live cluster, the function returns "".
func (l *loaded) places() func(filter.Rule) string {
	objects := make(map[string]policy.Ref, len(l.Policies))
	for _, p := range l.Policies {
		objects[filter.PolicyTitle(p.Tier, p.Ref.String())] = p.Ref
	}
	lines := l.Lines()
	known := make(map[filter.Rule]string)
	return func(r filter.Rule) string {
		if place, has := known[r]; has {
			return place
		}
		object := objects[r.PolicyTitle()].Object()
		at := l.Origins[object]
		known[r] = ""
		field := "spec." + r.Field()
		if r.Index < 0 {
			field = "" // the place of the policy itself
		}
		if line := lines.Line(at.File, at.Document, object, field); line > 0 {
			known[r] = at.File + ":" + strconv.Itoa(line)
		}
		return known[r]
	}
}
