package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"sluice/filter"
	"sluice/filter/policy/matrix"
)

type matrixOptions struct {
	input
	format   string
	by       matrix.By
	ports    []string
	from, to []string // namespaces of --from-namespace and --to-namespace
	open     bool
	flows    []string // files of --flows
}

func matrixCommand(e env) *cobra.Command {
	opts := matrixOptions{format: "text", by: matrix.ByWorkload}
	cmd := &cobra.Command{
		Use:   "matrix -f DIR",
		Short: "Show who can reach whom, on which ports",
		Long: `Matrix shows which workloads, nodes and addresses outside the cluster can reach which
others, on which ports, by the same decision that judges packets.

Rows send and columns receive: workloads and pods that no workload has made (--by namespace
or --by pod: fewer or more of them), pods of the host network, nodes, and the addresses
outside the cluster, divided where ipBlocks divide them. "world" is all other addresses.
Pods of a workload that policies can tell apart are rows of their own. A cell is blank
if no policy decides, as between two nodes.

In the text table, a cell lists the open ports: "all", "-" for none, or a list, in which
TCP is the default protocol; "=" before it marks least privilege: only ports that the
containers of the destination declare are open. With --open, there is a line for each
pair of which something is open. With --port, it is only about those ports.

What is reached from outside the cluster by an Ingress, a route of the Gateway API, or a
Service of type LoadBalancer or NodePort is listed, with whether policies let it in; see
"sluice explain --help" for how the senders are known.

With -n pci there are two tables: what can get into pci, and where it can get out to.
--from-namespace and --to-namespace limit one side.

With --flows, what agents have seen is laid over it: which open pairs were used (+) and which
never were, and which closed ones were tried (!). FILE has the output of "sluice observe -o
json", "sluice denied -o json" or "hubble observe -o json", files of Hubble's exporter, or the
agent's log in JSON; it may be compressed with gzip. Connections that changed policies have
closed do not count as tried. Flows are found by the names of pods and workloads, then by
labels, and others by addresses; what is not found is counted and named. Replies do not
count. Ports whose last flow got another verdict than these policies have are listed: the
flows may be from another version of them. "Never used" means only: not in these flows.

The HTML page is a single file that needs no network; point at a cell for the reasons, or
move to it with the arrow keys. Namespaces open to workloads, and workloads to pods that
differ. The address of the page keeps the filters, the place and the cell, for links.
JSON, CSV and HTML have the reasons. They name the tier and the rule of a
ClusterNetworkPolicy, as in: denied by admin/platform rule 2 "sandbox". dot is for
Graphviz.

Objects of other kinds that may change what is allowed, such as policies of Calico or
Cilium, are listed ("not read"). The exit status is 2 if parts of the manifests cannot
be understood.`,
		Example: `  sluice matrix -f ./policies
  sluice matrix -f ./policies -n pci --open
  sluice matrix -f ./policies --by namespace --port 6379 --port 53/udp
  sluice matrix -f ./policies --from-namespace shop --to-namespace pci -o csv
  sluice matrix -f ./policies -o html > matrix.html
  sluice matrix --flows flows.jsonl --open
  hubble observe -o json --last 10000 | sluice matrix -f ./policies --flows - -o html > seen.html`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runMatrix(cmd.Context(), e, opts) },
	}
	flags := cmd.Flags()
	addInputFlags(cmd, &opts.input)
	addScopeFlags(cmd, &opts.input)
	flags.Lookup("namespace").Usage = "only flows from or to this `NAMESPACE` (repeatable, or a list with commas); for a cluster, the default is the context's"
	flags.VarP(newChoiceFlag(&opts.format, "text", "json", "csv", "dot", "markdown", "md", "html"), "output", "o", "text, json, csv, dot, markdown (md) or html")
	flags.Var(newChoiceFlag(&opts.by, matrix.ByNamespace, matrix.ByWorkload, matrix.ByPod), "by", "what rows and columns are: namespace, workload or pod")
	flags.StringSliceVarP(&opts.ports, "port", "p", nil, "only this `PORT`, such as 80 or 53/udp (repeatable)")
	flags.StringSliceVar(&opts.from, "from-namespace", nil, "only flows from this `NAMESPACE` (repeatable)")
	flags.StringSliceVar(&opts.to, "to-namespace", nil, "only flows to this `NAMESPACE` (repeatable)")
	flags.StringArrayVar(&opts.flows, "flows", nil, "`FILE` with flows of an agent, to lay over the matrix; - for stdin (repeatable)")
	flags.BoolVar(&opts.open, "open", false, "only pairs of which something is open; in text, one a line")
	return cmd
}

func runMatrix(ctx context.Context, e env, opts matrixOptions) error {
	asked, err := parsePorts(opts.ports)
	if err != nil {
		return err
	}
	if err := opts.checkFlows(); err != nil {
		return err
	}
	from, err := opts.readMatrix(ctx, e)
	if err != nil {
		return err
	}
	m := matrix.New(from.inventory, matrix.Options{By: opts.by, Ports: asked, Namespaces: from.scope, From: opts.from, To: opts.to, OnlyOpen: opts.open})
	for _, n := range from.NotRead {
		m.NotRead = append(m.NotRead, n)
	}
	if m.Date = time.Now(); opts.format != "text" {
		if m.Inputs, err = from.digest(); err != nil {
			return err
		}
	}
	sayLeftOut(e, m.LeftOut)
	switch {
	case len(from.inventory.AllPods()) == 0:
		return errors.New("there are no pods or workloads in these manifests: add workloads such as Deployments, or Pods, as printed by kubectl get pods -A -o yaml")
	case m.Size() > matrix.MaxCells:
		return fmt.Errorf("%d rows and %d columns are too many for a matrix: give --by namespace, or select some with -n", len(m.From), len(m.To))
	}
	if err := layFlows(e, m, opts.flows); err != nil {
		return err
	}
	if err := writeMatrix(e.stdout, m, opts.format); err != nil {
		return fmt.Errorf("write the matrix: %w", err)
	}
	return from.report(e, "the matrix")
}

func writeMatrix(out io.Writer, m *matrix.Matrix, format string) error {
	return map[string]func(io.Writer) error{
		"text": m.WriteText, "json": m.WriteJSON, "csv": m.WriteCSV, "dot": m.WriteDot, "markdown": m.WriteMarkdown, "md": m.WriteMarkdown, "html": m.WriteHTML,
	}[format](out)
}

// readMatrix reads the objects, and checks that the namespaces of the question exist.
func (o *matrixOptions) readMatrix(ctx context.Context, e env) (*compiled, error) {
	given := slices.Concat(o.from, o.to)
	for _, namespace := range given {
		if namespace == "" {
			return nil, errors.New("--from-namespace or --to-namespace is empty: give the name of a namespace")
		}
		o.mention("ns/" + namespace)
	}
	if len(given) > 0 && len(o.namespaces) == 0 {
		o.allNamespaces = true // the flags already limit the answer, so the namespace of the context must not
	}
	from, err := readInput(ctx, e, nil, &o.input)
	if err != nil {
		return nil, err
	}
	named := from.loaded
	named.scope = given
	return from, cmp.Or(named.readIn(given), named.scopeExists())
}

// maxLeftOut bounds the lines about pods that are left out. JSON and pages list all of them.
const maxLeftOut = 5

func sayLeftOut(e env, list []matrix.LeftOut) {
	for i, l := range list {
		if i == maxLeftOut {
			e.say("left out: %s more", count(len(list)-i, "pod", "pods"))
			return
		}
		e.say("left out: %s: %s", l.Pod, l.Why)
	}
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
