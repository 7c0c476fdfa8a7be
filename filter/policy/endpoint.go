package policy

import "sluice/filter"

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
	ports := make([]NamedPort, len(e.class.ports))
	for i, p := range e.class.ports {
		ports[i] = NamedPort{p.name, p.protocol, p.number}
	}
	return ports
}
