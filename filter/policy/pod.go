package policy

import (
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
)

// objectKey names a namespaced object.
type objectKey struct{ namespace, name string }

func (k objectKey) String() string { return k.namespace + "/" + k.name }

// pod is what decisions need to know of a Pod, and what the World has found out
// about it.
type pod struct {
	objectKey
	kin     *kin
	addrs   []netip.Addr // empty for pods that are nobody
	hosts   []netip.Addr // its node's addresses
	ports   []namedPort
	created int64 // Unix time, nanoseconds

	endpoint *Endpoint // as last compiled
	place    uint32    // in the kin's list
	renewed  bool      // a verdict about it may differ, whatever its class says
	local    bool      // it runs on this node
	ending   bool      // it is being deleted
	// relabeled: a verdict about it differs if its peers do.
	relabeled bool
	dirty     bool // the next commit compiles it
	regroup   bool // other policies may select it
	gone      bool // it has been deleted
}

// namedPort is a container port that has a name.
type namedPort struct {
	name     string
	protocol filter.Protocol
	number   uint16
}

// readPod takes what matters out of the API object. Pods of the host network and
// pods that have finished have no address of their own: they are nobody
// (the first are their node, the second have given the address up).
func readPod(o *corev1.Pod) *pod {
	p := &pod{
		objectKey: objectKey{o.Namespace, o.Name},
		created:   o.CreationTimestamp.UnixNano(),
		ending:    o.DeletionTimestamp != nil,
	}
	if o.Spec.HostNetwork || o.Status.Phase == corev1.PodSucceeded || o.Status.Phase == corev1.PodFailed {
		return p
	}
	for _, ip := range o.Status.PodIPs {
		p.addrs = appendAddr(p.addrs, ip.IP)
	}
	p.addrs = appendAddr(p.addrs, o.Status.PodIP)
	for _, ip := range o.Status.HostIPs {
		p.hosts = appendAddr(p.hosts, ip.IP)
	}
	p.hosts = appendAddr(p.hosts, o.Status.HostIP)
	p.ports = namedPorts(&o.Spec)
	return p
}

func appendAddr(list []netip.Addr, text string) []netip.Addr {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return list // a pod without address yet
	}
	if addr = addr.Unmap().WithZone(""); slices.Contains(list, addr) {
		return list
	}
	return append(list, addr)
}

// namedPorts lists the ports that a policy can name: those of the containers,
// then those of the sidecars, as the API server looks them up for Services. The
// ports of init containers that end do not count. Of two with one name and
// protocol the first counts.
func namedPorts(spec *corev1.PodSpec) []namedPort {
	var found []namedPort
	add := func(c *corev1.Container) {
		for i := range c.Ports {
			proto, ok := protocolOf(c.Ports[i].Protocol)
			number := c.Ports[i].ContainerPort
			if c.Ports[i].Name == "" || !ok || number < 1 || number > 65535 {
				continue
			}
			np := namedPort{c.Ports[i].Name, proto, uint16(number)}
			if !slices.ContainsFunc(found, func(o namedPort) bool { return o.name == np.name && o.protocol == np.protocol }) {
				found = append(found, np)
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
	slices.SortFunc(found, func(a, b namedPort) int {
		if c := strings.Compare(a.name, b.name); c != 0 {
			return c
		}
		return int(a.protocol) - int(b.protocol)
	})
	return found
}

// protocolOf reads the API's protocol; empty means TCP, as the API server
// defaults it.
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

// sameIdentity says whether nothing that a decision looks at differs but perhaps the
// labels.
func (p *pod) sameIdentity(o *pod) bool {
	return slices.Equal(p.addrs, o.addrs) && slices.Equal(p.hosts, o.hosts) && slices.Equal(p.ports, o.ports) &&
		p.created == o.created && p.local == o.local && p.ending == o.ending
}

// beats says which of two live pods with one address has it: the one created
// last, because the delete of the other is then still on its way. The names
// settle a tie, so that the order of events never does.
func (p *pod) beats(o *pod) bool {
	if p.created != o.created {
		return p.created > o.created
	}
	return p.String() > o.String()
}

// selectedBy lists the policies that isolate the pod in a direction.
func (p *pod) selectedBy(d filter.Direction) []*policy {
	var found []*policy
	for _, s := range p.kin.subjects {
		for pol := range s.subjects {
			if pol.isolates[d] {
				found = append(found, pol)
			}
		}
	}
	return found
}
