package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"sluice/filter"
)

// Port is one item of a rule's ports, as a decision understands it.
type Port struct {
	Protocol  filter.Protocol
	Low, High uint16 // 0 and 65535 if the item names no port
	Name      string // of a named port; Low and High mean nothing then
}

// ReadPort reads an item of a rule's ports as the API server validates it. If it cannot
// be understood it allows nothing: flaw says why, with a field relative to the item's.
func ReadPort(p *networkingv1.NetworkPolicyPort) (port Port, flaw *Problem) {
	port.Protocol = filter.TCP // only a protocol that is absent has a default
	if p.Protocol != nil {
		proto, ok := protocolOf(*p.Protocol)
		if !ok || *p.Protocol == "" {
			return port, &Problem{Field: ".protocol", Detail: fmt.Sprintf("%q is not a protocol", *p.Protocol), Mend: "write TCP, UDP or SCTP"}
		}
		port.Protocol = proto
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		return port, &Problem{Field: ".endPort", Detail: "there is no port that it could end", Mend: "write port too"}
	case p.Port == nil:
		port.High = 65535
		return port, nil
	case p.Port.Type == intstr.String:
		port.Name = p.Port.StrVal
		if flaw := nameFlaw(port.Name); flaw != nil {
			return port, flaw
		}
		if p.EndPort != nil {
			return port, &Problem{Detail: "a range of ports needs a number to start at", Mend: "write port as a number, or leave out endPort"}
		}
		return port, nil
	}
	low, high := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		high = *p.EndPort
	}
	if p.EndPort == nil && (low < 1 || low > 65535) {
		return port, &Problem{Field: ".port", Detail: fmt.Sprintf("%d is not a port", low), Mend: "write a number from 1 to 65535"}
	}
	if low < 1 || high > 65535 || high < low {
		return port, &Problem{Detail: fmt.Sprintf("%d to %d is not a range of ports", low, high), Mend: "write 1 <= port <= endPort <= 65535"}
	}
	port.Low, port.High = uint16(low), uint16(high)
	return port, nil
}

// nameFlaw is what is wrong with the name of a port; nil if nothing is.
func nameFlaw(name string) *Problem {
	wrong := validation.IsValidPortName(name)
	if len(wrong) == 0 {
		return nil
	}
	p := &Problem{Field: ".port", Detail: fmt.Sprintf("%q is not the name of a port: it %s", name, wrong[0]), Mend: "write the name that the container declares, or the number"}
	low, high, _ := strings.Cut(name, "-")
	if l, err := strconv.ParseUint(low, 10, 16); err == nil && l > 0 {
		if h, err := strconv.ParseUint(high, 10, 16); err == nil && l <= h {
			p.Mend = fmt.Sprintf("write a range as port: %d and endPort: %d", l, h)
		}
	}
	if n, err := strconv.ParseUint(name, 10, 16); err == nil && n > 0 {
		p.Mend = fmt.Sprintf("take the quotes away to mean the number: port: %d", n)
	}
	return p
}

// ReadPrefix reads a CIDR of an ipBlock as decisions do: bits of the host are masked
// away.
func ReadPrefix(text string) (netip.Prefix, bool) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() {
		return netip.Prefix{}, false
	}
	return p.Masked(), true
}
