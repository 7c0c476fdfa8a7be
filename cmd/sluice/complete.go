package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sluice/filter/policy/inventory"
	"sluice/watch/kube"
	"sluice/watch/manifests"
)

// completionTimeout bounds the wait for a cluster while a shell completes a command line.
const completionTimeout = 2 * time.Second

var errCompletion = fmt.Errorf("the API server has not answered within %v", completionTimeout)

// pluginScript is the program kubectl_complete-sluice. kubectl runs it to complete the arguments of
// "kubectl sluice".
const pluginScript = "#!/bin/sh\nexec kubectl-sluice __complete \"$@\"\n"

func completionCommand(e env) *cobra.Command {
	scripts := map[string]func(*cobra.Command, io.Writer) error{
		"bash":       func(root *cobra.Command, out io.Writer) error { return root.GenBashCompletionV2(out, true) },
		"zsh":        (*cobra.Command).GenZshCompletion,
		"fish":       func(root *cobra.Command, out io.Writer) error { return root.GenFishCompletion(out, true) },
		"powershell": (*cobra.Command).GenPowerShellCompletionWithDesc,
		"kubectl": func(_ *cobra.Command, out io.Writer) error {
			_, err := io.WriteString(out, pluginScript)
			return err
		},
	}
	shells := []string{"bash", "zsh", "fish", "powershell", "kubectl"}
	return &cobra.Command{
		Use:   "completion " + strings.Join(shells, "|"),
		Short: "Print a script that completes command lines in a shell",
		Long: `Completion prints a script with which a shell completes sluice's command lines: commands,
flags and their values, contexts, namespaces, and the names of pods, workloads and Services
in the given manifests or the cluster.

For "kubectl sluice", the script for kubectl must be an executable kubectl_complete-sluice in
the PATH.`,
		Example: `  sluice completion bash > ~/.local/share/bash-completion/completions/sluice
  sluice completion zsh > ~/.zsh/functions/_sluice
  sluice completion fish > ~/.config/fish/completions/sluice.fish
  sluice completion kubectl > ~/bin/kubectl_complete-sluice`,
		ValidArgs: shells,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || scripts[args[0]] == nil {
				return fmt.Errorf("give one of %s", strings.Join(shells, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := scripts[args[0]](cmd.Root(), e.stdout); err != nil {
				return fmt.Errorf("write the script: %w", err)
			}
			return nil
		},
	}
}

// completeFlags registers completions for the values of the flags of a command and of its subcommands.
func completeFlags(cmd *cobra.Command) {
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
		if complete := completionOf(f); complete != nil {
			_ = cmd.RegisterFlagCompletionFunc(f.Name, complete) // fails only if a completion is already registered
		}
	})
	if cmd.ValidArgsFunction == nil && len(cmd.ValidArgs) == 0 && !cmd.HasSubCommands() && cmd.Args != nil && cmd.Args(cmd, []string{"x"}) != nil {
		cmd.ValidArgsFunction = cobra.NoFileCompletions
	}
	for _, sub := range cmd.Commands() {
		completeFlags(sub)
	}
}

// completionOf returns the function that completes the values of a flag. It returns nil if the values
// are files, which shells complete themselves.
func completionOf(f *pflag.Flag) cobra.CompletionFunc {
	if words := strings.Split(f.Value.Type(), "|"); len(words) > 1 {
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	switch f.Name {
	case "protocol":
		return cobra.FixedCompletions([]string{"tcp", "udp", "sctp", "icmp"}, cobra.ShellCompDirectiveNoFileComp)
	case "log-level":
		return cobra.FixedCompletions([]string{"debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp)
	case "context":
		return completeContexts
	case "namespace", "from-namespace", "to-namespace":
		return completeNamespaces
	case "from", "to":
		return completeNames
	case "port", "node-ip", "pod-cidr", "node-name", "date":
		return cobra.NoFileCompletions
	}
	return nil
}

func completeContexts(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	file, _ := cmd.Flags().GetString("kubeconfig") // empty if the command has no such flag
	names, err := kube.Contexts(kube.ConfigOptions{Kubeconfig: file})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

func completeNamespaces(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	in, ctx, done := completionInput(cmd)
	defer done()
	return in.namespaceNames(ctx), cobra.ShellCompDirectiveNoFileComp
}

// completeNames completes the name of an end. Without a namespace, it offers the names in the default
// namespace, and the namespaces; after "NAMESPACE/", the names in that namespace.
func completeNames(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	in, ctx, done := completionInput(cmd)
	defer done()
	if namespace, _, has := strings.Cut(begun, "/"); has {
		return prefixed(namespace+"/", in.names(ctx, namespace)), cobra.ShellCompDirectiveNoFileComp
	}
	names := append(in.names(ctx, ""), inventory.World)
	for _, namespace := range in.namespaceNames(ctx) {
		names = append(names, namespace+"/")
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, begun) })
	if slices.ContainsFunc(names, func(name string) bool { return !strings.HasSuffix(name, "/") }) {
		return names, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace // a name follows the namespace
}

func prefixed(prefix string, names []string) []string {
	for i := range names {
		names[i] = prefix + names[i]
	}
	return names
}

// completionSource has the objects whose names complete a command line: those of the files, and those
// of the cluster that the command would read.
type completionSource struct {
	objects   []string // objects of the files, as in "Pod shop/web"; nil if there are no files
	target    *kube.Target
	namespace string
}

// completionInput returns the source for an incomplete command line. It reports no errors, because a
// completion has no place to print them. The source must not be used after calling done.
func completionInput(cmd *cobra.Command) (s completionSource, ctx context.Context, done func()) {
	ctx, done = context.WithTimeoutCause(cmd.Context(), completionTimeout, errCompletion)
	flags := cmd.Flags()
	paths, _ := flags.GetStringArray("filename") // empty if the command has no such flag
	file, _ := flags.GetString("kubeconfig")
	name, _ := flags.GetString("context")
	s.namespace = "default"
	if len(paths) > 0 && !slices.Contains(paths, manifests.Stdin) {
		if o, _, err := manifests.Read(paths...); err == nil {
			s.objects = slices.Sorted(maps.Keys(o.Origins))
		}
	}
	if len(paths) == 0 || file+name != "" {
		if t, err := kube.FindTarget(kube.ConfigOptions{Kubeconfig: file, Context: name, Version: version()}); err == nil {
			s.target = t
			if t.Namespace != "" {
				s.namespace = t.Namespace
			}
		}
	}
	if given, _ := flags.GetStringSlice("namespace"); len(given) > 0 {
		s.namespace = given[0]
	}
	return s, ctx, done
}

// names returns the names of pods, workloads and Services in a namespace. An empty namespace means the
// default one.
func (s completionSource) names(ctx context.Context, namespace string) []string {
	if namespace == "" {
		namespace = s.namespace
	}
	names := make(map[string]bool)
	for _, object := range s.objects {
		kind, name, _ := strings.Cut(object, " ")
		in, name, has := strings.Cut(name, "/")
		if has && in == namespace && nameable(kind) {
			names[name] = true
		}
	}
	if s.target != nil {
		found, _ := kube.Names(ctx, s.target.Config, namespace) // on an error, only the names in files are offered
		for _, n := range found {
			names[n.Name] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// nameable reports whether users can name an object of this kind without its kind.
func nameable(kind string) bool {
	switch kind {
	case "EndpointSlice", "Ingress", "Gateway", "ReferenceGrant":
		return false
	}
	return !strings.HasSuffix(kind, "Policy") && !strings.HasSuffix(kind, "Route")
}

func (s completionSource) namespaceNames(ctx context.Context) []string {
	names := make(map[string]bool)
	for _, object := range s.objects {
		kind, name, _ := strings.Cut(object, " ")
		if in, _, has := strings.Cut(name, "/"); has || kind == "Namespace" {
			names[in] = true
		}
	}
	if s.target != nil {
		found, _ := kube.NamespaceNames(ctx, s.target.Config) // on an error, only the namespaces in files are offered
		for _, n := range found {
			names[n] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}
