package explain

import (
	"fmt"
	"slices"
	"strings"

	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/near"
)

// ports matches the ports of a rule against the port of the flow. It returns a description
// of the allowed ports, and the mismatch, if any.
func (h *matcher) ports(items []policy.PortRange, field string) (string, *Mismatch) {
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
	all, names = ofAnyProtocol(all, names)
	if len(all) == 0 {
		return "", unreadable("port", field)
	}
	lack := &Mismatch{Part: "port", Allows: near.List(all, 8, ", "), Flow: "the flow is to " + portText(h.key)}
	switch h.key.Transport {
	case filter.Portless:
		lack.Flow = "the flow is " + h.key.Protocol.String() + ", which only " + h.ruleWithoutPorts()
	case filter.Opaque:
		lack.Flow = "the flow's port cannot be read, and only " + h.ruleWithoutPorts() + " it"
	}
	if len(names) > 0 {
		lack.Flow += h.nameWords(names)
	}
	return lack.Allows, lack
}

// ruleWithoutPorts is a part of a sentence about rules for all ports, in the words of the policy's
// kind.
func (h *matcher) ruleWithoutPorts() string {
	if h.ordered {
		return "a rule without protocols matches"
	}
	return "a rule without ports allows"
}

// ofAnyProtocol joins the descriptions of a named port of all protocols, which ordered rules
// have: "TCP web, UDP web, SCTP web" becomes "port web".
func ofAnyProtocol(all, names []string) ([]string, []string) {
	for _, name := range slices.Clone(names) {
		i := slices.Index(all, "TCP "+name)
		if i >= 0 && i+2 < len(all) && all[i+1] == "UDP "+name && all[i+2] == "SCTP "+name {
			all[i] = "port " + name
			all = slices.Delete(all, i+1, i+3)
		}
	}
	slices.Sort(names)
	return all, slices.Compact(names)
}

// portItem describes one item and reports whether it matches. It also returns the name of a
// named port. For a malformed item, all results are empty.
func (h *matcher) portItem(port *policy.PortRange) (says, name string, matches bool) {
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

func (h *matcher) namedPorts() []policy.NamedPort {
	return h.to.Endpoint.NamedPorts()
}

func (h *matcher) lookUp(name string, proto filter.Protocol) (uint16, bool) {
	for _, p := range h.namedPorts() {
		if p.Name == name && p.Protocol == proto {
			return p.Number, true
		}
	}
	return 0, false
}

// nameWords describes what the given port names mean on the destination.
func (h *matcher) nameWords(names []string) string {
	if h.to.Pod == nil {
		if h.to.Range != nil {
			return ", and addresses outside the cluster have no port names"
		}
		return ", and " + h.to.Name + " is not a pod, so it has no port names"
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
	name := podName(h.to)
	switch {
	case len(have) > 0:
		return ", and " + name + " has " + strings.Join(have, ", ")
	case len(all) > 0:
		return fmt.Sprintf(", and %s has no port named %s; it has %s", name, near.List(names, 5, " or "), near.List(all, 5, ", "))
	}
	return fmt.Sprintf(", and %s has no port named %s, and no other named port", name, near.List(names, 5, " or "))
}

// portText describes the flow's destination port: "TCP 80", "ICMP".
func portText(k filter.Key) string {
	if k.Transport != filter.Ported {
		return k.Protocol.String()
	}
	return fmt.Sprintf("%s %d", k.Protocol, k.Port)
}
