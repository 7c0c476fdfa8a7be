package kube

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// AgentPod is the pod of an agent.
type AgentPod struct {
	Namespace, Name string
	Node            string // name of the node that it runs on
	Container       string // the container in which the agent runs
	Running         bool   // the container runs
}

// String returns "namespace/name".
func (p AgentPod) String() string { return p.Namespace + "/" + p.Name }

// AgentContainer is the name of the agent's container, as the chart and the kustomization call it.
const AgentContainer = "sluice"

// Agents gives a user access to the agents of a cluster through the API server. The user needs the
// rights to list pods and to execute commands in them.
type Agents struct {
	client    *client
	config    *rest.Config
	namespace string
	selector  string
}

// NewAgents returns the agents whose pods are in a namespace and have the labels of a selector. It sends
// no request.
func NewAgents(config *rest.Config, namespace, selector string) (*Agents, error) {
	c, err := newClient(config, []*kind{podKind, nodeKind, networkPolicyKind, clusterNetworkPolicyKind}, func(s *runtime.Scheme) runtime.NegotiatedSerializer {
		return serializer.NewCodecFactory(s).WithoutConversion()
	})
	if err != nil {
		return nil, err
	}
	return &Agents{client: c, config: config, namespace: namespace, selector: selector}, nil
}

// Pods returns one pod for each node that has agents, sorted by the names of the nodes. If a node has
// several, because one replaces another, it is the pod that runs or, if several run, the youngest.
func (a *Agents) Pods(ctx context.Context) ([]AgentPod, error) {
	on := make(map[string]*corev1.Pod)
	err := a.each(ctx, podKind, a.namespace, a.selector, func(o runtime.Object) {
		pod, is := o.(*corev1.Pod)
		if is && pod.Spec.NodeName != "" && (on[pod.Spec.NodeName] == nil || comparePods(pod, on[pod.Spec.NodeName]) > 0) {
			on[pod.Spec.NodeName] = pod
		}
	})
	if err != nil {
		return nil, err
	}
	var pods []AgentPod
	for _, node := range slices.Sorted(maps.Keys(on)) {
		pods = append(pods, agentPod(on[node]))
	}
	return pods, nil
}

// comparePods compares two agents' pods of a node: the greater one is the one to ask.
func comparePods(a, b *corev1.Pod) int {
	rank := func(p *corev1.Pod) int {
		switch {
		case p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil:
			return 2
		case p.Status.Phase == corev1.PodRunning:
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), a.CreationTimestamp.Compare(b.CreationTimestamp.Time))
}

func agentPod(o *corev1.Pod) AgentPod {
	p := AgentPod{Namespace: o.Namespace, Name: o.Name, Node: o.Spec.NodeName, Container: AgentContainer, Running: o.Status.Phase == corev1.PodRunning}
	named := slices.ContainsFunc(o.Spec.Containers, func(c corev1.Container) bool { return c.Name == AgentContainer })
	if !named && len(o.Spec.Containers) > 0 {
		p.Container = o.Spec.Containers[0].Name
	}
	return p
}

// Nodes returns the names of the Nodes, sorted, without those whose operating system is not Linux: no agent
// runs there.
func (a *Agents) Nodes(ctx context.Context) (names []string, err error) {
	err = a.each(ctx, nodeKind, "", "", func(o runtime.Object) {
		n, is := o.(*corev1.Node)
		if !is {
			return
		}
		if os := n.Labels[corev1.LabelOSStable]; os == "" || os == string(corev1.Linux) {
			names = append(names, n.Name)
		}
	})
	slices.Sort(names)
	return names, err
}

// each calls f with each object of a kind: those of a namespace or, if namespace is empty, of the
// cluster.
func (a *Agents) each(ctx context.Context, k *kind, namespace, selector string, f func(runtime.Object)) error {
	for opts := (metav1.ListOptions{Limit: pageSize, LabelSelector: selector}); ; {
		list, err := a.client.listIn(ctx, k, k.group, namespace, opts)
		if err != nil {
			return a.failure(err, k, "list")
		}
		if opts.Continue, err = eachOf(list, f); err != nil || opts.Continue == "" {
			return err
		}
	}
}

func (a *Agents) failure(err error, k *kind, verb string) error {
	e := newAPIError(err, a.config.Host, k, verb)
	if apierrors.IsForbidden(err) {
		e.Hint = fmt.Sprintf("let this user %s %s of API group %q: see the rights in deploy/README.md", verb, k.resource, k.group.Group)
	}
	return e.once()
}
