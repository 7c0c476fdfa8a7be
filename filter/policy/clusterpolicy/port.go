package clusterpolicy

import (
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter"
	"sluice/filter/policy"
)

// protocols converts the list of protocols. Absent, it means everything; the API has no list
// that is present and empty.
func (x *ruleReader) protocols(list []v1beta1.ClusterNetworkPolicyProtocol) {
	for i := range list {
		x.protocol(&list[i], fmt.Sprintf(".protocols[%d]", i))
	}
}

// transport is a protocol with ports in an item of protocols.
type transport struct {
	name     string
	protocol filter.Protocol
	set      bool
	port     *v1beta1.Port
}

func (x *ruleReader) protocol(p *v1beta1.ClusterNetworkPolicyProtocol, at string) {
	var set []string
	var found transport
	for _, t := range transports(p) {
		if t.set {
			set, found = append(set, t.name), t
		}
	}
	if p.DestinationNamedPort != "" {
		set = append(set, "destinationNamedPort")
	}
	switch {
	case len(set) == 0:
		x.badPort(at, "it has no field that Sluice knows", "write one of tcp, udp, sctp or destinationNamedPort"+newer)
	case len(set) > 1:
		x.badPort(at, "it has "+strings.Join(set, " and ")+", and only one of them is allowed", "give each an item of its own")
	case found.set:
		x.port(found, at+"."+found.name)
	default:
		x.named(p.DestinationNamedPort, at+".destinationNamedPort")
	}
}

func transports(p *v1beta1.ClusterNetworkPolicyProtocol) []transport {
	all := []transport{{name: "tcp", protocol: filter.TCP}, {name: "udp", protocol: filter.UDP}, {name: "sctp", protocol: filter.SCTP}}
	if p.TCP != nil {
		all[0].set, all[0].port = true, p.TCP.DestinationPort
	}
	if p.UDP != nil {
		all[1].set, all[1].port = true, p.UDP.DestinationPort
	}
	if p.SCTP != nil {
		all[2].set, all[2].port = true, p.SCTP.DestinationPort
	}
	return all
}

// port converts the field destinationPort of a protocol: a number or a range.
func (x *ruleReader) port(t transport, at string) {
	const number = "write a number from 1 to 65535"
	p := t.port
	switch at := at + ".destinationPort"; {
	case p == nil:
		x.badPort(strings.TrimSuffix(at, ".destinationPort"), "it has no field that Sluice knows",
			"write destinationPort, with the range from 1 to 65535 for every port"+newer)
	case p.Number != 0 && p.Range != nil:
		x.badPort(at, "it has number and range, and only one of them is allowed", "write only one of them")
	case p.Range != nil:
		x.portRange(t.protocol, p.Range, at+".range")
	case p.Number == 0:
		x.badPort(at, "it has no field that Sluice knows", "write number, from 1 to 65535, or range"+newer)
	case p.Number < 1 || p.Number > 65535:
		x.badPort(at+".number", fmt.Sprintf("%d is not a port", p.Number), number)
	default:
		x.ports = append(x.ports, policy.PortRange{Protocol: t.protocol, Low: uint16(p.Number), High: uint16(p.Number)})
	}
}

func (x *ruleReader) portRange(protocol filter.Protocol, r *v1beta1.PortRange, at string) {
	switch {
	case r.Start < 1 || r.End > 65535 || r.Start > r.End:
		x.badPort(at, fmt.Sprintf("%d to %d is not a range of ports", r.Start, r.End), "write 1 <= start < end <= 65535")
	case r.Start == r.End:
		x.badPort(at, fmt.Sprintf("%d to %d is not a range of ports", r.Start, r.End), fmt.Sprintf("write number: %d", r.Start))
	default:
		x.ports = append(x.ports, policy.PortRange{Protocol: protocol, Low: uint16(r.Start), High: uint16(r.End)})
	}
}

// named converts a named port, which is a port of any protocol.
func (x *ruleReader) named(name, at string) {
	if wrong := validation.IsValidPortName(name); len(wrong) > 0 {
		x.badPort(at, fmt.Sprintf("%q is not the name of a port: it %s", name, wrong[0]), "write the name that the container declares; a number belongs into destinationPort of its protocol")
		return
	}
	for _, protocol := range []filter.Protocol{filter.TCP, filter.UDP, filter.SCTP} {
		x.ports = append(x.ports, policy.PortRange{Protocol: protocol, Name: name})
	}
}

func (x *ruleReader) badPort(at, detail, hint string) {
	x.problem(at, detail, hint)
	x.badPorts = append(x.badPorts, policy.PortRange{Malformed: true})
}
