package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"sluice/filter/policy/lint"
	"sluice/watch/manifests"
)

// finding is a part of a file that cannot be read, or that is probably not intended.
type finding struct {
	Check    string `json:"check"` // name of the check, as in the help
	File     string `json:"file,omitempty"`
	Document int    `json:"document,omitempty"` // number of the document in the file, from 1
	Object   string `json:"object,omitempty"`
	Field    string `json:"field,omitempty"`
	Detail   string `json:"detail"`
	Hint     string `json:"hint"`
}

// manifestCheck is the Check of findings about parts that cannot be read, or that the API
// server would reject.
const manifestCheck = "manifest"

// emptyCheck is the Check of findings about fields of a rule that are present but empty. Such
// fields exist only in files, because the API server drops them.
const emptyCheck = "empty"

func lintCommand(e env) *cobra.Command {
	var in input
	format := "text"
	cmd := &cobra.Command{
		Use:   "lint -f DIR",
		Short: "Find what is legal in policies but probably wrong",
		Long: `Lint finds what is legal in policies but probably wrong. It prints the file, object and
field, and what would be right:

  manifest       a part that cannot be read, or that the API server would reject
  empty          a field that is present and empty in a rule, and so allows everything
  same-address   an address that several live pods claim
  invalid        a part of a policy that cannot be understood and allows nothing
  no-match       a selector that matches no pod, no namespace or no node
  no-port        a named port that no selected pod has
  no-dns         egress is isolated, something is allowed, but no DNS
  except         an exception that is outside of its cidr, or leaves nothing of it
  host-bits      a CIDR with bits behind its prefix, which are ignored
  covered        a rule that allows only what another one allows already
  without-force  rules of a direction that policyTypes leaves out
  deny-with      a value of the annotation sluice/deny-with other than drop and reject

and in ClusterNetworkPolicies, or caused by them:

  same-priority  policies of a tier with equal priority and common pods
  shadowed       a rule that never decides: an earlier rule of its tier, or one of the
                 tier Admin, matches everything that it matches
  unreachable    Baseline rules for pods that are all isolated by NetworkPolicies
  names          domain names, which are not supported

Selectors are checked against the Pods, Namespaces and Nodes in the same directory, or in
the cluster; without Pods they are not checked, and those of nodes not without Nodes. The
exit status is 1 if there are findings. Unknown fields that change nothing are noted, and
objects of other kinds that may change what is allowed, such as policies of Calico or
Cilium, are named ("not read"); neither changes the status.`,
		Example: `  sluice lint -f ./policies
  sluice lint -f ./policies -o json
  sluice lint --context production`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runLint(cmd.Context(), e, in, format) },
	}
	addInputFlags(cmd.Flags(), &in)
	cmd.Flags().VarP(newChoiceFlag(&format, "text", "json"), "output", "o", "text or json")
	return cmd
}

func runLint(ctx context.Context, e env, in input, format string) error {
	objects, problems, err := in.read(ctx)
	if err != nil {
		return err
	}
	found := []finding{} // not nil, so that JSON has [] and not null
	for _, p := range problems {
		found = append(found, finding{manifestCheck, p.File, p.Document, p.Object, p.Field, p.What(), p.Hint})
	}
	for _, p := range objects.Outdated {
		found = append(found, finding{manifestCheck, p.File, p.Document, p.Object, p.Field, p.What(), p.Hint})
	}
	broken := make(map[manifests.Origin]bool)
	for _, p := range problems {
		broken[manifests.Origin{File: p.File, Document: p.Document}] = true
	}
	for _, f := range lint.Check(objects.Namespaces, objects.Pods, objects.Nodes, objects.Policies) {
		at := objects.Origins[f.Object]
		if broken[at] {
			continue // the object was read only in part, so the finding may be wrong
		}
		found = append(found, finding{f.Check, at.File, at.Document, f.Object, f.Field, f.Detail, f.Hint})
	}
	for _, p := range objects.Holes {
		if !broken[manifests.Origin{File: p.File, Document: p.Document}] {
			found = append(found, finding{emptyCheck, p.File, p.Document, p.Object, p.Field, p.What(), p.Hint})
		}
	}
	printNotes(e, objects)
	if format == "json" {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		err = enc.Encode(found)
	} else {
		err = printFindings(e.stdout, found, objects)
	}
	if err != nil {
		return fmt.Errorf("write the findings: %w", err)
	}
	if len(found) > 0 {
		return exitError{status: exitFindings}
	}
	return nil
}

// printFindings writes the findings as text, grouped by object.
func printFindings(out io.Writer, found []finding, objects manifests.Objects) error {
	var b strings.Builder
	last := ""
	for _, f := range found {
		head := f.File
		if f.Document > 0 {
			head += fmt.Sprintf(", document %d", f.Document)
		}
		if f.Object != "" {
			head += ": " + f.Object
		}
		if head != last {
			fmt.Fprintln(&b, head)
		}
		last = head
		place := f.Field
		if place == "" {
			place = "(all of it)"
		}
		fmt.Fprintf(&b, "  %s: %s  [%s]\n      hint: %s\n", place, f.Detail, f.Check, f.Hint)
	}
	if len(found) > 0 {
		fmt.Fprintln(&b)
	}
	fmt.Fprintf(&b, "%s in %s, %s, %s\n", count(len(found), "finding", "findings"),
		count(len(objects.Policies), "policy", "policies"), count(len(objects.Pods), "pod", "pods"),
		count(len(objects.Namespaces), "namespace", "namespaces"))
	if len(objects.Pods) == 0 && len(objects.Policies) > 0 {
		fmt.Fprintln(&b, "There are no pods, so selectors were not checked.")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// count returns n and its unit, in the singular (one) or the plural (many).
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
