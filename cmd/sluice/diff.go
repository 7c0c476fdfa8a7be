package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"sluice/filter/policy"
	"sluice/filter/policy/diff"
	"sluice/filter/policy/reach"
	"sluice/watch/manifests"
)

type diffOptions struct {
	input
	format string
	failOn string
}

func diffCommand(e env) *cobra.Command {
	opts := diffOptions{format: "text", failOn: "opened"}
	cmd := &cobra.Command{
		Use:   "diff [OLD] NEW",
		Short: "Show what changes in who reaches whom, and which policy does it",
		Long: `Diff compares two directories of manifests, or two files (one may be -, the standard
input): which workloads, nodes and addresses outside the cluster can reach which others now
and could not before, or no longer can, at which ports, and which policy does it. It decides
about every port and about all addresses, by the same decision that judges packets.

With -f, OLD and NEW are compared as if they were applied to those manifests: give the
workloads there if OLD and NEW have only policies. With --kubeconfig or --context they are
applied to that cluster, and nothing is changed in it. Without OLD, NEW is compared with what
it is applied to: the manifests of -f, or a cluster, by default that of the current context.
As with kubectl apply, what NEW does not have then stays. With OLD and NEW, what OLD has and
NEW does not is deleted.

In the text, + opens and - closes, and the last lines count the pairs of ends. Workloads are
matched by their names, so that pods with other names are the same. What a new workload can
reach opens, and what one that is gone could reach closes. Pods without an address may have
any (of the ranges of --pod-cidr): the text states which changes depend on that.

A line from "outside" is a way from outside the cluster, such as an Ingress, that opens or
closes: because it is new or gone, or because of what policies allow its controller. One that
is new counts as open if the pods of its controller are not known.

The exit status is 1 if something opens (see --fail-on), and 2 if parts of the manifests
cannot be understood.`,
		Example: `  sluice diff ./old ./new
  sluice diff -f ./workloads ./old/policies ./new/policies -o markdown
  sluice diff -f ./workloads - ./policies  (OLD is read from the standard input)
  sluice diff --context production ./policies -n shop`,
		Args: diffArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return runDiff(cmd.Context(), e, opts, args) },
	}
	flags := cmd.Flags()
	addInputFlags(cmd, &opts.input)
	addScopeFlags(cmd, &opts.input)
	flags.VarP(newChoiceFlag(&opts.format, "text", "json", "markdown", "md"), "output", "o", "text, json or markdown (md)")
	flags.Var(newChoiceFlag(&opts.failOn, "opened", "closed", "any", "none"), "fail-on", "exit with status 1 if something is opened, closed, any of them, or none")
	return cmd
}

// diffArgs checks the number and form of the arguments.
func diffArgs(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return fmt.Errorf("there is nothing to compare: write %s OLD NEW, with two directories or files, or only NEW to compare it with a cluster", cmd.CommandPath())
	case len(args) > 2:
		return fmt.Errorf("%d arguments are too many: write %s OLD NEW; give what both have with -f", len(args), cmd.CommandPath())
	case len(args) == 2 && args[0] == manifests.Stdin && args[1] == manifests.Stdin:
		return errors.New("OLD and NEW are both the standard input: give a file for one of them")
	case slices.Contains(args, ""):
		return errors.New("an argument is empty: write a directory or a file, or - for the standard input")
	}
	return nil
}

func runDiff(ctx context.Context, e env, opts diffOptions, args []string) error {
	before, after, err := opts.sides(ctx, e, args)
	if err != nil {
		return err
	}
	report := diff.New(reach.Compare(before.inventory, after.inventory), before.scope)
	notRead := notReadOf(before.NotRead, after.NotRead)
	before.NotRead, after.NotRead = nil, nil // after gets those of both, so that each is printed once
	for _, n := range notRead {
		report.NotRead = append(report.NotRead, n)
		after.NotRead = append(after.NotRead, n.withSide())
	}
	write := map[string]func(*diff.Report, io.Writer) error{
		"text": (*diff.Report).WriteText, "json": (*diff.Report).WriteJSON, "markdown": (*diff.Report).WriteMarkdown, "md": (*diff.Report).WriteMarkdown,
	}[opts.format]
	if err := write(report, e.stdout); err != nil {
		return fmt.Errorf("write the comparison: %w", err)
	}
	for _, note := range report.Notes {
		e.say("note: %s", note)
	}
	after.withoutKnown(before)
	if err := errors.Join(before.report(e, "the comparison"), after.report(e, "the comparison")); err != nil {
		return exitError{status: exitFailed, err: errors.New("parts of the manifests cannot be understood: the comparison is about the rest of them")}
	}
	opened, closed := report.Opened > 0 || report.OpensWay(), report.Closed > 0 || report.ClosesWay()
	if opened && (opts.failOn == "opened" || opts.failOn == "any") || closed && (opts.failOn == "closed" || opts.failOn == "any") {
		return exitError{status: exitFindings}
	}
	return nil
}

// sides reads and compiles the two sides of the comparison.
func (o *diffOptions) sides(ctx context.Context, e env, args []string) (before, after *compiled, err error) {
	if slices.Contains(args, manifests.Stdin) && slices.Contains(o.paths, manifests.Stdin) {
		return nil, nil, errors.New("-f - and the argument - both read the standard input: give a file to one of them")
	}
	var base *loaded
	if len(args) == 1 || len(o.paths) > 0 || o.cluster.given() {
		l, err := o.readAll(ctx, e.stdin)
		if err != nil {
			return nil, nil, err
		}
		if err := l.readIn(l.scope); err != nil {
			return nil, nil, err
		}
		base = &l
	}
	var sides []loaded
	for _, arg := range args {
		l, err := o.files(base, arg, e.stdin)
		if err != nil {
			return nil, nil, err
		}
		sides = append(sides, l)
	}
	if base != nil {
		sides = o.applied(*base, sides)
	}
	if err := scopeIn(sides[0].scope, sides...); err != nil {
		return nil, nil, err
	}
	before, after = compile(nil, sides[0]), compile(nil, sides[1])
	return before, after, havePods(args, before, after)
}

// files reads the argument OLD or NEW. If base is not nil, the result has the namespace, the scope and
// the ranges of base.
func (o *diffOptions) files(base *loaded, path string, stdin io.Reader) (l loaded, err error) {
	if base != nil {
		l = *base
	} else {
		if err := o.validate(); err != nil {
			return loaded{}, err
		}
		l.scope = o.namespaces
		if l.podRanges, err = parseRanges("--pod-cidr", o.podRanges); err != nil {
			return loaded{}, err
		}
	}
	if path == os.DevNull {
		return l, nil // nothing, as git diff writes it
	}
	l.Objects, l.problems, err = manifests.Input{Paths: []string{path}, Stdin: stdin, Namespace: l.namespace, Scope: l.scope, Command: o.command.CommandPath(), Pipe: o.pipe(path)}.Read()
	return l, err
}

// pipe returns the command with the standard input instead of an argument.
func (o *diffOptions) pipe(path string) string {
	words := []string{o.command.CommandPath()}
	for _, arg := range o.command.Flags().Args() {
		if arg == path {
			arg = manifests.Stdin
		}
		words = append(words, arg)
	}
	return strings.Join(words, " ")
}

// applied returns both sides of the comparison. With one argument, the sides are the base, and the base
// with the files applied. With OLD and NEW, they are the base with OLD applied, and the base with NEW
// applied; the second side lacks objects of OLD that are not in NEW.
func (o *diffOptions) applied(base loaded, files []loaded) []loaded {
	under := base.Objects
	sides := []loaded{base}
	if len(files) == 2 {
		sides[0] = o.overlaid(base.Objects, files[0])
		under = manifests.Without(base.Objects, files[0].Objects, files[1].Objects)
	}
	sides = append(sides, o.overlaid(under, files[len(files)-1]))
	for i := range sides {
		sides[i].problems = slices.Concat(base.problems, sides[i].problems)
	}
	return sides
}

// overlaid returns the objects under with the files applied.
func (o *diffOptions) overlaid(under manifests.Objects, files loaded) loaded {
	notes := slices.Concat(under.Notes, files.Notes)
	files.Objects = manifests.Overlay(under, "the cluster", files.Objects)
	if !o.live() {
		files.Notes = notes // Overlay's note says that the base is a cluster, but it is files
	}
	return files
}

// havePods returns an error if one of the sides has neither pods nor workloads, unless its argument is
// the empty file /dev/null: there would be nothing to compare.
func havePods(args []string, before, after *compiled) error {
	for i, m := range []*compiled{before, after} {
		if len(m.inventory.AllPods()) == 0 && (len(args) < 2 || args[i] != os.DevNull) {
			return fmt.Errorf("%s has no pods or workloads, so that there is nothing that its policies are about: give what both have with -f, as in diff -f ./workloads OLD NEW, or compare with a cluster by --context",
				[]string{"OLD", "NEW"}[i])
		}
	}
	return nil
}

// withoutKnown removes the notes and problems that the other side has as well, so that each is printed
// only once.
func (m *compiled) withoutKnown(o *compiled) {
	known := make(map[string]bool)
	for _, list := range [][]manifests.Problem{o.Notes, o.Outdated, o.problems} {
		for _, p := range list {
			known[p.Error()] = true
		}
	}
	seen := func(p manifests.Problem) bool { return known[p.Error()] }
	m.Notes, m.Outdated = slices.DeleteFunc(slices.Clone(m.Notes), seen), slices.DeleteFunc(slices.Clone(m.Outdated), seen)
	m.problems = slices.DeleteFunc(slices.Clone(m.problems), seen)
	for _, p := range o.misunderstood {
		known[o.located(p).Error()] = true
	}
	m.misunderstood = slices.DeleteFunc(slices.Clone(m.misunderstood), func(p policy.Problem) bool { return known[m.located(p).Error()] })
	m.nodesMissing = m.nodesMissing && !o.nodesMissing
}
