package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sluice/filter"
	"sluice/filter/policy/matrix"
)

type matrixOptions struct {
	input
	format     string
	ports      []string
	namespaces []string
}

func matrixCommand(e env) *cobra.Command {
	opts := matrixOptions{format: "text"}
	cmd := &cobra.Command{
		Use:   "matrix -f DIR",
		Short: "Show which pods can reach which, on which ports",
		Long: `Matrix shows which pods can reach which others, on which ports, by the same
decision that judges packets.

For each pod it decides about the ports that its containers declare, and about all
others together. With --port it decides only about those ports, for every pod.

In the text table, a cell lists the open ports: "all", "-" for none, or a list, in which
TCP is the default protocol. The HTML page is a single file that needs no network; point
at a cell for the reasons. In JSON and HTML, reasons name the tier and the rule of a
ClusterNetworkPolicy, as in: denied by admin/platform rule 2 "sandbox".

Objects of other kinds that may change what is allowed, such as policies of Calico or
Cilium, are listed ("not read"). The exit status is 2 if parts of the manifests cannot
be understood.`,
		Example: `  sluice matrix -f ./policies
  sluice matrix -f ./policies --namespace shop --port 6379 --port 53/udp
  sluice matrix -f ./policies -o html > matrix.html`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runMatrix(cmd.Context(), e, opts) },
	}
	flags := cmd.Flags()
	addInputFlags(flags, &opts.input)
	flags.VarP(newChoiceFlag(&opts.format, "text", "json", "html"), "output", "o", "text, json or html")
	flags.StringSliceVarP(&opts.ports, "port", "p", nil, "decide about this `PORT` of every pod, such as 80 or 53/udp (repeatable)")
	flags.StringSliceVarP(&opts.namespaces, "namespace", "n", nil, "show only the pods of this `NAMESPACE` (repeatable)")
	return cmd
}

func runMatrix(ctx context.Context, e env, opts matrixOptions) error {
	write := map[string]func(*matrix.Matrix, io.Writer) error{
		"text": (*matrix.Matrix).WriteText, "json": (*matrix.Matrix).WriteJSON, "html": (*matrix.Matrix).WriteHTML,
	}[opts.format]
	asked, err := parsePorts(opts.ports)
	if err != nil {
		return err
	}
	from, err := readInput(ctx, nil, opts.input)
	if err != nil {
		return err
	}
	m := matrix.New(from.snapshot, from.Pods, from.Policies, matrix.Options{Ports: asked, Namespaces: opts.namespaces})
	for _, n := range from.NotRead {
		m.NotRead = append(m.NotRead, n)
	}
	if m.LeftOut > 0 {
		fmt.Fprintf(e.stderr, "sluice: left out: %s (no status.podIPs, or those of its node)\n", count(m.LeftOut, "pod", "pods"))
	}
	switch {
	case len(m.Pods) == 0:
		return fmt.Errorf("there is no pod with an address in these manifests: add Pods with status.podIPs, as printed by kubectl get pods -A -o yaml")
	case len(m.Pods) > matrix.MaxPods:
		return fmt.Errorf("%d pods are too many for a matrix: select some with --namespace", len(m.Pods))
	}
	if err := write(m, e.stdout); err != nil {
		return fmt.Errorf("write the matrix: %w", err)
	}
	return from.report(e, "the matrix")
}

// parsePorts parses the values of --port.
func parsePorts(texts []string) ([]matrix.Port, error) {
	var ports []matrix.Port
	for _, text := range texts {
		number, proto, given := strings.Cut(text, "/")
		if !given {
			proto = "TCP"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		p, known := filter.ParseProtocol(proto)
		if err != nil || n == 0 || !known || !p.HasPorts() {
			return nil, fmt.Errorf("--port %s: give a number from 1 to 65535, followed by /udp or /sctp if it is not TCP", text)
		}
		port := matrix.NewPort(uint16(n), p)
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}
