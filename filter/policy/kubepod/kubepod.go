// Package kubepod converts Pods and Nodes of the API to policy.Pod and policy.Node, the forms
// that the rest of Sluice works on.
package kubepod

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
	"sluice/filter/policy"
)

// Read converts a Pod.
func Read(o *corev1.Pod) *policy.Pod {
	p := read(o) // Read is inlined, so that the Pod is not allocated if the caller does not keep it
	return &p
}

func read(o *corev1.Pod) policy.Pod {
	p := policy.Pod{
		Namespace: o.Namespace, Name: o.Name, Labels: o.Labels, Node: o.Spec.NodeName,
		Created: o.CreationTimestamp.UnixNano(), Ending: o.DeletionTimestamp != nil,
		HostNetwork: o.Spec.HostNetwork, Ports: ports(&o.Spec), Owner: ownerOf(o),
		NotReady: slices.ContainsFunc(o.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionFalse
		}),
	}
	if phase := o.Status.Phase; phase == corev1.PodSucceeded || phase == corev1.PodFailed {
		p.Ended = string(phase)
	}
	for _, ip := range o.Status.PodIPs {
		p.Addrs = AppendAddr(p.Addrs, ip.IP)
	}
	p.Addrs = AppendAddr(p.Addrs, o.Status.PodIP)
	for _, ip := range o.Status.HostIPs {
		p.Hosts = AppendAddr(p.Hosts, ip.IP)
	}
	p.Hosts = AppendAddr(p.Hosts, o.Status.HostIP)
	return p
}

// ReadAll converts Pods.
func ReadAll(objects []*corev1.Pod) []*policy.Pod {
	all := make([]*policy.Pod, len(objects))
	for i, o := range objects {
		all[i] = Read(o)
	}
	return all
}

// AppendAddr appends an address of a status if the list does not contain it. It ignores text
// that is not an address: a pod may have no address yet.
func AppendAddr(list []netip.Addr, text string) []netip.Addr {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return list
	}
	if addr = addr.Unmap().WithZone(""); slices.Contains(list, addr) {
		return list
	}
	return append(list, addr)
}

// ports lists the ports of the containers, then those of the sidecars: the order in which
// Kubernetes looks up port names for Services. It leaves out the init containers that end before
// the containers start.
func ports(spec *corev1.PodSpec) (found []policy.NamedPort) {
	add := func(c *corev1.Container) {
		for i := range c.Ports {
			if p, ok := Port(&c.Ports[i]); ok {
				found = append(found, p)
			}
		}
	}
	for i := range spec.Containers {
		add(&spec.Containers[i])
	}
	for i := range spec.InitContainers {
		if always := spec.InitContainers[i].RestartPolicy; always != nil && *always == corev1.ContainerRestartPolicyAlways {
			add(&spec.InitContainers[i])
		}
	}
	return found
}

// Port converts a port of a container. It returns false if the protocol or the number is
// invalid.
func Port(p *corev1.ContainerPort) (policy.NamedPort, bool) {
	proto, ok := protocolOf(p.Protocol)
	out := policy.NamedPort{Name: p.Name, Protocol: proto, Number: uint16(p.ContainerPort)}
	return out, ok && p.ContainerPort >= 1 && p.ContainerPort <= 65535
}

// protocolOf converts a protocol of the API. An empty protocol is TCP, the API's default.
func protocolOf(p corev1.Protocol) (filter.Protocol, bool) {
	switch p {
	case "", corev1.ProtocolTCP:
		return filter.TCP, true
	case corev1.ProtocolUDP:
		return filter.UDP, true
	case corev1.ProtocolSCTP:
		return filter.SCTP, true
	}
	return 0, false
}
