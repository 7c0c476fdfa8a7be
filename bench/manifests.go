package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/bench/load"
	"sluice/bench/result"
	"sluice/bench/testbed/agenttest"
	"sluice/bench/testbed/cluster"
)

// Ports of the server's pod. freshPort is the first of freshPorts.
const (
	seenPort   = 8080
	streamPort = 5201
	probePort  = 9000
	freshPort  = 20000
)

// freshKeys is the number of keys through which the loads of a row with fresh set cycle.
// It is twice the size of the kernel's flow cache, and far more than --cache-size of the row
// "fresh". So both caches have evicted a key before the load uses the key again.
const freshKeys = 131072

const (
	// maxSources bounds the number of client pods. Small clusters have fewer (see sourceCount).
	maxSources = 16
	// objectsPerFile is the number of objects in a file of manifests.
	objectsPerFile = 500
	// labels of the lab's pods.
	roleServer, roleClient, roleHostile = "bench-server", "bench-client", "bench-hostile"
)

// sourceCount returns the number of the lab's client pods in a cluster.
func sourceCount(s result.Scenario) int { return min(maxSources, s.Pods-2) }

// clientRange contains the addresses of the client pods. They are reached through one interface, as if they
// were on other nodes.
var clientRange = netip.MustParsePrefix("10.128.32.0/24")

// sources returns the addresses of the client pods.
func sources(s result.Scenario) (addrs []netip.Addr) {
	for i := range uint32(sourceCount(s)) {
		addrs = append(addrs, nth(clientRange, i+1))
	}
	return addrs
}

// freshPorts returns the server's ports for the keys that freshKeys counts.
func freshPorts(s result.Scenario) load.Ports {
	return load.Ports{First: freshPort, Count: freshKeys / sourceCount(s)}
}

// makeCluster generates the objects of the scenario, without the lab's pods and their policy.
func makeCluster(s result.Scenario) *cluster.Cluster {
	labPods := sourceCount(s) + 2
	c := cluster.New(1, cluster.Options{Pods: max(10, s.Pods-labPods), Policies: s.Policies - 1, Namespaces: s.Namespaces})
	c.Pods = c.Pods[:s.Pods-labPods]
	return c
}

// labNamespace returns the namespace of the lab's pods: the first one of the cluster.
func labNamespace(c *cluster.Cluster) string { return c.Namespaces[0].Name }

// labPods returns the pods of a contender.
func labPods(namespace string, t *contender) (pods []*corev1.Pod) {
	pods = append(pods,
		labPod(namespace, "server", roleServer, t.server.IPv4),
		labPod(namespace, "hostile", roleHostile, t.hostile.IPv4))
	for i, a := range t.sources {
		pods = append(pods, labPod(namespace, fmt.Sprintf("client-%d", i), roleClient, a))
	}
	if t.ends != fewPods {
		pods = append(pods, endPods(namespace, t)...)
	}
	return pods
}

// labPod returns a running pod.
func labPod(namespace, name, role string, addrs ...netip.Addr) *corev1.Pod {
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": role}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "main"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, PodIP: addrs[0].String()},
	}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return p
}

// labPolicies returns the policies about a contender's pods.
func labPolicies(namespace string, s result.Scenario, t *contender) []*networkingv1.NetworkPolicy {
	policies := []*networkingv1.NetworkPolicy{labPolicy(namespace, s)}
	if t.ends != fewPods {
		policies = append(policies, endPolicies(namespace)...)
	}
	return policies
}

// labPolicy returns a policy that lets the lab's clients reach the server.
func labPolicy(namespace string, s result.Scenario) *networkingv1.NetworkPolicy {
	fresh := freshPorts(s)
	last := int32(fresh.First) + int32(fresh.Count) - 1
	var ports []networkingv1.NetworkPolicyPort
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		ports = append(ports, port(protocol, seenPort))
		p := port(protocol, int32(fresh.First))
		p.EndPort = &last
		ports = append(ports, p)
	}
	return policyFor(namespace, "bench", append(ports, port(corev1.ProtocolTCP, streamPort)))
}

// policyFor returns a policy that lets clients reach the given ports of the server.
func policyFor(namespace, name string, ports []networkingv1.NetworkPolicyPort) *networkingv1.NetworkPolicy {
	return ingressPolicy(namespace, name, roleServer, []networkingv1.NetworkPolicyPeer{podsWithRole(roleClient)}, ports)
}

// ingressPolicy returns a policy that lets peers reach the given ports of the pods with a role.
// Without peers, all addresses may reach them.
func ingressPolicy(namespace, name, role string, from []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) *networkingv1.NetworkPolicy {
	return &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{"app": role}},
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeIngress},
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: from, Ports: ports}},
		},
	}
}

// podsWithRole returns the peer for all pods of the policy's namespace with a role.
func podsWithRole(role string) networkingv1.NetworkPolicyPeer {
	return networkingv1.NetworkPolicyPeer{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": role}}}
}

func port(protocol corev1.Protocol, number int32) networkingv1.NetworkPolicyPort {
	n := intstr.FromInt32(number)
	return networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &n}
}

// writeCluster writes a cluster's objects into a directory, in files with objectsPerFile
// objects each.
func writeCluster(dir string, c *cluster.Cluster) error {
	var objects []any
	for _, o := range c.Namespaces {
		o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}
		objects = append(objects, o)
	}
	for _, o := range c.Pods {
		o.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
		objects = append(objects, o)
	}
	for _, o := range c.Policies {
		o.TypeMeta = metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}
		objects = append(objects, o)
	}
	return writeFilesOf(dir, "cluster", objects)
}

// writeFilesOf writes files whose names begin with a prefix, with objectsPerFile objects each.
func writeFilesOf(dir, prefix string, objects []any) error {
	for i := 0; i < len(objects); i += objectsPerFile {
		if err := writeObjects(dir, fmt.Sprintf("%s-%03d.json", prefix, i/objectsPerFile), objects[i:min(i+objectsPerFile, len(objects))]...); err != nil {
			return err
		}
	}
	return nil
}

// writeObjects writes a file of manifests atomically.
func writeObjects(dir, name string, objects ...any) error {
	text, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": objects})
	if err == nil {
		err = agenttest.WriteFile(dir, name, string(text))
	}
	if err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	return nil
}

// linkFiles hard-links the files of a directory into another directory.
func linkFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	for _, e := range entries {
		if err == nil {
			err = os.Link(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
		}
	}
	if err != nil {
		return fmt.Errorf("link manifests: %w", err)
	}
	return nil
}
