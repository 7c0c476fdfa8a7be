package main

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"sluice/watch/kube"
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

// target returns the cluster that the flags select. Without flags, it returns the cluster that kubectl
// would use.
func (o clusterOptions) target() (*kube.Target, error) {
	t, err := kube.FindTarget(kube.ConfigOptions{Kubeconfig: o.kubeconfig, Context: o.context, Version: version()})
	if errors.Is(err, kube.ErrNoCluster) {
		return nil, fmt.Errorf("there is nothing to read: give manifests with -f DIR (--filename; - is the standard input), or a cluster with --kubeconfig FILE or --context NAME; %w", err)
	}
	return t, err
}
