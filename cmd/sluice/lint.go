package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"sluice/filter/policy/lint"
)

// lintOptions has the values of the flags of lint.
type lintOptions struct {
	input
	format string
	failOn string
	ignore []string
}

func lintCommand(e env) *cobra.Command {
	opts := lintOptions{format: "text", failOn: lint.Warning.String()}
	cmd := &cobra.Command{
		Use:   "lint -f DIR",
		Short: "Find what is legal in policies but probably wrong",
		Long: `Lint finds what is legal in policies but probably wrong. It prints the file, line, object
and field, and what would be right:

` + checksHelp(false) + `
and in ClusterNetworkPolicies, or caused by them:

` + checksHelp(true) + `
Selectors are checked against the Pods, workloads, Namespaces and Nodes in the same
directory, or in the cluster; without Pods and workloads they are not checked, and those of
nodes not without Nodes. Unknown fields that change nothing are noted, and objects of other
kinds that may change what is allowed, such as policies of Calico or Cilium, are named
("not read"); neither changes the exit status.

The exit status is 1 if there are findings of the severity of --fail-on, or a higher one.
--ignore leaves out the findings of checks. So does the annotation

  sluice/ignore: no-dns,covered

of a policy for findings about it, and of a Namespace for those about everything in it;
those of the check manifest are always reported. Findings that are left out are counted.
The annotation not-isolated of a workload leaves it out of the finding about its namespace.`,
		Example: `  sluice lint -f ./policies
  sluice lint -f ./policies --fail-on error --ignore covered,host-bits
  sluice lint -f ./policies -o sarif > lint.sarif
  sluice lint --context production`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runLint(cmd.Context(), e, &opts) },
	}
	addInputFlags(cmd, &opts.input)
	addScopeFlags(cmd, &opts.input)
	flags := cmd.Flags()
	flags.VarP(newChoiceFlag(&opts.format, "text", "json", "sarif", "github"), "output", "o", "text, json, sarif (SARIF 2.1.0), or github (annotations of GitHub Actions)")
	flags.Var(newChoiceFlag(&opts.failOn, "error", "warning", "info", "none"), "fail-on", "exit with status 1 for findings of this severity or a higher one: error, warning, info or none")
	flags.StringSliceVar(&opts.ignore, "ignore", nil, "leave out the findings of this `CHECK` (repeatable, or a list with commas)")
	return cmd
}

// checksHelp lists the checks about ClusterNetworkPolicies if ordered is true, and otherwise those
// about NetworkPolicies.
func checksHelp(ordered bool) string {
	var b strings.Builder
	for _, c := range lint.Checks() {
		if c.Ordered == ordered {
			fmt.Fprintf(&b, "  %-16s %-8s %s\n", c.ID, c.Severity, c.Summary)
		}
	}
	return b.String()
}

func runLint(ctx context.Context, e env, opts *lintOptions) error {
	if err := ignorable(opts.ignore); err != nil {
		return fmt.Errorf("--ignore: %w", err)
	}
	m, err := readInput(ctx, e, nil, &opts.input)
	if err != nil {
		return err
	}
	r := reportOf(e, m, opts.ignore)
	printNotes(e, m.Objects)
	if err := r.write(e.stdout, opts.format, &m.loaded); err != nil {
		return fmt.Errorf("write the findings: %w", err)
	}
	if r.failsOn(opts.failOn) {
		return exitError{status: exitFindings}
	}
	return nil
}
