package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sluice/filter/policy/explain"
	"sluice/watch/manifests"
)

type explainOptions struct {
	input
	format   string
	question explain.Question
	flows    string
	node     []string
}

func explainCommand(e env) *cobra.Command {
	opts := explainOptions{format: "text"}
	cmd := &cobra.Command{
		Use:   "explain -f DIR --from POD --to POD --port PORT",
		Short: "Explain whether a flow is allowed, and why",
		Long: `Explain prints whether a flow is allowed, by the same decision that judges packets,
and why: for each direction, the policies that isolate the pod, and the rule that allows
the flow, or the rules that come nearest and what each of them lacks. Then it prints what
would allow the flow.

If ClusterNetworkPolicies are for a pod, explain prints what each tier did, in their
order: Admin, NetworkPolicy, Baseline. It names these policies with their tier, as in
admin/platform. The change that it prints is for the tier that denies the flow.

If the sender of a denied packet gets an answer, the line "rejected:" names it: a TCP reset
or an ICMP error. In JSON, "answer" is then "reject". Without it, the packet is dropped.
Policies and namespaces set this with the annotation sluice/deny-with; explain does not
know --deny-with of the node. If one of the policies that isolate the pod says drop and
another reject, drop prevails, and a note names them.

A pod is written namespace/name, or name in namespace default; either end may be an
IP address instead. A pod with two address families is explained for both.

The address of a Service in the manifests never reaches a decision. Explain answers for
each endpoint behind it, from its EndpointSlices or the pods that it selects.

In the text, rules are numbered from 1. In JSON, "index" counts from 0, as in the field
spec.ingress[0].

With --flows it answers many flows, one JSON object per line, in order and as they
arrive:

  {"from": "default/web", "to": "default/db", "port": 6379, "protocol": "TCP"}

The port may be a name, and the protocol is TCP if there is none. With -o json each
answer is a line with "verdict" (allow or deny), "reason", and the policies and rules
of "egress" and "ingress". A flow that cannot be answered gets a line with "error".
If the address families differ, the answer is that of the denied one, and "families" has
both.

In JSON, a rule has its tier, name and action (accept, deny or pass). If a rule of the tier
Admin passes the flow on, it is "passed". For one flow, "tiers" has what each tier did:
accept, deny, pass, no-match or not-evaluated.

The exit status is 0 if every flow was answered, allowed or denied, and 2 if one was not,
or if parts of the manifests cannot be understood. Objects of other kinds that may
change what is allowed, such as policies of Calico or Cilium, are named ("not read")
and change neither answer nor status.`,
		Example: `  sluice explain -f ./policies --from default/web --to default/db --port 6379
  sluice explain -f ./policies --from 203.0.113.9 --to db --port redis -o json
  sluice explain -f ./policies --from db --to 2001:db8::53 --port 53 --protocol udp
  sluice explain -f ./policies --flows flows.jsonl -o json
  sluice explain --context production --from web --to db --port 6379`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("flows") {
				for _, other := range []string{"from", "to", "port", "protocol"} {
					if cmd.Flags().Changed(other) {
						return fmt.Errorf("--%s is for one flow and --flows for many: give one of them", other)
					}
				}
			}
			return runExplain(cmd.Context(), e, opts)
		},
	}
	flags := cmd.Flags()
	addInputFlags(flags, &opts.input)
	flags.StringVar(&opts.question.From, "from", "", "`POD` or IP address that opens the connection")
	flags.StringVar(&opts.question.To, "to", "", "`POD` or IP address that it goes to")
	flags.StringVarP(&opts.question.Port, "port", "p", "", "`PORT` of the destination: a number, or the name of a port of its pod")
	flags.StringVar(&opts.question.Protocol, "protocol", "tcp", "`PROTOCOL`: tcp, udp, sctp or icmp (which has no port)")
	flags.StringVar(&opts.flows, "flows", "", "`FILE` with a flow as a JSON object on each line; - for stdin")
	flags.StringSliceVar(&opts.node, "node-ip", nil, "`ADDRESS` of the node of the pods: its traffic always passes (repeatable)")
	flags.VarP(newChoiceFlag(&opts.format, "text", "json"), "output", "o", "text or json")
	return cmd
}

func runExplain(ctx context.Context, e env, opts explainOptions) error {
	node, err := parseAddrs("--node-ip", opts.node)
	if err != nil {
		return err
	}
	m, err := readInput(ctx, node, opts.input)
	if err != nil {
		return err
	}
	if opts.flows != "" {
		err = explainFlows(e, m.cluster(), opts)
	} else {
		err = explainOne(e.stdout, m, opts)
	}
	if incomplete := m.report(e, "the answer"); err == nil {
		err = incomplete
	}
	return err
}

// explainOne explains the flow that the flags describe.
func explainOne(out io.Writer, m *compiled, opts explainOptions) error {
	c := m.cluster()
	flows, err := c.Flows(opts.question)
	if err != nil {
		return err // not wrapped: the error begins with the name of the flag
	}
	var all []explain.Explanation
	for _, f := range flows {
		all = append(all, c.Explain(f))
	}
	if opts.format == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		err = enc.Encode(struct {
			explain.Answer
			NotRead []manifests.NotRead `json:"notRead,omitempty"`
		}{explain.NewAnswer(all), m.NotRead})
	} else {
		_, err = io.WriteString(out, explain.Text(all))
	}
	if err != nil {
		return fmt.Errorf("write the explanation: %w", err)
	}
	return nil
}
