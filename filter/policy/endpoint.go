package policy

import (
	"net/netip"

	"sluice/filter"
)

// NamedPort is a container port. Policies can name it if it has a name.
type NamedPort struct {
	Name     string // may be empty
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
