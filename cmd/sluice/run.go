//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"sluice/cmd/sluice/agent"
	"sluice/cmd/sluice/agent/hubble"
	"sluice/filter"
	"sluice/filter/policy"
)

func runCommand(e env) *cobra.Command {
	opts := runOptions{
		Options:   agent.Options{OnExit: agent.RemoveRules, Overflow: agent.DropPackets, Verdicts: filter.LogNone},
		logFormat: "text",
	}
	cmd := &cobra.Command{
		Use:   "run [--manifests DIR]",
		Short: "Enforce the policies on this node",
		Long: `Run enforces NetworkPolicies and ClusterNetworkPolicies on the pods of this node until
it is stopped (Ctrl-C, SIGTERM).

It follows the Kubernetes API: in a pod with its service account, elsewhere with
--kubeconfig. --node-name is the Node that it runs on. The agent uses the pod ranges of
this Node to distinguish new pods from addresses outside of the cluster.

With --manifests it needs no cluster: it reads Namespaces, Pods (with status.podIPs),
Nodes, NetworkPolicies and ClusterNetworkPolicies from the YAML and JSON files of a
directory, and follows them. When a file is saved, it applies at once to new and to live
connections. If a file becomes invalid, the agent keeps using its last valid content. If
an object is in two directories or files, the first one counts, in the order of the flags.

It keeps rules in the iptables of this network namespace (sluice rules prints them).
They send the first packet of each new pod connection to the agent; the rest of the
connection stays in the kernel. With --kernel-cache, the first packet also stays there
if its flow was judged before, or if no policy concerns it.

--on-exit decides whether the rules are removed when the agent ends. Without them,
everything passes. If they are kept, allowed connections continue. The kernel still
answers new connections whose verdict it remembers, and those that no policy concerns;
--fail decides about all others. If the agent crashes or is killed, the rules are kept.`,
		Example: `  sluice run --manifests ./policies
  sluice run --manifests ./policies --log-verdicts denied
  sluice run --kubeconfig /etc/kubernetes/agent.conf --node-name node-1 --on-exit keep`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.Rules.Validate(); err != nil {
				return err
			}
			if opts.Socket != "" && !cmd.Flags().Changed("hubble-socket") {
				opts.Hubble.Socket = filepath.Join(filepath.Dir(opts.Socket), hubble.SocketName)
			}
			if err := opts.Hubble.Check(); err != nil {
				return err
			}
			if opts.Unattended < 0 {
				return fmt.Errorf("--unattended %s: give a duration such as 10m, or 0 for no limit", opts.Unattended)
			}
			if len(opts.Manifests) > 0 && opts.cluster.given() {
				return fmt.Errorf("--manifests cannot be combined with --kubeconfig or --context: give only one source")
			}
			if len(opts.Manifests) > 0 && opts.StartupTaint != "" {
				return fmt.Errorf("--startup-taint is the taint of a Node, and with --manifests there is no Node: leave it out")
			}
			if slices.Contains(opts.Manifests, "") {
				return fmt.Errorf("--manifests is empty: give a directory of manifests, or a single file")
			}
			for _, path := range opts.Manifests { // check the files before changing anything on the node
				if _, err := os.Stat(path); err != nil {
					return fmt.Errorf("follow manifests: %w: give an existing directory, or a single file", err)
				}
			}
			if opts.NodeName == "" {
				opts.NodeName = nodeName(e)
			}
			opts.TuneMemory = e.getenv("GOGC") == "" && e.getenv("GOMEMLIMIT") == ""
			return runAgent(cmd.Context(), opts, newLogger(e, opts))
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&opts.Manifests, "manifests", nil, "`DIR` of manifests, or a single file, instead of a cluster (repeatable)")
	addClusterFlags(fs, &opts.cluster)
	fs.StringVar(&opts.NodeName, "node-name", "", "`NAME` of this Node; the default is $NODE_NAME, otherwise the name of the host")
	fs.Var(newChoiceFlag(&opts.OnExit, agent.KeepRules, agent.RemoveRules), "on-exit", "what happens to the rules at the end: keep or remove")
	addTaintFlags(fs, &opts)
	addRulesFlags(fs, &opts.Rules)
	addDenyWithFlag(fs, &opts.Denial, `how packets are denied, unless the annotation sluice/deny-with of the policy or its
namespace says otherwise: drop, or reject (TCP gets a reset, all else an ICMP error)`)
	addHoldFlags(fs, &opts)
	addLimitFlags(fs, &opts)
	addNetworkFlags(fs, &opts)
	addQueueFlags(fs, &opts)
	addKernelFlags(fs, &opts)
	addGuardFlag(fs, &opts)
	addServeFlags(fs, &opts)
	addHubbleFlags(fs, &opts)
	addLogFlags(fs, &opts)
	return cmd
}

func newLogger(e env, opts runOptions) *slog.Logger {
	o := &slog.HandlerOptions{Level: opts.logLevel, ReplaceAttr: omitEmpty}
	if opts.logFormat == "json" {
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr { return withUnit(omitEmpty(groups, a)) }
		return slog.New(slog.NewJSONHandler(e.stderr, o))
	}
	return slog.New(slog.NewTextHandler(e.stderr, o))
}

// omitEmpty removes empty attributes from a log line, such as the field of a problem that
// concerns a whole file. It replaces an error without a text with the error's type, so that
// the error is not lost.
func omitEmpty(_ []string, a slog.Attr) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		if a.Value.String() == "" {
			return slog.Attr{}
		}
	case slog.KindAny:
		if err, is := a.Value.Any().(error); is && err.Error() == "" {
			return slog.String(a.Key, fmt.Sprintf("an error of type %T without a text", err))
		}
	default:
	}
	return a
}

// withUnit writes a duration in milliseconds, with the unit in its key, as in "wait_ms". Without it,
// slog writes nanoseconds in JSON, without a unit.
func withUnit(a slog.Attr) slog.Attr {
	if a.Value.Kind() != slog.KindDuration {
		return a
	}
	return slog.Float64(a.Key+"_ms", float64(a.Value.Duration())/float64(time.Millisecond))
}

// runOptions are the options of the agent, and options that only the command uses.
type runOptions struct {
	agent.Options
	cluster                      clusterOptions
	policyMemory, policiesMemory int // limits in MiB; 0 means no limit
	logFormat                    string
	logLevel                     slog.Level
}

// nodeName returns the probable name of this node in the cluster.
func nodeName(e env) string {
	if name := e.getenv("NODE_NAME"); name != "" {
		return name
	}
	name, _ := os.Hostname() // if the name is empty, the user must give --node-name
	return strings.ToLower(name)
}

// runAgent runs the agent. Without manifests, it first reads how to connect to the API server.
func runAgent(ctx context.Context, opts runOptions, log *slog.Logger) error {
	klog.SetSlogLogger(log)
	opts.Version, opts.Limits = version(), opts.limits()
	if len(opts.Manifests) == 0 {
		var err error
		if opts.Cluster, err = opts.cluster.config(); err != nil {
			return fmt.Errorf("%w; or give --manifests DIR to run without a cluster", err)
		}
	}
	return agent.Run(ctx, opts.Options, log)
}

// limits returns the memory limits of policies, in bytes.
func (o *runOptions) limits() policy.Limits {
	return policy.Limits{Policy: int64(o.policyMemory) << 20, Policies: int64(o.policiesMemory) << 20}
}
