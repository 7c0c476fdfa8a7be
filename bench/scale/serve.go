package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sluice/bench/testbed/apiserver"
	"sluice/bench/testbed/cluster"
)

// servedCluster is a cluster that is served, and that changes on request.
type servedCluster struct {
	server  *apiserver.Server
	cluster *cluster.Cluster
	mu      sync.Mutex
	round   int // number of the request; events write it into objects, so that the objects change
}

// serveCluster serves until ctx or the parent process ends. It prints its address and the mean
// size of each kind of object.
func serveCluster(ctx context.Context, opts options) error {
	c := &servedCluster{
		server:  apiserver.New(apiserver.Options{NoStreaming: opts.pages}),
		cluster: cluster.New(1, cluster.Options{Pods: opts.pods, Policies: opts.policies, Namespaces: opts.namespaces, DualStack: true}),
	}
	for _, o := range c.cluster.Namespaces {
		c.server.Set(o)
	}
	for i, o := range c.cluster.Policies {
		addPolicyDetails(o, i)
		c.server.Set(o)
	}
	for i, o := range c.cluster.Pods {
		addPodDetails(o, c.cluster.Pods[i-i%10], i)
		c.server.Set(o)
	}
	for i := range opts.nodes {
		c.server.Set(makeNode(i))
	}
	bytes, err := c.server.Encode()
	if err != nil {
		return fmt.Errorf("encode the cluster: %w", err)
	}
	c.server.Compact()

	mux := http.NewServeMux()
	mux.Handle("/", c.server)
	mux.HandleFunc("/happen/{what}/{n}", c.triggerEvents)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("serve the cluster: %w", err)
	}
	server := &http.Server{Handler: mux}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // returns when the parent closes the pipe or ends
		_ = server.Close()
	}()
	fmt.Println(listener.Addr(), bytes["pods"]/max(1, opts.pods), bytes["networkpolicies"]/max(1, opts.policies))
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the cluster: %w", err)
	}
	return ctx.Err()
}

// triggerEvents triggers n events of a kind. Then it adds a pod with the requested address.
// When the agent knows this pod, it has received all of the events.
func (c *servedCluster) triggerEvents(w http.ResponseWriter, req *http.Request) {
	n, err := strconv.Atoi(req.PathValue("n"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.round++
	for i := range n {
		if !c.event(req.PathValue("what"), i) {
			http.Error(w, "there is no such event", http.StatusNotFound)
			return
		}
	}
	c.server.Set(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "last-" + strconv.Itoa(c.round)},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: req.FormValue("last")},
	})
}

// event triggers event i of the given kind on an object that it selects by i. It returns false
// if there is no such kind.
func (c *servedCluster) event(what string, i int) bool {
	pod := func() *corev1.Pod { return c.cluster.Pods[i*7%len(c.cluster.Pods)].DeepCopy() }
	switch what {
	case "status": // a new status, as the kubelet writes it; no decision depends on it
		p := pod()
		p.Status.Conditions[0].LastTransitionTime = metav1.Unix(int64(c.round*1_000_000+i), 0)
		c.server.Set(p)
	case "label":
		p := pod()
		p.Labels["tier"] = "tier-" + strconv.Itoa(c.round)
		c.server.Set(p)
	case "restart": // a pod ends, and a new pod with a different name gets its address
		p := pod()
		c.server.Delete(p)
		p.Name += "-" + strconv.Itoa(c.round)
		p.CreationTimestamp = metav1.Unix(1_800_000_000+int64(c.round), 0)
		c.server.Set(p)
	case "policy":
		p := c.cluster.Policies[i*7%len(c.cluster.Policies)].DeepCopy()
		p.Spec.Ingress = p.Spec.Ingress[:1+(c.round+i)%len(p.Spec.Ingress)]
		p.Annotations["round"] = strconv.Itoa(c.round)
		c.server.Set(p)
	default:
		return false
	}
	return true
}
