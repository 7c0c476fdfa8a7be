package kube

import (
	"cmp"
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
	opts.finish(config)
	return config, nil
}

// finish sets the options that all clients share.
func (o ConfigOptions) finish(config *rest.Config) {
	config.QPS, config.Burst = requestRate, requestBurst
	config.UserAgent = strings.TrimSuffix("sluice/"+o.Version, "/")
	config.WarningHandler = rest.NoWarnings{} // the API server's warnings are for those who write objects
}

// Target is a cluster that people ask about.
type Target struct {
	*rest.Config
	Context   string // context of the kubeconfig; empty for the service account of a pod
	Namespace string // namespace of the context or the service account; empty if it has none
}

// String names the target, as in "context production".
func (t *Target) String() string {
	if t.Context == "" {
		return "the cluster of this pod"
	}
	return "context " + t.Context
}

// ErrNoCluster is the error of FindTarget if there is neither a kubeconfig nor a service account.
var ErrNoCluster = errors.New("there is no kubeconfig")

// namespaceFile is the file with the namespace of a pod, in the directory of its service account's token.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// FindTarget returns the cluster that kubectl would use: that of the given or the current context in
// the given kubeconfig, in those of $KUBECONFIG, or in ~/.kube/config. If there is no kubeconfig, it
// returns the cluster of the pod's service account. If there is no service account either, the error
// is ErrNoCluster. FindTarget sends no request.
func FindTarget(opts ConfigOptions) (*Target, error) {
	t, err := kubeconfigTarget(opts)
	if errors.Is(err, ErrNoCluster) {
		config, inPod := rest.InClusterConfig()
		if inPod != nil {
			return nil, err
		}
		namespace, _ := os.ReadFile(namespaceFile) // without it, the namespace is not known
		t, err = &Target{Config: config, Namespace: strings.TrimSpace(string(namespace))}, nil
	}
	if err != nil {
		return nil, err
	}
	opts.finish(t.Config)
	return t, nil
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
	t, err := kubeconfigTarget(opts)
	if err != nil {
		return nil, err
	}
	return t.Config, nil
}

// kubeconfigTarget returns the cluster of a context in the kubeconfig. The error is ErrNoCluster if
// opts name neither a kubeconfig nor a context, and the usual places have no kubeconfig.
func kubeconfigTarget(opts ConfigOptions) (*Target, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = opts.Kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: opts.Context})
	file := opts.Kubeconfig
	if file == "" {
		file = strings.Join(rules.GetLoadingPrecedence(), ", ")
	}
	raw, err := loader.RawConfig()
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, fmt.Errorf("read the kubeconfig: %w: give the path of an existing file", err)
	case err != nil:
		return nil, fmt.Errorf("read the kubeconfig %s: %w: write a kubeconfig as kubectl config view prints one", file, err)
	case opts.Kubeconfig == "" && opts.Context == "" && clientcmdapi.IsConfigEmpty(&raw):
		return nil, fmt.Errorf("%w in %s", ErrNoCluster, file)
	case opts.Kubeconfig == "" && clientcmdapi.IsConfigEmpty(&raw):
		return nil, fmt.Errorf("there is no kubeconfig in %s, and so no context %q: give --kubeconfig FILE", file, opts.Context)
	}
	if err := checkContext(&raw, opts.Context, file); err != nil {
		return nil, err
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("connect to the Kubernetes API with the kubeconfig %s: %w", file, err)
	}
	name := cmp.Or(opts.Context, raw.CurrentContext)
	return &Target{Config: config, Context: name, Namespace: raw.Contexts[name].Namespace}, nil
}

// Contexts returns the names of the contexts of the kubeconfig that FindTarget would use.
func Contexts(opts ConfigOptions) ([]string, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = opts.Kubeconfig
	raw, err := rules.Load()
	if err != nil {
		return nil, fmt.Errorf("read the kubeconfig: %w", err)
	}
	return slices.Sorted(maps.Keys(raw.Contexts)), nil
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
