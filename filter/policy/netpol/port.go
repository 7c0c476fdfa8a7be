package netpol

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"sluice/filter"
	"sluice/filter/policy"
)

// flaw describes why an item of a rule's ports is malformed.
type flaw struct {
	field        string // relative to the field of the item
	detail, hint string
}

// port converts an item of a rule's ports, with the checks of the API server.
func (r *reader) port(p *networkingv1.NetworkPolicyPort, field string) policy.PortRange {
	port, wrong := readPort(p)
	if wrong != nil {
		r.problem(field+wrong.field, wrong.detail, wrong.hint)
		port.Malformed = true
	}
	return port
}

func readPort(p *networkingv1.NetworkPolicyPort) (port policy.PortRange, wrong *flaw) {
	port.Protocol = filter.TCP // the default for an absent protocol; the protocol "" is malformed
	if p.Protocol != nil {
		proto, ok := protocolOf(*p.Protocol)
		if !ok {
			return port, &flaw{".protocol", fmt.Sprintf("%q is not a protocol", *p.Protocol), "write TCP, UDP or SCTP"}
		}
		port.Protocol = proto
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		return port, &flaw{".endPort", "it needs a port where the range starts", "write port too"}
	case p.Port == nil:
		port.High = 65535
		return port, nil
	case p.Port.Type == intstr.String:
		port.Name = p.Port.StrVal
		if wrong := nameFlaw(port.Name); wrong != nil {
			return port, wrong
		}
		if p.EndPort != nil {
			return port, &flaw{"", "a range of ports needs a number to start at", "write port as a number, or leave out endPort"}
		}
		return port, nil
	}
	low, high := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		high = *p.EndPort
	}
	if p.EndPort == nil && (low < 1 || low > 65535) {
		return port, &flaw{".port", fmt.Sprintf("%d is not a port", low), "write a number from 1 to 65535"}
	}
	if low < 1 || high > 65535 || high < low {
		return port, &flaw{"", fmt.Sprintf("%d to %d is not a range of ports", low, high), "write 1 <= port <= endPort <= 65535"}
	}
	port.Low, port.High = uint16(low), uint16(high)
	return port, nil
}

func protocolOf(p corev1.Protocol) (filter.Protocol, bool) {
	switch p {
	case corev1.ProtocolTCP:
		return filter.TCP, true
	case corev1.ProtocolUDP:
		return filter.UDP, true
	case corev1.ProtocolSCTP:
		return filter.SCTP, true
	}
	return 0, false
}

// nameFlaw returns why the name of a port is malformed, or nil if it is valid.
func nameFlaw(name string) *flaw {
	wrong := validation.IsValidPortName(name)
	if len(wrong) == 0 {
		return nil
	}
	f := &flaw{".port", fmt.Sprintf("%q is not the name of a port: it %s", name, wrong[0]), "write the name that the container declares, or the number"}
	low, high, _ := strings.Cut(name, "-")
	if l, err := strconv.ParseUint(low, 10, 16); err == nil && l > 0 {
		if h, err := strconv.ParseUint(high, 10, 16); err == nil && l <= h {
			f.hint = fmt.Sprintf("write a range as port: %d and endPort: %d", l, h)
		}
	}
	if n, err := strconv.ParseUint(name, 10, 16); err == nil && n > 0 {
		f.hint = fmt.Sprintf("take the quotes away to mean the number: port: %d", n)
	}
	return f
}
