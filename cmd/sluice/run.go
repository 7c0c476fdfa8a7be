package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"sluice/cache"
	"sluice/filter/queue"
	"sluice/filter/rules"
	"sluice/filter/verdictlog"
	"sluice/watch"
	"sluice/watch/folder"
	"sluice/watch/kube"
)

// onExit is what becomes of the rules when the agent ends.
type onExit string

const (
	keepAtExit   onExit = "keep"
	removeAtExit onExit = "remove"
)

// overflow is what becomes of packets that find their queue full.
type overflow string

const (
	dropPackets overflow = "drop"
	passPackets overflow = "pass"
)

type runOptions struct {
	manifests []string
	cluster   clusterOptions
	nodeName  string
	// startupTaint is the key of the taint to remove from the Node; empty if none.
	startupTaint string
	rules        rules.Options
	onExit       onExit

	podCIDRs       []netip.Prefix
	sysctlProblems sysctlProblems
	hold           time.Duration
	maxHeld        int

	policyMemory, policiesMemory int // MiB; 0 for no limit

	kernelCache kernelCache
	guard       guardMode
	// kernelUnattended is kernel.Options.Unattended.
	kernelUnattended time.Duration
	bpffs            string

	queueLen, copyRange, cacheSize int
	overflow                       overflow
	gso                            bool

	tendMemory  bool // the environment leaves the collector to us
	httpAddress string
	socket      string // of sluice status, and of agents that take over

	verdicts     verdictlog.Level
	verdictsRate int
	logFormat    string
	logLevel     slog.Level
}

func runCommand(e env) *cobra.Command {
	opts := runOptions{onExit: removeAtExit, overflow: dropPackets, verdicts: verdictlog.None, logFormat: "text"}
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
			if err := opts.rules.Validate(); err != nil {
				return err
			}
			if opts.kernelUnattended < 0 {
				return fmt.Errorf("--unattended %s: give a duration such as 10m, or 0 for no limit", opts.kernelUnattended)
			}
			if len(opts.manifests) > 0 && opts.cluster.given() {
				return fmt.Errorf("--manifests and --kubeconfig or --context name two worlds: give one of them")
			}
			if len(opts.manifests) > 0 && opts.startupTaint != "" {
				return fmt.Errorf("--startup-taint is removed from a Node, and with --manifests there is no cluster that has one: leave it out")
			}
			if slices.Contains(opts.manifests, "") {
				return fmt.Errorf("--manifests is empty: write a folder of manifests, or a single file")
			}
			if opts.nodeName == "" {
				opts.nodeName = nodeName(e)
			}
			opts.tendMemory = e.getenv("GOGC") == "" && e.getenv("GOMEMLIMIT") == ""
			return runAgent(cmd.Context(), opts, newLogger(e, opts))
		},
	}
	fs := cmd.Flags()
	fs.StringArrayVar(&opts.manifests, "manifests", nil, "`DIR` of manifests, or a single file, instead of a cluster (repeatable)")
	addClusterFlags(fs, &opts.cluster)
	fs.StringVar(&opts.nodeName, "node-name", "", "`NAME` of the Node that this is; $NODE_NAME, or else the host's name")
	fs.Var(newChoiceFlag(&opts.onExit, keepAtExit, removeAtExit), "on-exit", "what becomes of the rules at the end: keep or remove")
	addTaintFlags(fs, &opts)
	addRulesFlags(fs, &opts.rules)
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

func addHoldFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.hold, opts.maxHeld = queue.DefaultHold, queue.DefaultMaxHeld
	fs.Var((*prefixesFlag)(&opts.podCIDRs), "pod-cidrs", `the ranges of this node's pods, such as 10.1.2.0/24,fd00:1:2::/64: a packet from or to
an address there waits until its pod is known; if not given, those of its Node and
what follows from its routes`)
	fs.DurationVar(&opts.hold, "hold", opts.hold, "how long a packet waits at most for its pod to become known; then --fail decides")
	fs.Var(newNumberFlag(&opts.maxHeld, 0, 1<<20), "hold-max", "how many packets wait so at most. When all places are taken, the sender that has most gives way to others")
}

func addQueueFlags(fs *pflag.FlagSet, opts *runOptions) {
	opts.queueLen, opts.copyRange, opts.cacheSize, opts.gso = queue.DefaultMaxLen, queue.DefaultCopyRange, cache.DefaultSize, true
	fs.Var(newNumberFlag(&opts.queueLen, 1, 1<<20), "queue-len", "how many packets may wait in each queue")
	fs.Var(newNumberFlag(&opts.copyRange, 64, 65535), "copy-range", "how many bytes of a packet are read; IPv6 extension headers beyond are not understood")
	fs.Var(newChoiceFlag(&opts.overflow, dropPackets, passPackets), "queue-overflow", "what packets get that find their queue full: drop or pass (a flood then opens what policies close)")
	fs.BoolVar(&opts.gso, "queue-gso", opts.gso, "take packets that are not yet cut up to the size of the wire")
	fs.Var(newNumberFlag(&opts.cacheSize, 0, 1<<24), "cache-size", "how many flows each worker remembers; 0 turns the cache off")
}

func addLogFlags(fs *pflag.FlagSet, opts *runOptions) {
	fs.Var(newChoiceFlag(&opts.verdicts, verdictlog.None, verdictlog.Denied, verdictlog.All), "log-verdicts", "which verdicts to log: none, denied or all")
	opts.verdictsRate = verdictlog.DefaultRate
	fs.Var(newNumberFlag(&opts.verdictsRate, 0, 1<<20), "log-verdicts-rate", "how many verdicts to log a second; 0 for no limit")
	fs.Var(newChoiceFlag(&opts.logFormat, "text", "json"), "log-format", "text or json")
	fs.TextVar(&opts.logLevel, "log-level", slog.LevelInfo, "`LEVEL`: debug, info, warn or error")
}

func newLogger(e env, opts runOptions) *slog.Logger {
	o := &slog.HandlerOptions{Level: opts.logLevel, ReplaceAttr: worded}
	if opts.logFormat == "json" {
		return slog.New(slog.NewJSONHandler(e.stderr, o))
	}
	return slog.New(slog.NewTextHandler(e.stderr, o))
}

// nodeName is what this node is probably called in the cluster.
func nodeName(e env) string {
	if name := e.getenv("NODE_NAME"); name != "" {
		return name
	}
	name, _ := os.Hostname() // without one, it has to be given
	return strings.ToLower(name)
}

// runAgent builds the agent from its parts and runs it.
func runAgent(ctx context.Context, opts runOptions, log *slog.Logger) error {
	klog.SetSlogLogger(log)
	a, err := newAgent(ctx, opts, log)
	if err != nil {
		return err
	}
	defer a.close()
	source, err := a.source()
	if err != nil {
		return err
	}
	if err := a.run(ctx, source); err != nil {
		return fmt.Errorf("run the agent: %w", err)
	}
	return nil
}

// source is where the agent learns of pods and policies.
func (a *agent) source() (watch.Source, error) {
	if len(a.opts.manifests) > 0 {
		return folder.Source{
			Dirs: a.opts.manifests, Logger: a.log,
			OnProblems: func(p []folder.Problem) { a.manifests.Store(&p) },
			OnNotRead:  func(n []folder.NotRead) { a.notRead.Store(&n) },
		}, nil
	}
	config, err := a.opts.cluster.config()
	if err != nil {
		return nil, fmt.Errorf("%w; or give --manifests DIR to do without a cluster", err)
	}
	ranges := &a.ranges
	if len(a.opts.podCIDRs) > 0 {
		ranges = nil // those that were given hold
	}
	return kube.New(config, kube.Options{NodeName: a.opts.nodeName, Ranges: ranges, StartupTaint: a.startupTaint(), Logger: a.log})
}
