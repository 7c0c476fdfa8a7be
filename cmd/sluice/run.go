package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/klog/v2"

	"sluice/cmd/sluice/agent"
	"sluice/filter/policy"
	"sluice/filter/verdictlog"
)

func runCommand(e env) *cobra.Command {
	opts := runOptions{
		Options:   agent.Options{OnExit: agent.RemoveRules, Overflow: agent.DropPackets, Verdicts: verdictlog.None},
		logFormat: "text",
	}
	cmd := &cobra.Command{
		Use:   "run [--manifests DIR]",
		Short: "Enforce the policies on this node",
		Long: `Run enforces the NetworkPolicies on the pods of this node, until it is ended
(Ctrl-C, SIGTERM).

It follows the Kubernetes API: in a pod by its service account, elsewhere as
--kubeconfig says. --node-name names the Node that it runs on, whose pod ranges it
needs to know pods that start from addresses outside the cluster.

With --manifests it needs no cluster: it takes Namespaces, Pods (with status.podIPs)
and NetworkPolicies from the YAML and JSON files of a folder and follows them: save a
file, and the next connection is judged by it, and so are the live ones. Of a file
that breaks, the last good state stays in force. Of an object that is in two folders
or files the first counts, in the order of the flags.

It keeps rules in the iptables of this network namespace (sluice rules prints them).
They bring the first packet of each new pod connection here; the rest of the
connection stays in the kernel. With --kernel-cache, so does the first packet of
what was judged before, and of what no policy concerns.

When it ends, --on-exit says what becomes of the rules: remove them, and everything
is open; or keep them, and judged connections go on, also new ones for which the
kernel remembers the verdict or that there is no policy, while all others get what
--fail says. --fail also holds if the agent is killed or crashes.`,
		Example: `  sluice run --manifests ./policies
  sluice run --manifests ./policies --log-verdicts denied
  sluice run --kubeconfig /etc/kubernetes/agent.conf --node-name node-1 --on-exit keep`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := opts.Rules.Validate(); err != nil {
				return err
			}
			if opts.Unattended < 0 {
				return fmt.Errorf("--unattended %s: give a duration such as 10m, or 0 for no limit", opts.Unattended)
			}
			if len(opts.Manifests) > 0 && opts.cluster.given() {
				return fmt.Errorf("--manifests and --kubeconfig or --context name two worlds: give one of them")
			}
			if len(opts.Manifests) > 0 && opts.StartupTaint != "" {
				return fmt.Errorf("--startup-taint is removed from a Node, and with --manifests there is no cluster that has one: leave it out")
			}
			if slices.Contains(opts.Manifests, "") {
				return fmt.Errorf("--manifests is empty: write a folder of manifests, or a single file")
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
	fs.StringVar(&opts.NodeName, "node-name", "", "`NAME` of the Node that this is; $NODE_NAME, or else the host's name")
	fs.Var(newChoiceFlag(&opts.OnExit, agent.KeepRules, agent.RemoveRules), "on-exit", "what becomes of the rules at the end: keep or remove")
	addTaintFlags(fs, &opts)
	addRulesFlags(fs, &opts.Rules)
	addHoldFlags(fs, &opts)
	addLimitFlags(fs, &opts)
	addNetworkFlags(fs, &opts)
	addQueueFlags(fs, &opts)
	addKernelFlags(fs, &opts)
	addGuardFlag(fs, &opts)
	addServeFlags(fs, &opts)
	addLogFlags(fs, &opts)
	return cmd
}

func newLogger(e env, opts runOptions) *slog.Logger {
	o := &slog.HandlerOptions{Level: opts.logLevel, ReplaceAttr: worded}
	if opts.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(e.stderr, o))
	}
	return slog.New(slog.NewTextHandler(e.stderr, o))
}

// worded leaves attributes out of a log line that are empty, such as the field of a
// problem that concerns a whole file. An error without a text is named by its type,
// since that there was one must not be lost.
func worded(_ []string, a slog.Attr) slog.Attr {
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

// runOptions are those of the agent, and those that the command reads itself.
type runOptions struct {
	agent.Options
	cluster                      clusterOptions
	policyMemory, policiesMemory int // MiB; 0 for no limit
	logFormat                    string
	logLevel                     slog.Level
}

// nodeName is what this node is probably called in the cluster.
func nodeName(e env) string {
	if name := e.getenv("NODE_NAME"); name != "" {
		return name
	}
	name, _ := os.Hostname() // without one, it has to be given
	return strings.ToLower(name)
}

// runAgent reads where the cluster is, if one is to be followed, and runs the agent.
func runAgent(ctx context.Context, opts runOptions, log *slog.Logger) error {
	klog.SetSlogLogger(log)
	opts.Version, opts.Limits = version(), opts.limits()
	if len(opts.Manifests) == 0 {
		var err error
		if opts.Cluster, err = opts.cluster.config(); err != nil {
			return fmt.Errorf("%w; or give --manifests DIR to do without a cluster", err)
		}
	}
	return agent.Run(ctx, opts.Options, log)
}

// limits are what policies may take.
func (o *runOptions) limits() policy.Limits {
	return policy.Limits{Policy: int64(o.policyMemory) << 20, Policies: int64(o.policiesMemory) << 20}
}
