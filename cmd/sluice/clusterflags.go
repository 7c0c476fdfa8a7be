package main

import (
	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"

	"sluice/watch/kube"
)

// clusterOptions say which cluster to ask.
type clusterOptions struct{ kubeconfig, context string }

func addClusterFlags(fs *pflag.FlagSet, o *clusterOptions) {
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`FILE` that says how to reach the cluster's API, as kubectl takes it")
	fs.StringVar(&o.context, "context", "", "`NAME` of the context in the kubeconfig; its current one if not given")
}

// given says whether a cluster was named.
func (o clusterOptions) given() bool { return o.kubeconfig != "" || o.context != "" }

// config reads how to reach the cluster; by the pod's service account if none was
// named.
func (o clusterOptions) config() (*rest.Config, error) {
	return kube.Config(kube.ConfigOptions{Kubeconfig: o.kubeconfig, Context: o.context, Version: version()})
}
