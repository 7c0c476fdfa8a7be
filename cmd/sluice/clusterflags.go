package main

import (
	"context"
	"errors"
	"slices"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"sluice/watch/kube"
	"sluice/watch/manifests"
)

// clusterOptions select the cluster to read.
type clusterOptions struct{ kubeconfig, context string }

func addClusterFlags(fs *pflag.FlagSet, o *clusterOptions) {
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`FILE` with the configuration of the cluster's API, as for kubectl")
	fs.StringVar(&o.context, "context", "", "`NAME` of the context in the kubeconfig; the default is the current one")
}

// given reports whether the flags select a cluster.
func (o clusterOptions) given() bool { return o.kubeconfig != "" || o.context != "" }

// config returns the configuration for the API server that the flags select or, without
// flags, for the one that the pod's service account belongs to.
func (o clusterOptions) config() (*rest.Config, error) {
	return kube.Config(kube.ConfigOptions{Kubeconfig: o.kubeconfig, Context: o.context, Version: version()})
}

// input selects the objects that a command reads: directories of manifests, or a live
// cluster.
type input struct {
	dirs    []string
	cluster clusterOptions
}

func addInputFlags(fs *pflag.FlagSet, in *input) {
	fs.StringArrayVarP(&in.dirs, "filename", "f", nil, "`DIR` with manifests, or a single file (repeatable)")
	addClusterFlags(fs, &in.cluster)
}

// read returns all objects, and the problems for which the API server would reject objects.
func (in input) read(ctx context.Context) (manifests.Objects, []manifests.Problem, error) {
	switch {
	case len(in.dirs) > 0 && in.cluster.given():
		return manifests.Objects{}, nil, errors.New("-f cannot be combined with --kubeconfig or --context: give only one source")
	case slices.Contains(in.dirs, ""):
		return manifests.Objects{}, nil, errors.New("-f is empty: give a directory of manifests, or a single file")
	case len(in.dirs) > 0:
		return manifests.Read(in.dirs...)
	case !in.cluster.given():
		return manifests.Objects{}, nil, errors.New("give a directory of manifests with -f DIR (--filename), or a cluster with --kubeconfig FILE or --context NAME")
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
