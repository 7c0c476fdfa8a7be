package policy

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"

	"sluice/filter"
)

// NamedPort is a container port that policies can name.
type NamedPort struct {
	Name     string
	Protocol filter.Protocol
	Number   uint16
}

// NamedPorts lists the ports of a pod that policies can name, by name: exactly
// those that Decide looks names up in. Addresses outside the cluster and the node
// have none.
func (e *Endpoint) NamedPorts() []NamedPort {
	if e == nil || e.class == nil {
		return nil
	}
	return export(e.class.ports)
}

// NamedPortsOf lists the ports of a pod that policies can name, before a World knows the
// pod.
func NamedPortsOf(spec *corev1.PodSpec) []NamedPort {
	if spec.HostNetwork {
		return nil
	}
	return export(namedPorts(spec))
}

func export(list []namedPort) []NamedPort {
	ports := make([]NamedPort, len(list))
	for i, p := range list {
		ports[i] = NamedPort{p.name, p.protocol, p.number}
	}
	return ports
}

// Hosts are the addresses of the node that a pod runs on, as its status has them. The
// list must not be changed.
func (e *Endpoint) Hosts() []netip.Addr {
	if e == nil {
		return nil
	}
	return e.host.list()
}
