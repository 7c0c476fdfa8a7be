package main

import (
	"errors"
	"io"

	"github.com/spf13/cobra"

	"sluice/bench/result"
)

func compareCommand(e env) *cobra.Command {
	absolute := false
	cmd := &cobra.Command{
		Use:   "compare OLD NEW",
		Short: "Show what changed between two results beyond the noise",
		Long: `Compare compares two results (run --out) figure by figure. If a row has a reference
row, as Sluice has no agent, it compares ratios, so that the speed of the machine on
that day does not count.

A change counts if it is 2% or more and beyond the noise. The test is the rank test
of Mann and Whitney over the rounds of both results. Among the figures of a size of
cluster, changes are chosen so that about one in twenty of those shown is chance
(Benjamini and Hochberg, 0.05).

The exit status is 1 if a figure got worse.`,
		Example: `  bin/bench compare old.json new.json`,
		Args:    cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			old, err := result.ReadFile(args[0])
			if err != nil {
				return err
			}
			fresh, err := result.ReadFile(args[1])
			if err != nil {
				return err
			}
			changes := result.Compare(old, fresh, absolute)
			if len(changes) == 0 {
				return errors.New("the two results have no figure in common: measure both with the same flags")
			}
			result.Sort(changes)
			worse, err := result.WriteChanges(e.stdout, old, fresh, changes)
			if err == nil && worse > 0 {
				err = errWorse
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&absolute, "absolute", false, "compare the figures themselves, not ratios: for two results of one quiet machine")
	return cmd
}

func reportCommand(e env) *cobra.Command {
	var html, page string
	cmd := &cobra.Command{
		Use:   "report RESULT",
		Short: "Print a result again, or write it in another form",
		Example: `  bin/bench report result.json
  bin/bench report result.json --html result.html --page bench/RESULTS.md`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := result.ReadFile(args[0])
			if err != nil {
				return err
			}
			if html == "" && page == "" {
				return r.Text(e.stdout)
			}
			return writeFiles(map[string]func(io.Writer) error{html: r.HTML, page: r.Page})
		},
	}
	cmd.Flags().StringVar(&html, "html", "", "write a report with charts to this `FILE`")
	cmd.Flags().StringVar(&page, "page", "", "write a page in Markdown to this `FILE`")
	return cmd
}
