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

// requestRate bounds the requests per second to the API server, after a burst of
// requestBurst. A watch is one request. Only a list in pages takes many.
const (
	requestRate  = 50
	requestBurst = 100
)

// ConfigOptions select a cluster and how to reach it.
type ConfigOptions struct {
	Kubeconfig string // path of a kubeconfig; if empty, the pod's service account is used, or kubectl's configuration if Context is set
	Context    string // name of a context of the kubeconfig; empty for the current one
	Version    string // version of sluice, for the User-Agent header, which the API server logs
}

// Config returns the configuration to reach the API server. It sends no request.
func Config(opts ConfigOptions) (*rest.Config, error) {
	config, err := loadConfig(opts)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = requestRate, requestBurst
	config.UserAgent = strings.TrimSuffix("sluice/"+opts.Version, "/")
	config.WarningHandler = rest.NoWarnings{} // the API server's warnings are for those who write objects
	return config, nil
}

func loadConfig(opts ConfigOptions) (*rest.Config, error) {
	if opts.Kubeconfig == "" && opts.Context == "" {
		config, err := rest.InClusterConfig()
		switch {
		case errors.Is(err, rest.ErrNotInCluster):
			return nil, errors.New("connect to the Kubernetes API: this process is not in a pod: give --kubeconfig FILE")
		case err != nil:
			return nil, fmt.Errorf("connect to the Kubernetes API with the pod's service account: %w: mount its token (automountServiceAccountToken)", err)
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
		return nil, fmt.Errorf("read the kubeconfig: %w: give the path of an existing file", err)
	}
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig %s: %w: write a kubeconfig as kubectl config view prints one", file, err)
	}
	if err := checkContext(&raw, opts.Context, file); err != nil {
		return nil, err
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API with the kubeconfig %s: %w", file, err)
	}
	return config, nil
}

// checkContext returns an error that lists the contexts if the wanted one does not exist.
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
