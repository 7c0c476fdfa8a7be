package kube

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Requests per second to the API server, once the burst is used up. Watches are
// one request each; only a list in pages has many.
const (
	requestRate  = 50
	requestBurst = 100
)

// ConfigOptions say how to reach a cluster.
type ConfigOptions struct {
	Kubeconfig string // a file; empty for the service account of the pod, or what kubectl goes by if there is a Context
	Context    string // in the kubeconfig; empty for its current one
	Version    string // of sluice, for the API server's log
}

// Config reads how to reach the API server. It asks nothing of it.
func Config(opts ConfigOptions) (*rest.Config, error) {
	config, err := loadConfig(opts)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = requestRate, requestBurst
	config.UserAgent = strings.TrimSuffix("sluice/"+opts.Version, "/")
	config.WarningHandler = rest.NoWarnings{} // they are for people who write objects
	return config, nil
}

func loadConfig(opts ConfigOptions) (*rest.Config, error) {
	if opts.Kubeconfig == "" && opts.Context == "" {
		config, err := rest.InClusterConfig()
		switch {
		case errors.Is(err, rest.ErrNotInCluster):
			return nil, errors.New("connect to the Kubernetes API: this process does not run in a pod: give --kubeconfig FILE")
		case err != nil:
			return nil, fmt.Errorf("connect to the Kubernetes API by the pod's service account: %w: mount its token (automountServiceAccountToken)", err)
		}
		return config, nil
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = opts.Kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: opts.Context})
	file := opts.Kubeconfig
	if file == "" {
		file = strings.Join(rules.GetLoadingPrecedence(), ", ")
	}
	raw, err := loader.RawConfig()
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the kubeconfig: %w: give the path of one that is there", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig %s: %w: write a kubeconfig as kubectl config view prints one", file, err)
	}
	if err := checkContext(&raw, opts.Context, file); err != nil {
		return nil, err
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API as the kubeconfig %s says: %w", file, err)
	}
	return config, nil
}

// checkContext says which contexts there are, where the wanted one is not.
func checkContext(raw *clientcmdapi.Config, wanted, file string) error {
	option, have := "--context", strings.Join(slices.Sorted(maps.Keys(raw.Contexts)), ", ")
	if wanted == "" {
		option, wanted = "current-context", raw.CurrentContext
	}
	switch {
	case raw.Contexts[wanted] != nil:
		return nil
	case have == "":
		return fmt.Errorf("the kubeconfig %s has no contexts: add one that names a cluster and a user", file)
	case wanted == "":
		return fmt.Errorf("the kubeconfig %s has no current-context: give --context, one of: %s", file, have)
	}
	return fmt.Errorf("the kubeconfig %s has no context %q, which %s names: use one of: %s", file, wanted, option, have)
}
