package hubbleflow

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	flowpb "github.com/cilium/cilium/api/v1/flow"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/apimachinery/pkg/labels"
)

// Filter selects flows by the two lists of a GetFlowsRequest. It selects a flow if the list allow is empty
// or has a filter that matches the flow, and if the list deny has no filter that matches the flow. A
// filter matches if each of its fields matches. A field matches if one of its values does.
type Filter struct {
	allow, deny []match
	denials     bool // see OnlyDenials
}

// match reports whether a flow matches a condition.
type match func(*flowpb.Flow) bool

// NewFilter returns a Filter for two lists. If a filter has a field that Sluice does not support,
// NewFilter returns an error that names the field. If it ignored the field, the filter would select other
// flows.
func NewFilter(allow, deny []*flowpb.FlowFilter) (*Filter, error) {
	f := &Filter{denials: len(allow) > 0}
	var err error
	if f.allow, err = matches(allow); err != nil {
		return nil, err
	}
	if f.deny, err = matches(withoutNames(deny)); err != nil {
		return nil, err
	}
	for _, a := range allow {
		if len(a.GetVerdict()) == 0 || slices.Contains(a.GetVerdict(), flowpb.Verdict_FORWARDED) {
			f.denials = false
		}
	}
	return f, nil
}

// OnlyDenials reports whether the filter selects denied flows only.
func (f *Filter) OnlyDenials() bool { return f.denials }

// Selects reports whether the filter selects a flow.
func (f *Filter) Selects(fl *flowpb.Flow) bool {
	in := func(m match) bool { return m(fl) }
	return (len(f.allow) == 0 || slices.ContainsFunc(f.allow, in)) && !slices.ContainsFunc(f.deny, in)
}

// withoutNames returns the list deny without the filters about DNS names. These filters match nothing,
// because flows of Sluice have no DNS names. In the list allow, such a filter is an error. In the list
// deny it is not, because each request of hubble-ui denies *.cluster.local*.
func withoutNames(deny []*flowpb.FlowFilter) []*flowpb.FlowFilter {
	return slices.DeleteFunc(slices.Clone(deny), func(ff *flowpb.FlowFilter) bool {
		return len(ff.GetSourceFqdn()) > 0 || len(ff.GetDestinationFqdn()) > 0
	})
}

func matches(filters []*flowpb.FlowFilter) (out []match, err error) {
	for _, ff := range filters {
		m, err := matchOfFilter(ff)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// matchOfFilter returns the conjunction of the conditions of all fields that are set.
func matchOfFilter(ff *flowpb.FlowFilter) (match, error) {
	var all []match
	var errs []error
	message := ff.ProtoReflect()
	message.Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		m, err := matchOfField(string(field.Name()), ff)
		if err != nil {
			errs = append(errs, fmt.Errorf("filter %s: %w", nameOf(field, value), err))
		}
		all = append(all, m)
		return true
	})
	if len(message.GetUnknown()) > 0 {
		errs = append(errs, errors.New("the filter has a field that this version does not know: leave it out"))
	}
	return func(f *flowpb.Flow) bool {
		return !slices.ContainsFunc(all, func(m match) bool { return !m(f) })
	}, errors.Join(errs...)
}

// nameOf returns the name of a field. If the value is a message, such as experimental, the names of its
// own fields follow: users know these from hubble's flags.
func nameOf(field protoreflect.FieldDescriptor, value protoreflect.Value) string {
	name := string(field.Name())
	if field.Message() == nil || field.IsList() || field.IsMap() {
		return name
	}
	var inner []string
	value.Message().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		inner = append(inner, name+"."+string(f.Name()))
		return true
	})
	if len(inner) == 0 {
		return name
	}
	slices.Sort(inner)
	return strings.Join(inner, ", ")
}

// errNotKnown is the error about a field of which Sluice's flows have no value.
var errNotKnown = errors.New("Sluice does not know this about a flow: leave it out") //nolint:staticcheck // a name begins it

func matchOfField(field string, ff *flowpb.FlowFilter) (match, error) {
	switch field {
	case "uuid":
		return isOneOf(ff.GetUuid(), (*flowpb.Flow).GetUuid), nil
	case "source_ip":
		return matchAddrs(ff.GetSourceIp(), func(f *flowpb.Flow) string { return f.GetIP().GetSource() })
	case "destination_ip":
		return matchAddrs(ff.GetDestinationIp(), func(f *flowpb.Flow) string { return f.GetIP().GetDestination() })
	case "source_pod":
		return matchPods(ff.GetSourcePod(), (*flowpb.Flow).GetSource)
	case "destination_pod":
		return matchPods(ff.GetDestinationPod(), (*flowpb.Flow).GetDestination)
	case "source_label":
		return matchLabels(ff.GetSourceLabel(), (*flowpb.Flow).GetSource)
	case "destination_label":
		return matchLabels(ff.GetDestinationLabel(), (*flowpb.Flow).GetDestination)
	case "source_workload":
		return matchWorkloads(ff.GetSourceWorkload(), (*flowpb.Flow).GetSource), nil
	case "destination_workload":
		return matchWorkloads(ff.GetDestinationWorkload(), (*flowpb.Flow).GetDestination), nil
	case "source_identity":
		return isOneOf(ff.GetSourceIdentity(), func(f *flowpb.Flow) uint32 { return f.GetSource().GetIdentity() }), nil
	case "destination_identity":
		return isOneOf(ff.GetDestinationIdentity(), func(f *flowpb.Flow) uint32 { return f.GetDestination().GetIdentity() }), nil
	case "source_port":
		return matchPorts(ff.GetSourcePort(), func(from, _ uint32) uint32 { return from })
	case "destination_port":
		return matchPorts(ff.GetDestinationPort(), func(_, to uint32) uint32 { return to })
	case "protocol":
		return matchProtocols(ff.GetProtocol())
	case "ip_version":
		return isOneOf(ff.GetIpVersion(), func(f *flowpb.Flow) flowpb.IPVersion { return f.GetIP().GetIpVersion() }), nil
	case "verdict":
		return isOneOf(ff.GetVerdict(), (*flowpb.Flow).GetVerdict), nil
	case "drop_reason_desc":
		reason := isOneOf(ff.GetDropReasonDesc(), (*flowpb.Flow).GetDropReasonDesc)
		return func(f *flowpb.Flow) bool { return f.GetVerdict() == flowpb.Verdict_DROPPED && reason(f) }, nil
	case "traffic_direction":
		return isOneOf(ff.GetTrafficDirection(), (*flowpb.Flow).GetTrafficDirection), nil
	case "reply":
		return isOneOf(ff.GetReply(), func(f *flowpb.Flow) bool { return f.GetIsReply().GetValue() }), nil
	case "event_type":
		return matchEvents(ff.GetEventType())
	case "node_name":
		return matchNodes(ff.GetNodeName())
	case "experimental":
		return nil, errors.New("Sluice evaluates no expressions: use the other filters") //nolint:staticcheck // a name begins it
	}
	return nil, errNotKnown
}

func isOneOf[T comparable](values []T, of func(*flowpb.Flow) T) match {
	return func(f *flowpb.Flow) bool { return slices.Contains(values, of(f)) }
}

// matchAddrs compares an address of the flow, which of returns, with addresses and ranges.
func matchAddrs(texts []string, of func(*flowpb.Flow) string) (match, error) {
	var ranges []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return nil, fmt.Errorf("%q is neither an address nor a range", text)
			}
			p = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		}
		ranges = append(ranges, p)
	}
	return func(f *flowpb.Flow) bool {
		a, err := netip.ParseAddr(of(f))
		return err == nil && slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) })
	}, nil
}

// matchPods takes names as Hubble does. "prefix" means the pods of the namespace default whose names begin
// with prefix. In "namespace/prefix", each part may be empty, which means any namespace or any pod.
func matchPods(names []string, of func(*flowpb.Flow) *flowpb.Endpoint) (match, error) {
	type name struct{ namespace, begin string }
	var all []name
	for _, text := range names {
		if text == "" {
			return nil, errors.New("a name must not be empty")
		}
		namespace, begin, qualified := strings.Cut(text, "/")
		if !qualified {
			namespace, begin = "default", text
		}
		all = append(all, name{namespace, begin})
	}
	return func(f *flowpb.Flow) bool {
		e := of(f)
		return e.GetPodName() != "" && slices.ContainsFunc(all, func(n name) bool {
			return strings.HasPrefix(e.GetPodName(), n.begin) && (n.namespace == "" || n.namespace == e.GetNamespace())
		})
	}, nil
}

func matchWorkloads(want []*flowpb.Workload, of func(*flowpb.Flow) *flowpb.Endpoint) match {
	return func(f *flowpb.Flow) bool {
		return slices.ContainsFunc(of(f).GetWorkloads(), func(w *flowpb.Workload) bool {
			return slices.ContainsFunc(want, func(o *flowpb.Workload) bool {
				return (o.GetName() == "" || o.GetName() == w.GetName()) && (o.GetKind() == "" || o.GetKind() == w.GetKind())
			})
		})
	}
}

// matchLabels takes selectors whose keys may have one of Cilium's sources of labels in front, such as
// "k8s:app in (web, db)" or "reserved:world". A key without a source, as in "app=web", matches labels of
// any source.
func matchLabels(texts []string, of func(*flowpb.Flow) *flowpb.Endpoint) (match, error) {
	var selectors []labels.Selector
	for _, text := range texts {
		s, err := labels.Parse(withSources(text))
		if err != nil {
			return nil, fmt.Errorf("%q is not a selector of labels: %w", text, err)
		}
		selectors = append(selectors, s)
	}
	return func(f *flowpb.Flow) bool {
		set := make(labels.Set)
		for _, l := range of(f).GetLabels() {
			key, value, _ := strings.Cut(l, "=")
			source, key, _ := strings.Cut(key, ":")
			set[source+"."+key], set["any."+key] = value, value
		}
		return slices.ContainsFunc(selectors, func(s labels.Selector) bool { return s.Matches(set) })
	}, nil
}

// withSources rewrites each key of a selector, such as Cilium's "k8s:app", to "k8s.app", and a key
// without a source, such as "app", to "any.app", because labels.Parse accepts no colon in a key.
func withSources(selector string) string {
	var out []string
	depth, begin := 0, 0
	add := func(requirement string) {
		key := strings.TrimLeft(requirement, " !")
		front := requirement[:len(requirement)-len(key)]
		end := strings.IndexAny(key, " =!<>(")
		if end < 0 {
			end = len(key)
		}
		if source, name, has := strings.Cut(key[:end], ":"); has {
			key = source + "." + name + key[end:]
		} else if key != "" {
			key = "any." + key
		}
		out = append(out, front+key)
	}
	for i, c := range selector {
		switch {
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == ',' && depth == 0:
			add(selector[begin:i])
			begin = i + 1
		}
	}
	add(selector[begin:])
	return strings.Join(out, ",")
}

func matchPorts(texts []string, which func(from, to uint32) uint32) (match, error) {
	var ports []uint32
	for _, text := range texts {
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is not a port", text)
		}
		ports = append(ports, uint32(n))
	}
	return func(f *flowpb.Flow) bool {
		var from, to uint32
		switch l := f.GetL4().GetProtocol().(type) {
		case *flowpb.Layer4_TCP:
			from, to = l.TCP.GetSourcePort(), l.TCP.GetDestinationPort()
		case *flowpb.Layer4_UDP:
			from, to = l.UDP.GetSourcePort(), l.UDP.GetDestinationPort()
		case *flowpb.Layer4_SCTP:
			from, to = l.SCTP.GetSourcePort(), l.SCTP.GetDestinationPort()
		default:
			return false
		}
		return slices.Contains(ports, which(from, to))
	}, nil
}

func matchProtocols(names []string) (match, error) {
	var all []match
	for _, name := range names {
		is := map[string]match{
			"tcp":    func(f *flowpb.Flow) bool { return f.GetL4().GetTCP() != nil },
			"udp":    func(f *flowpb.Flow) bool { return f.GetL4().GetUDP() != nil },
			"sctp":   func(f *flowpb.Flow) bool { return f.GetL4().GetSCTP() != nil },
			"icmpv4": func(f *flowpb.Flow) bool { return f.GetL4().GetICMPv4() != nil },
			"icmpv6": func(f *flowpb.Flow) bool { return f.GetL4().GetICMPv6() != nil },
			"icmp":   func(f *flowpb.Flow) bool { return f.GetL4().GetICMPv4() != nil || f.GetL4().GetICMPv6() != nil },
		}[strings.ToLower(name)]
		if is == nil {
			return nil, fmt.Errorf("Sluice does not know %q: write tcp, udp, sctp, icmp, icmpv4 or icmpv6", name) //nolint:staticcheck // a name begins it
		}
		all = append(all, is)
	}
	return func(f *flowpb.Flow) bool { return slices.ContainsFunc(all, func(m match) bool { return m(f) }) }, nil
}

// matchEvents takes Cilium's types of events. Cilium reports several events about a packet, and Sluice
// one flow. So drop (1) matches denied flows, trace (4) allowed flows, and policy verdict (5) both. Other
// types match nothing. They are an error only if the filter has none of these three types, because older
// versions of hubble-ui list all types that they show.
func matchEvents(types []*flowpb.EventTypeFilter) (match, error) {
	var all []match
	var others []string
	for _, t := range types {
		number := uint32(t.GetSubType())
		switch {
		case t.GetType() == 1:
			all = append(all, func(f *flowpb.Flow) bool {
				return f.GetVerdict() == flowpb.Verdict_DROPPED && (!t.GetMatchSubType() || uint32(f.GetDropReasonDesc()) == number)
			})
		case t.GetType() == 4 && !t.GetMatchSubType():
			all = append(all, func(f *flowpb.Flow) bool { return f.GetVerdict() == flowpb.Verdict_FORWARDED })
		case t.GetType() == policyVerdict && !t.GetMatchSubType():
			all = append(all, func(*flowpb.Flow) bool { return true })
		default:
			others = append(others, fmt.Sprintf("%d, subtype %d", t.GetType(), number))
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("Sluice has no events of type %s: it has drop, trace and policy-verdict", strings.Join(others, "; ")) //nolint:staticcheck // a name begins it
	}
	return func(f *flowpb.Flow) bool { return slices.ContainsFunc(all, func(m match) bool { return m(f) }) }, nil
}

// matchNodes takes patterns with asterisks: "node" for the nodes of any cluster, "cluster/node", or
// "cluster/" for all nodes of a cluster. Sluice's cluster has the name "default".
func matchNodes(patterns []string) (match, error) {
	var all []string
	for _, p := range patterns {
		cluster, node, qualified := strings.Cut(p, "/")
		if !qualified {
			cluster, node = "*", p
		}
		if node == "" {
			node = "*"
		}
		if cluster == "" {
			cluster = "default"
		}
		if _, err := path.Match(cluster+"/"+node, ""); err != nil || p == "" {
			return nil, fmt.Errorf("%q is not a pattern of names", p)
		}
		all = append(all, cluster+"/"+node)
	}
	return func(f *flowpb.Flow) bool {
		return slices.ContainsFunc(all, func(p string) bool {
			is, _ := path.Match(p, "default/"+f.GetNodeName())
			return is
		})
	}, nil
}
