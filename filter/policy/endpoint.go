package policy

import (
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// NamedPort is a container port. Policies can name it if it has a name.
type NamedPort struct {
	Name     string // may be empty
	Protocol filter.Protocol
	Number   uint16
}

// NamedPorts returns a pod's named ports, sorted by name. Decide looks up port names in this
// list. NamedPorts returns nil for the node, and for an address outside the cluster.
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

// Hosts returns the addresses of the node that a pod runs on, from the pod's status. The
// list must not be changed.
func (e *Endpoint) Hosts() []netip.Addr {
	if e == nil {
		return nil
	}
	return e.host.list()
}

// description holds those properties of a pod that only records of flows show: no decision depends on
// them. Pods with the same labels and the same workload share a description. It is never changed.
type description struct {
	labels   labels.Set
	workload Ref
}

// Labels returns the labels of a pod; nil for this node, and for an address outside the cluster. The
// caller must not change the map.
func (e *Endpoint) Labels() labels.Set {
	if e == nil || e.about == nil {
		return nil
	}
	return e.about.labels
}

// Workload returns the object that has created a pod: its Pod.Owner. It is zero if it is not known.
func (e *Endpoint) Workload() Ref {
	if e == nil || e.about == nil {
		return Ref{}
	}
	return e.about.workload
}

// NodeName returns the name of the node that a pod runs on; empty if it is not known.
func (e *Endpoint) NodeName() string {
	if e == nil || e.host == nil {
		return ""
	}
	return e.host.node
}

// SameClass reports whether policies treat both endpoints alike, unless rules name their addresses. All
// addresses outside the cluster (nil) are in one class, and so are all addresses of this node.
func (e *Endpoint) SameClass(o *Endpoint) bool {
	if e == nil || o == nil {
		return e == o
	}
	return e.class == o.class
}

// Class identifies a class of SameClass. It is comparable, and is valid only within one snapshot.
type Class struct{ c *class }

// Class returns the class of the endpoint. For this node, and for an address outside the cluster, it
// returns the zero Class.
func (e *Endpoint) Class() Class {
	if e == nil {
		return Class{}
	}
	return Class{e.class}
}
