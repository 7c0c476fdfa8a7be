package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sluice/filter"
	"sluice/filter/policy"
)

// service is a Service with cluster addresses. Decisions never see these addresses: the node
// replaces them with the address of an endpoint before Sluice evaluates the packet.
type service struct {
	*corev1.Service
	slices []*discoveryv1.EndpointSlice
	behind map[behindKey][]backend // endpoints that were found for earlier questions
}

// behindKey is a port of a Service, in one address family.
type behindKey struct {
	port int
	v4   bool
}

// Via is the Service whose address a question named.
type Via struct {
	Service string     // "namespace/name"
	Addr    netip.Addr // the Service's address that the question named
	Port    uint16     // the Service's port that the question named
}

// backend is the address and port of an endpoint.
type backend struct {
	addr netip.Addr
	port uint16
}

func (s *service) text() string { return s.Namespace + "/" + s.Name }

// addServices indexes the Services by address.
func (c *Cluster) addServices(services []*corev1.Service, endpoints []*discoveryv1.EndpointSlice) {
	slicesOf := make(map[string][]*discoveryv1.EndpointSlice)
	for _, s := range endpoints {
		name := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		slicesOf[name] = append(slicesOf[name], s)
	}
	for _, o := range services {
		s := &service{o, slicesOf[o.Namespace+"/"+o.Name], make(map[behindKey][]backend)}
		for _, text := range append([]string{o.Spec.ClusterIP}, o.Spec.ClusterIPs...) {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				continue // no address: the Service is headless, or has none yet
			}
			if addr = addr.Unmap(); c.services[addr] == nil {
				c.services[addr] = s
			}
		}
	}
}

// serviceFlows returns the flows to decide for a question about the address of a Service:
// one to each endpoint.
func (c *Cluster) serviceFlows(from, to *End, q Question, proto filter.Protocol) ([]Flow, error) {
	s, addr := to.service, to.Addrs[0]
	at := slices.IndexFunc(from.Addrs, func(a netip.Addr) bool { return a.Is4() == addr.Is4() })
	if at < 0 {
		return nil, fmt.Errorf("no packet can pass: %s has only %s, %s only %s", from.Name, families(from), to.Name, families(to))
	}
	port, err := s.port(q.Port, proto)
	if err != nil {
		return nil, fmt.Errorf("port: %w", err)
	}
	key := behindKey{port, addr.Is4()}
	behind, known := s.behind[key]
	if !known {
		behind = c.backends(s, &s.Spec.Ports[port], addr.Is4())
		s.behind[key] = behind
	}
	if len(behind) == 0 {
		return nil, fmt.Errorf("to: %s is the address of Service %s, and decisions see only the endpoints behind it; "+
			"%s: ask for the address of an endpoint, with its port%s", addr, s.text(), s.nothingBehind(), targetText(&s.Spec.Ports[port]))
	}
	flows := make([]Flow, 0, len(behind))
	for _, b := range behind {
		via := &Via{s.text(), addr, uint16(s.Spec.Ports[port].Port)}
		flows = append(flows, Flow{From: from, To: c.address(b.addr), Key: filter.NewKey(from.Addrs[at], b.addr, proto, b.port), Via: via})
	}
	return flows, nil
}

// port looks up a port of the Service by number or name, and returns its index.
func (s *service) port(text string, proto filter.Protocol) (int, error) {
	var have []string
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		of, ok := filter.ParseProtocol(string(p.Protocol))
		if p.Protocol == "" {
			of, ok = filter.TCP, true
		}
		if ok && of == proto && (text == strconv.Itoa(int(p.Port)) || text != "" && text == p.Name) {
			return i, nil
		}
		have = append(have, strings.TrimSpace(fmt.Sprintf("%s %d %s", of, p.Port, p.Name)))
	}
	if !proto.HasPorts() {
		return 0, fmt.Errorf("%s to the address of a Service reaches nothing: only its ports lead to endpoints", proto)
	}
	if len(have) == 0 {
		return 0, fmt.Errorf("the Service %s has no port", s.text())
	}
	return 0, fmt.Errorf("the Service %s has no %s port %q: write one of %s", s.text(), proto, text, some(have, 8, ", "))
}

// backends returns the sorted endpoints of a port of a Service: those of its EndpointSlices
// or, without any slices, those of the selected pods.
func (c *Cluster) backends(s *service, port *corev1.ServicePort, v4 bool) []backend {
	var found []backend
	add := func(addr netip.Addr, number int32) {
		if addr.IsValid() && addr.Is4() == v4 && number >= 1 && number <= 65535 {
			found = append(found, backend{addr, uint16(number)})
		}
	}
	for _, slice := range s.slices {
		number := slicePort(slice, port)
		for _, e := range slice.Endpoints {
			if e.Conditions.Ready == nil || *e.Conditions.Ready {
				for _, text := range e.Addresses {
					addr, _ := netip.ParseAddr(text)
					add(addr.Unmap().WithZone(""), number)
				}
			}
		}
	}
	if len(s.slices) == 0 && len(s.Spec.Selector) > 0 {
		for _, pod := range c.pods {
			if pod.Namespace == s.Namespace && labels.SelectorFromSet(s.Spec.Selector).Matches(pod.Labels) && (serves(pod) || s.Spec.PublishNotReadyAddresses) {
				number := podPort(pod, port)
				for _, addr := range addressesOf(pod) {
					add(addr, number)
				}
			}
		}
	}
	slices.SortFunc(found, func(a, b backend) int {
		if n := a.addr.Compare(b.addr); n != 0 {
			return n
		}
		return int(a.port) - int(b.port)
	})
	return slices.Compact(found)
}

// slicePort returns the number of a Service's port in an EndpointSlice, or 0 if it has
// none.
func slicePort(slice *discoveryv1.EndpointSlice, port *corev1.ServicePort) int32 {
	for _, p := range slice.Ports {
		name, proto := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if name == port.Name && p.Port != nil && (proto == port.Protocol || proto == corev1.ProtocolTCP && port.Protocol == "") {
			return *p.Port
		}
	}
	return 0
}

// serves reports whether a pod is an endpoint of the Services that select it.
func serves(pod *policy.Pod) bool { return !pod.Ending && pod.Ended == "" && !pod.NotReady }

// podPort returns the number of a Service's port on a pod, or 0 if it has none.
func podPort(pod *policy.Pod, port *corev1.ServicePort) int32 {
	switch {
	case port.TargetPort.Type == intstr.Int && port.TargetPort.IntVal != 0:
		return port.TargetPort.IntVal
	case port.TargetPort.StrVal == "":
		return port.Port
	}
	for _, p := range pod.Ports {
		if p.Name == port.TargetPort.StrVal && (p.Protocol.String() == string(port.Protocol) || port.Protocol == "" && p.Protocol == filter.TCP) {
			return int32(p.Number)
		}
	}
	return 0
}

// nothingBehind returns the reason why no endpoint of the Service is known.
func (s *service) nothingBehind() string {
	switch {
	case len(s.slices) > 0:
		return "none of its EndpointSlices has an endpoint that is ready at this port"
	case len(s.Spec.Selector) > 0:
		return "no ready pod matches its selector (" + labels.FormatLabels(s.Spec.Selector) + ") and has this port"
	}
	return "it has no selector and no EndpointSlices"
}

// targetText returns the target port of a Service's port, in parentheses: "(8080)" or "(http)".
// If the Service states none, it is the Service's port.
func targetText(port *corev1.ServicePort) string {
	if port.TargetPort.String() == "0" {
		return fmt.Sprintf(" (%d)", port.Port)
	}
	return fmt.Sprintf(" (%s)", port.TargetPort.String())
}
