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
	host    *host
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

// host is the addresses of a node that pods run on, as their status has them. The pods
// of a node share it; nil has none.
type host struct {
	addrs []netip.Addr // never empty
	pods  int
}

func (h *host) list() []netip.Addr {
	if h == nil {
		return nil
	}
	return h.addrs
}

// same reports whether both have the same addresses.
func (h *host) same(o *host) bool { return h == o || slices.Equal(h.list(), o.list()) }

// useHost returns the host that pods share in the place of one that was read, with one
// more use.
func (w *World) useHost(read *host) *host {
	if read == nil {
		return nil
	}
	h := w.hosts[read.addrs[0]]
	if !h.same(read) {
		h = read
		w.hosts[h.addrs[0]] = h
	}
	h.pods++
	return h
}

func (w *World) releaseHost(h *host) {
	if h == nil {
		return
	}
	if h.pods--; h.pods == 0 && w.hosts[h.addrs[0]] == h {
		delete(w.hosts, h.addrs[0])
	}
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
	var hosts []netip.Addr
	for _, ip := range o.Status.HostIPs {
		hosts = appendAddr(hosts, ip.IP)
	}
	if hosts = appendAddr(hosts, o.Status.HostIP); len(hosts) > 0 {
		p.host = &host{addrs: hosts}
	}
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
	return slices.Equal(p.addrs, o.addrs) && p.host.same(o.host) && slices.Equal(p.ports, o.ports) &&
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
