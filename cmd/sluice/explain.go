package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"sluice/filter"
	"sluice/filter/policy/explain"
	"sluice/watch/manifests"
)

type explainOptions struct {
	input
	node      []string
	format    string
	question  explain.Question
	flows     string
	quiet     bool
	deniedIs1 bool
}

func explainCommand(e env) *cobra.Command {
	opts := explainOptions{format: "text"}
	cmd := &cobra.Command{
		Use:   "explain -f DIR --from END --to END --port PORT",
		Short: "Explain whether a flow is allowed, and why",
		Long: `Explain prints whether a flow is allowed, by the same decision that judges packets,
and why: for each direction, the policies that isolate the pod, and the rule that allows
the flow, or the rules that come nearest and what each of them lacks.

Then it prints a change that would allow the flow, to the policy that selects the fewest
pods, or a new policy. It also lists everything else that the change would allow: it
applies the change to a copy of the objects and compares. "This opens nothing else" means
that no other flow becomes allowed.

If ClusterNetworkPolicies are for a pod, explain prints what each tier did, in their
order: Admin, NetworkPolicy, Baseline. It names these policies with their tier, as in
admin/platform. The change that it prints is for the tier that denies the flow.

If the sender of a denied packet gets an answer, the line "rejected:" names it: a TCP reset
or an ICMP error. In JSON, "answer" is then "reject". Without it, the packet is dropped.
Policies and namespaces set this with the annotation sluice/deny-with; explain does not
know --deny-with of the node. If one of the policies that isolate the pod says drop and
another reject, drop prevails, and a note names them.

An end is written as people name it; a name without a namespace is in that of -n:

  web, shop/web, deploy/web     a pod, or the pods of a workload
  app=web, shop/app=web         pods by their labels, as for kubectl get -l; */app=web in
                                every namespace; ns/shop has all pods of a namespace
  svc/db, db.shop.svc:5432      a Service or its cluster IP; only --to. The answer is for
                                what is behind it, at the target port
  ingress/web, httproute/web,   a route, or the routes of a Gateway; only --to. The answer is
  gateway/edge                  for what sends to the pods behind it; leave out --from
  shop.example.com, https://…   the routes of a host name, or of a URL with its path
  203.0.113.9, 10.0.0.0/8       an address, or every address of a range
  world                         every address outside the cluster
  node/n1                       a node

If policies tell the pods or addresses of an end apart, each answer is printed, denials
first. A workload in Git has no pods, and so no address: if the answer depends on it, the
verdict is "depends", and the ranges that matter follow. --pod-cidr gives the ranges.

What arrives at an Ingress or a Gateway is sent to the pods by those of its controller, so
policies see these and not the client. They are known by the labels of the Gateway API, by
the Service whose address is in the status, by the labels of the class, or by those that
are usual for the controller; the answer says which. If they are not known, give them as
--from. Of a Service of type LoadBalancer or NodePort, the client is world.

In the text, rules are numbered from 1. In JSON, "index" counts from 0, as in the field
spec.ingress[0].

With --flows it answers many flows, one JSON object per line, in order and as they
arrive:

  {"from": "default/web", "to": "default/db", "port": 6379, "protocol": "TCP"}

The port may be a name, and the protocol is TCP if there is none. A line may also be one
that an agent has written: by "sluice observe -o json", "hubble observe -o json", Hubble's
exporter, or in the JSON log of Sluice's agent. The file may be compressed with gzip, or be
the array of "sluice denied -o json". So recorded flows can be tried with other policies, and
an answer that differs has what was "logged". With -o json each answer is a line with
"verdict" (allow, deny or depends), "reason", and the policies and rules of "egress" and
"ingress". A flow that cannot be answered gets a line with "error". If the address families
differ, the answer is that of the denied one, and "families" has both.

In JSON, a rule has its tier, name and action (accept, deny or pass). If a rule of the tier
Admin passes the flow on, it is "passed". For one flow, "tiers" has what each tier did:
accept, deny, pass, no-match or not-evaluated.

The exit status is 0 if every flow was answered, allowed or denied, and 2 if one was not,
or if parts of the manifests cannot be understood. With --exit-code or --quiet it is 1
unless all flows are allowed. Objects of other kinds that may change what is allowed, such
as policies of Calico or Cilium, are named ("not read") and change neither answer nor
status.`,
		Example: `  sluice explain -f ./policies --from default/web --to default/db --port 6379
  sluice explain -f ./deploy -n shop --from deploy/web --to svc/db --port 5432
  sluice explain -f ./policies --from world --to db --port redis -o json
  sluice explain -f ./policies --from db --to 2001:db8::53 --port 53/udp
  sluice explain -f ./policies --quiet --from web --to db --port 6379 && echo allowed
  sluice explain -f ./deploy --to https://shop.example.com/cart
  sluice explain -f ./policies --flows flows.jsonl -o json
  sluice explain --context production --from web --to db --port 6379`,
		Args: noArgs,
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
	addInputFlags(cmd, &opts.input)
	addNamespaceFlag(cmd, &opts.input)
	flags.StringVar(&opts.question.From, "from", "", "`END` that opens the connection: a pod, a workload, labels, an address, world")
	flags.StringVar(&opts.question.To, "to", "", "`END` that it goes to: as --from, or a Service")
	flags.StringVarP(&opts.question.Port, "port", "p", "", "`PORT` of the destination: a number, or the name of a port of its pod; 53/udp for another protocol")
	flags.StringVar(&opts.question.Protocol, "protocol", "", "`PROTOCOL`: tcp (the default), udp, sctp or icmp (which has no port)")
	flags.StringVar(&opts.flows, "flows", "", "`FILE` with a flow as a JSON object on each line; - for stdin")
	flags.StringSliceVar(&opts.node, "node-ip", nil, "`ADDRESS` of the node of the pods: its traffic always passes (repeatable)")
	flags.BoolVar(&opts.deniedIs1, "exit-code", false, "exit with status 1 unless all flows are allowed")
	flags.BoolVarP(&opts.quiet, "quiet", "q", false, "print no answer; implies --exit-code")
	flags.VarP(newChoiceFlag(&opts.format, "text", "json"), "output", "o", "text or json")
	return cmd
}

func runExplain(ctx context.Context, e env, opts explainOptions) error {
	node, err := parseAddrs("--node-ip", opts.node)
	if err != nil {
		return err
	}
	if err := opts.alsoStdin("--flows", opts.flows); err != nil {
		return err
	}
	opts.mention(opts.question.From, opts.question.To)
	m, err := readInput(ctx, e, node, &opts.input)
	if err != nil {
		return err
	}
	opts.question.Namespace = m.namespace
	shown := e
	if opts.quiet {
		shown.stdout = io.Discard
	}
	var allowed bool
	if opts.flows != "" {
		allowed, err = explainFlows(shown, m.cluster(), opts)
	} else {
		allowed, err = explainOne(shown.stdout, m, opts)
	}
	if incomplete := m.report(e, "the answer"); err == nil {
		err = incomplete
	}
	if err == nil && !allowed && (opts.quiet || opts.deniedIs1) {
		return exitError{status: exitFindings}
	}
	return err
}

// explainOne explains the flows that the flags describe, and reports whether all are allowed.
func explainOne(out io.Writer, m *compiled, opts explainOptions) (allowed bool, err error) {
	all, err := m.cluster().ExplainAll(opts.question)
	if err != nil {
		return false, err // not wrapped, because the error begins with the name of the flag
	}
	answer := explain.NewAnswer(opts.question, all)
	if opts.format == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		err = enc.Encode(struct {
			explain.Answer
			NotRead []manifests.NotRead `json:"notRead,omitempty"`
		}{answer, m.NotRead})
	} else {
		_, err = io.WriteString(out, explain.Text(all))
	}
	if err != nil {
		return false, fmt.Errorf("write the explanation: %w", err)
	}
	return answer.Verdict == filter.Allow.String(), nil
}
