package inventory

import (
	"cmp"
	"errors"
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
	"sluice/filter/policy/near"
)

// service is a Service. Decisions never see its addresses: the node replaces them with the address
// of an endpoint before Sluice evaluates the packet.
type service struct {
	*corev1.Service
	slices []*discoveryv1.EndpointSlice
	addrs  []netip.Addr // its cluster addresses; empty if it is headless
}

// Via is the Service that a question named as the destination, or that a route leads to.
type Via struct {
	Service string     // "namespace/name"
	Addr    netip.Addr // the address by which the question named the Service; invalid if it used the name
	Port    uint16     // the port of the Service
	// NodePort is the port of a node by which the question named the Service; 0 otherwise.
	NodePort uint16
	// Exposure is the exposure of the route that the question named; nil if it named the Service.
	Exposure *Exposure
	// Untranslated is the targetPort of a headless Service's port if the two differ. The name of such a
	// Service leads to the addresses of its pods, so that nothing translates the port.
	Untranslated string
	// Broken describes the targets of the route that have no backend, with the reasons.
	Broken []string
}

func (s *service) text() string { return s.Namespace + "/" + s.Name }

// addServices indexes the Services by name and address.
func (v *Inventory) addServices() {
	slicesOf := make(map[string][]*discoveryv1.EndpointSlice)
	for _, s := range v.EndpointSlices {
		name := s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]
		slicesOf[name] = append(slicesOf[name], s)
	}
	for _, o := range v.Services {
		s := &service{Service: o, slices: slicesOf[o.Namespace+"/"+o.Name]}
		for _, text := range append([]string{o.Spec.ClusterIP}, o.Spec.ClusterIPs...) {
			addr, err := netip.ParseAddr(text)
			if err != nil {
				continue // no address: the Service is headless, or has none yet
			}
			if addr = addr.Unmap(); v.byAddress[addr] == nil {
				v.byAddress[addr] = s
				s.addrs = append(s.addrs, addr)
			}
		}
		for _, addr := range outerAddrs(o) {
			if v.byOuter[addr] == nil {
				v.byOuter[addr] = s
			}
		}
		v.services[s.text()] = s
	}
}

// serviceNamed returns a Service by its name.
func (v *Inventory) serviceNamed(namespace, name string) (target, error) {
	if s := v.services[namespace+"/"+name]; s != nil {
		return target{service: s}, nil
	}
	if err := v.hidden("Service", namespace, fmt.Sprintf("Service %s/%s", namespace, name)); err != nil {
		return target{}, err
	}
	if !v.hasNamespace(namespace) {
		return target{}, v.noNamespace(namespace)
	}
	if v.has(namespace, name) {
		return target{}, v.notOfKind("Service", namespace, name)
	}
	return target{}, fmt.Errorf("there is no Service %s/%s: %s", namespace, name, v.serviceHint(namespace+"/"+name))
}

// serviceHint returns a hint for the name of a Service that does not exist.
func (v *Inventory) serviceHint(name string) string {
	var all []string
	for n := range v.services {
		all = append(all, n)
	}
	slices.Sort(all)
	best, ok := near.Name(name, all)
	switch {
	case len(all) == 0:
		return "the manifests have no Services: add them, or ask for a pod or a workload"
	case ok:
		namespace, name, _ := strings.Cut(best, "/")
		return fmt.Sprintf("did you mean svc/%s in namespace %s?", name, namespace)
	}
	return "the Services here are " + near.List(all, 8, ", ")
}

// inDNS returns the Service with a name in the cluster's DNS: "db.shop", "db.shop.svc" and so on. If
// there is no such Service, but the third part of the text is "svc", it returns "namespace/name" of the
// Service. It does not look up the names that pods of a StatefulSet have under their Service.
func (v *Inventory) inDNS(text string) (*service, string) {
	parts := strings.Split(strings.TrimSuffix(text, "."), ".")
	if len(parts) < 2 {
		return nil, ""
	}
	name := parts[1] + "/" + parts[0]
	if s := v.services[name]; s != nil && (len(parts) == 2 || parts[2] == "svc") {
		return s, ""
	}
	if len(parts) > 2 && parts[2] == "svc" {
		return nil, name
	}
	return nil, ""
}

// serviceFlows returns the flows to the endpoints of a Service. Pods of a workload that policies
// cannot tell apart are one end.
func (v *Inventory) serviceFlows(sources []*End, to target, text string, proto filter.Protocol) (flows []Flow, err error) {
	s := v.renamed(to.service)
	if s.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, fmt.Errorf("to: Service %s is another name for %s, and Sluice cannot know its addresses: ask for one of them", s.text(), s.Spec.ExternalName)
	}
	via, behind, err := v.through(s, to.addr, text, proto)
	if err != nil {
		return nil, err
	}
	for _, from := range sources {
		for _, b := range behind {
			pair, wrong := v.between(from, b.end, strconv.Itoa(int(b.port)), proto)
			if wrong != nil && err == nil {
				err = wrong
			}
			for _, f := range pair {
				if !to.addr.IsValid() || f.Key.DstAddr().Is4() == to.addr.Is4() {
					f.Via = via
					flows = append(flows, f)
				}
			}
		}
	}
	switch {
	case len(flows) > 0:
		return flows, nil
	case err == nil:
		err = errors.New("no packet can pass: the two ends have no address family in common")
	}
	return nil, err
}

// through returns the endpoints of a port of a Service, with the Via that leads to them.
func (v *Inventory) through(s *service, addr netip.Addr, text string, proto filter.Protocol) (*Via, []backend, error) {
	via := &Via{Service: s.text(), Addr: addr}
	index, err := s.port(text, proto)
	number, _ := strconv.ParseUint(text, 10, 16)
	var port corev1.ServicePort
	switch headless := s.Spec.ClusterIP == corev1.ClusterIPNone && number > 0; {
	case headless && proto.HasPorts():
		port = corev1.ServicePort{Port: int32(number), Protocol: corev1.Protocol(proto.String())}
		if err == nil {
			via.Untranslated = untranslated(&s.Spec.Ports[index])
		}
	case err != nil:
		return nil, nil, fmt.Errorf("port: %w", err)
	default:
		port, number = s.Spec.Ports[index], 0
	}
	via.Port = uint16(port.Port)
	behind := v.behind(s, &port)
	if number > 0 && len(s.slices) > 0 {
		behind = v.atPort(s, uint16(number))
	}
	if len(behind) == 0 {
		return nil, nil, fmt.Errorf("to: %s, and decisions see only the endpoints behind it; %s: ask for the address of an endpoint, with its port%s",
			s.name(addr), s.nothingBehind(), targetText(&port))
	}
	return via, behind, nil
}

// untranslated returns the targetPort of a port if it differs from the port; empty otherwise.
func untranslated(port *corev1.ServicePort) string {
	if text := port.TargetPort.String(); text != "0" && text != strconv.Itoa(int(port.Port)) {
		return text
	}
	return ""
}

// atPort returns the endpoints in the EndpointSlices of a Service, each with the given port.
func (v *Inventory) atPort(s *service, number uint16) (found []backend) {
	for _, slice := range s.slices {
		for _, addr := range readyAddrs(slice) {
			found = append(found, backend{v.address(addr), number})
		}
	}
	return sortedBackends(found)
}

// renamed returns the Service to which a Service of type ExternalName refers, if it refers to one of
// this cluster. Otherwise it returns s.
func (v *Inventory) renamed(s *service) *service {
	for range v.services { // names may form a circle
		next, _ := v.inDNS(s.Spec.ExternalName)
		if s.Spec.Type != corev1.ServiceTypeExternalName || next == nil || !strings.Contains(s.Spec.ExternalName, ".svc") {
			break
		}
		s = next
	}
	return s
}

// name describes the Service for messages: by the address in the question if addr is valid, and by
// its name otherwise.
func (s *service) name(addr netip.Addr) string {
	if addr.IsValid() {
		return fmt.Sprintf("%s is the address of Service %s", addr, s.text())
	}
	return s.text() + " is a Service"
}

// backend is an endpoint of a Service, with its port.
type backend struct {
	end  *End
	port uint16
}

// port looks up a port of the Service by number or name, and returns its index.
func (s *service) port(text string, proto filter.Protocol) (int, error) {
	var have []string
	for i := range s.Spec.Ports {
		p := &s.Spec.Ports[i]
		of, ok := protocolOf(p)
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
	if text == "" {
		return 0, fmt.Errorf("port: it is missing: write one of those of the Service %s: %s", s.text(), near.List(have, 8, ", "))
	}
	return 0, fmt.Errorf("the Service %s has no %s port %q: write one of %s", s.text(), proto, text, near.List(have, 8, ", "))
}

// protocolOf returns the protocol of a Service's port, and false if the protocol is not known.
func protocolOf(p *corev1.ServicePort) (filter.Protocol, bool) {
	if p.Protocol == "" {
		return filter.TCP, true
	}
	return filter.ParseProtocol(string(p.Protocol))
}

// behind returns the endpoints of a port of a Service: those in its EndpointSlices or, if it has
// none, the pods that its selector matches.
func (v *Inventory) behind(s *service, port *corev1.ServicePort) (found []backend) {
	add := func(e *End, number int32) {
		if number >= 1 && number <= 65535 {
			found = append(found, backend{e, uint16(number)})
		}
	}
	for _, slice := range s.slices {
		for _, addr := range readyAddrs(slice) {
			add(v.address(addr), slicePort(slice, port))
		}
	}
	if len(s.slices) > 0 || len(s.Spec.Selector) == 0 {
		return sortedBackends(found)
	}
	byPort := make(map[int32][]*policy.Pod)
	selector := labels.SelectorFromSet(s.Spec.Selector)
	for _, p := range v.podsOfNamespace(s.Namespace) {
		if selector.Matches(p.Labels) && (serves(p) || s.Spec.PublishNotReadyAddresses) {
			number := podPort(p, port)
			byPort[number] = append(byPort[number], p)
		}
	}
	for number, pods := range byPort {
		sortPods(pods)
		ends, err := v.group(pods, true)
		if err != nil {
			continue // none of the pods owns its address
		}
		for _, e := range ends {
			add(e, number)
		}
	}
	return sortedBackends(found)
}

// podsOfNamespace returns the pods of a namespace, in no order.
func (v *Inventory) podsOfNamespace(namespace string) []*policy.Pod {
	if v.podsIn == nil {
		v.podsIn = make(map[string][]*policy.Pod)
		for _, p := range v.pods {
			v.podsIn[p.Namespace] = append(v.podsIn[p.Namespace], p)
		}
	}
	return v.podsIn[namespace]
}

func sortedBackends(found []backend) []backend {
	slices.SortFunc(found, func(a, b backend) int {
		return cmp.Or(a.end.Addrs[0].Compare(b.end.Addrs[0]), cmp.Compare(a.end.Name, b.end.Name), cmp.Compare(a.port, b.port))
	})
	return slices.CompactFunc(found, func(a, b backend) bool {
		return a.port == b.port && a.end.Name == b.end.Name
	})
}

// readyAddrs returns the addresses of the ready endpoints of a slice.
func readyAddrs(slice *discoveryv1.EndpointSlice) (addrs []netip.Addr) {
	for _, e := range slice.Endpoints {
		if e.Conditions.Ready == nil || *e.Conditions.Ready {
			for _, text := range e.Addresses {
				if addr, err := netip.ParseAddr(text); err == nil {
					addrs = append(addrs, addr.Unmap().WithZone(""))
				}
			}
		}
	}
	return addrs
}

// slicePort returns the number that a Service's port has in an EndpointSlice, or 0 if the slice
// lacks the port.
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

// serves reports whether a pod is ready, so that Services that select it send packets to it.
func serves(pod *policy.Pod) bool { return !pod.Ending && pod.Ended == "" && !pod.NotReady }

// podPort returns the number that a Service's port has on a pod, or 0 if the pod lacks the named port.
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

// targetText returns the targetPort of a Service's port in parentheses: " (8080)" or " (http)".
// Without a targetPort, it returns the port itself.
func targetText(port *corev1.ServicePort) string {
	if port.TargetPort.String() == "0" {
		return fmt.Sprintf(" (%d)", port.Port)
	}
	return fmt.Sprintf(" (%s)", port.TargetPort.String())
}
