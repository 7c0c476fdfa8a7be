package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"sluice/watch/kube"
	"sluice/watch/manifests"
)

// input selects the objects that a command reads: manifests, or a live cluster.
type input struct {
	paths     []string
	recursive bool
	cluster   clusterOptions
	command   *cobra.Command // which reads the objects
}

func addInputFlags(cmd *cobra.Command, in *input) {
	in.command = cmd
	fs := cmd.Flags()
	fs.StringArrayVarP(&in.paths, "filename", "f", nil, "`DIR` with manifests, with its subdirectories; or a file, or - for the standard input (repeatable)")
	fs.BoolVarP(&in.recursive, "recursive", "R", true, "as for kubectl; directories are always read with their subdirectories")
	addClusterFlags(fs, &in.cluster)
}

// validate returns an error if the flags contradict each other.
func (in *input) validate() error {
	switch {
	case !in.recursive:
		return errors.New("--recursive=false: directories are always read with their subdirectories: give single files with -f FILE")
	case slices.Contains(in.paths, ""):
		return errors.New("-f is empty: give a directory of manifests, a single file, or - for the standard input")
	case len(in.paths) > 0 && in.cluster.given():
		return errors.New("-f cannot be combined with --kubeconfig or --context: give only one source")
	case len(in.paths) == 0 && !in.cluster.given():
		return errors.New("give a directory of manifests with -f DIR (--filename), or a cluster with --kubeconfig FILE or --context NAME")
	}
	return nil
}

// alsoStdin returns an error if both -f and another flag with the given value read the standard
// input.
func (in *input) alsoStdin(flag, value string) error {
	if value == manifests.Stdin && slices.Contains(in.paths, manifests.Stdin) {
		return fmt.Errorf("-f - and %s - both read the standard input: give a file to one of them", flag)
	}
	return nil
}

// read returns all objects, and the problems for which the API server would reject objects.
func (in *input) read(ctx context.Context, stdin io.Reader) (manifests.Objects, []manifests.Problem, error) {
	if err := in.validate(); err != nil {
		return manifests.Objects{}, nil, err
	}
	if len(in.paths) > 0 {
		return manifests.Input{Paths: in.paths, Stdin: stdin, Command: in.command.CommandPath()}.Read()
	}
	config, err := in.cluster.config()
	if err != nil {
		return manifests.Objects{}, nil, err
	}
	found, err := kube.Read(ctx, config)
	if err != nil {
		return manifests.Objects{}, nil, err
	}
	objects := manifests.FromCluster(config.Host, found.Namespaces, found.Pods, found.Policies)
	objects.Nodes = found.Nodes
	if found.NodesErr != nil {
		objects.Notes = append(objects.Notes, manifests.Problem{
			File: config.Host, Detail: "cannot list the Nodes: a pod's own node is known only by the addresses in the pod's status",
			Hint: "allow this user to list nodes, to learn which other addresses the nodes have",
		})
	}
	others, err := kube.CountOthers(ctx, config, func(group, kind string) bool {
		return manifests.Restricting(manifests.Kind{Group: group, Name: kind})
	})
	for _, o := range others {
		objects.NotRead = append(objects.NotRead, manifests.NotRead{Kind: manifests.Kind{Group: o.Group, Name: o.Kind}, Count: o.Count})
	}
	if err != nil {
		objects.Notes = append(objects.Notes, manifests.Problem{File: config.Host, Detail: err.Error(), Hint: "allow sluice to list them, to learn whether they may change what is allowed"})
	}
	return objects, nil, nil
}
