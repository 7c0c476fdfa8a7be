package explain

import (
	"fmt"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
)

// ports holds the ports of a rule against the flow's. It returns which ports the
// rule allows, in words, and nil or what is lacking.
func (h *holder) ports(items []policy.PortRange, field string) (string, *Lack) {
	if len(items) == 0 {
		return "every port", nil
	}
	var all, names []string
	for i := range items {
		says, name, ok := h.portItem(&items[i])
		switch {
		case ok:
			return says, nil
		case says == "":
			continue
		case name != "":
			names = append(names, name)
		}
		all = append(all, says)
	}
	if len(all) == 0 {
		return "", unreadable("port", field)
	}
	lack := &Lack{Part: "port", Allows: some(all, 8, ", "), Flow: "the flow is to " + portText(h.key)}
	switch h.key.Transport {
	case filter.Portless:
		lack.Flow = "the flow is " + h.key.Protocol.String() + ", which only a rule without ports allows"
	case filter.Opaque:
		lack.Flow = "the flow's port cannot be read, and only a rule without ports allows it"
	}
	if len(names) > 0 {
		lack.Flow += h.nameWords(names)
	}
	return lack.Allows, lack
}

// portItem puts one item in words and says whether it matches. It gives the name
// of a named port too. Of an item that cannot be understood all are empty.
func (h *holder) portItem(port *policy.PortRange) (says, name string, matches bool) {
	if port.Malformed {
		return "", "", false
	}
	same := h.key.Transport == filter.Ported && h.key.Protocol == port.Protocol
	switch {
	case port.Name != "":
		number, ok := h.lookUp(port.Name, port.Protocol)
		return port.Protocol.String() + " " + port.Name, port.Name, same && ok && number == h.key.Port
	case port.Low == 0:
		return "every " + port.Protocol.String() + " port", "", same
	}
	says = fmt.Sprintf("%s %d", port.Protocol, port.Low)
	if port.High > port.Low {
		says += fmt.Sprintf("-%d", port.High)
	}
	return says, "", same && port.Low <= h.key.Port && h.key.Port <= port.High
}

func (h *holder) namedPorts() []policy.NamedPort {
	return h.c.snapshot.Endpoint(h.key.DstAddr()).NamedPorts()
}

func (h *holder) lookUp(name string, proto filter.Protocol) (uint16, bool) {
	for _, p := range h.namedPorts() {
		if p.Name == name && p.Protocol == proto {
			return p.Number, true
		}
	}
	return 0, false
}

// nameWords says what the names of ports mean on the destination.
func (h *holder) nameWords(names []string) string {
	if h.to.Pod == nil {
		return ", and " + h.to.Name + " is not a pod, so that it has no names for ports"
	}
	var have, all []string
	for _, p := range h.namedPorts() {
		text := fmt.Sprintf("%s=%s %d", p.Name, p.Protocol, p.Number)
		all = append(all, text)
		for _, n := range names {
			if n == p.Name {
				have = append(have, text)
			}
		}
	}
	name := h.to.Pod.String()
	switch {
	case len(have) > 0:
		return ", and " + name + " has " + strings.Join(have, ", ")
	case len(all) > 0:
		return fmt.Sprintf(", and %s has no port named %s; it has %s", name, some(names, 5, " or "), some(all, 5, ", "))
	}
	return fmt.Sprintf(", and %s has no port named %s, nor any other name", name, some(names, 5, " or "))
}

// portText is the flow's destination port in words: "TCP 80", "ICMP".
func portText(k filter.Key) string {
	if k.Transport != filter.Ported {
		return k.Protocol.String()
	}
	return fmt.Sprintf("%s %d", k.Protocol, k.Port)
}
