package main

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"sluice/bench/testbed/lab"
)

// nodeName is the lab's name of its first node.
const nodeName = "node-1"

// host is a pod, the node or an outside host, and what it serves.
type host struct {
	name      string // "namespace/name" of a pod
	labels    map[string]string
	ports     []uint16          // served ports, each over TCP and UDP
	portName  map[uint16]string // the pod's names for its TCP ports
	addrs     []netip.Addr      // addresses; set only for a host outside the cluster
	*lab.Host                   // set when the lab is built
}

func (h *host) isPod() bool { return strings.Contains(h.name, "/") }

// isOutside reports whether the host is outside the cluster.
func (h *host) isOutside() bool { return !h.isPod() && h.name != nodeName }

// serverPort is a port that a host serves over TCP and UDP.
type serverPort struct {
	host *host
	port uint16
}

func (d serverPort) String() string { return d.host.name + ":" + strconv.Itoa(int(d.port)) }

// namespaces are the namespaces of the demo, with their labels.
var namespaces = []struct {
	name   string
	labels map[string]string
}{
	{"default", nil},
	{"shop", map[string]string{"project": "myproject"}},
	{"other", nil},
}

// cluster is the lab with its hosts.
type cluster struct {
	lab   *lab.Lab
	hosts []*host // hosts in the order of the table's rows
	// families are the address families that the pods have, as indexes in Host.Addrs.
	families []int
}

// build builds the lab and starts the servers. The caller must close it.
func build(families []int) (*cluster, error) {
	l, err := lab.New(lab.Options{})
	if err != nil {
		return nil, err
	}
	c := &cluster{lab: l, families: families, hosts: []*host{
		{name: "default/web", labels: map[string]string{"role": "frontend"}, ports: []uint16{80}, portName: map[uint16]string{80: "http"}},
		{name: "default/api", labels: map[string]string{"role": "backend"}, ports: []uint16{80, 8080}, portName: map[uint16]string{8080: "http"}},
		{name: "default/db", labels: map[string]string{"role": "db"}, ports: []uint16{6379, 9121}},
		{name: "shop/client", ports: []uint16{80}},
		{name: "other/guest", ports: []uint16{80}},
		{name: "partner", ports: []uint16{80}, addrs: addrs("192.0.2.10", "2001:db8::10")},
		{name: "banned", ports: []uint16{80}, addrs: addrs("192.0.2.200", "2001:db8::bad:1")},
		{name: nodeName, Host: l.Nodes[0].Host},
	}}
	for _, h := range c.hosts {
		if err := c.start(h); err != nil {
			_ = l.Close() // only the first error is reported
			return nil, err
		}
	}
	return c, nil
}

func addrs(texts ...string) (as []netip.Addr) {
	for _, t := range texts {
		as = append(as, netip.MustParseAddr(t))
	}
	return as
}

// start starts a host and its servers.
func (c *cluster) start(h *host) (err error) {
	switch {
	case h.isPod():
		h.Host, err = c.lab.AddPod(h.name)
	case h.isOutside():
		h.Host, err = c.lab.AddOutside(h.name, h.addrs...)
	}
	for _, port := range h.ports {
		for _, network := range networks {
			if err == nil {
				err = h.Serve(network, port)
			}
		}
	}
	return err
}

// serverPorts returns the ports of all hosts, in the order of the table's columns.
func (c *cluster) serverPorts() (ds []serverPort) {
	for _, h := range c.hosts {
		for _, port := range h.ports {
			ds = append(ds, serverPort{h, port})
		}
	}
	return ds
}

// manifests returns the Namespaces and Pods as a file for the agent.
func (c *cluster) manifests() (string, error) {
	var objects []any
	for _, ns := range namespaces {
		objects = append(objects, corev1.Namespace{
			TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: ns.name, Labels: ns.labels},
		})
	}
	for _, h := range c.hosts {
		if h.isPod() {
			objects = append(objects, h.pod(c.families))
		}
	}
	var documents []string
	for _, o := range objects {
		text, err := yaml.Marshal(o)
		if err != nil {
			return "", fmt.Errorf("write the pods' manifests: %w", err)
		}
		documents = append(documents, string(text))
	}
	return strings.Join(documents, "---\n"), nil
}

// pod returns the API object of a host that is a pod, with its addresses of these families.
func (h *host) pod(families []int) corev1.Pod {
	namespace, name, _ := strings.Cut(h.name, "/")
	container := corev1.Container{Name: name, Image: "demo"}
	for _, port := range slices.Sorted(maps.Keys(h.portName)) {
		container.Ports = append(container.Ports, corev1.ContainerPort{Name: h.portName[port], ContainerPort: int32(port)})
	}
	status := corev1.PodStatus{Phase: corev1.PodRunning}
	for _, family := range families {
		status.PodIPs = append(status.PodIPs, corev1.PodIP{IP: h.Addrs()[family].String()})
	}
	status.PodIP = status.PodIPs[0].IP
	return corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: h.labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{container}},
		Status:     status,
	}
}
