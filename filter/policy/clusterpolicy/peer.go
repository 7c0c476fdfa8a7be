package clusterpolicy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1beta1"

	"sluice/filter/policy"
)

// The fields of peers, as hints name them.
const (
	ingressFields = "namespaces or pods"
	egressFields  = "namespaces, pods, nodes, networks or domainNames"
)

// addPeer converts a peer of egress, or a peer of ingress in the form of egress, which has more
// fields. at is the field of the peer, relative to the rule. fields names the fields that the
// peer may have.
func (x *ruleReader) addPeer(from *v1beta1.ClusterNetworkPolicyEgressPeer, at, fields string) {
	var out policy.Peer
	switch set := setFields(from); {
	case len(set) == 0:
		x.problem(at, "it has no field that Sluice knows", "write one of "+fields+newer)
		out.Malformed = "."
	case len(set) > 1:
		x.problem(at, "it has "+strings.Join(set, " and ")+", and only one of them is allowed", oneOf(set))
		out.Malformed = "."
	case from.Namespaces != nil:
		out.Namespaces, out.Malformed = x.selector(from.Namespaces, at, ".namespaces")
	case from.Pods != nil:
		out = x.pods(from.Pods, at)
	case from.Nodes != nil:
		out.Nodes, out.Malformed = x.selector(from.Nodes, at, ".nodes")
	case len(from.Networks) > 0:
		out = x.networks(from.Networks, at)
	default:
		out = x.names(from.DomainNames, at)
	}
	if out.Malformed != "" {
		x.badPeers = append(x.badPeers, out)
		return
	}
	x.peers = append(x.peers, out)
}

// oneOf returns the hint about a peer with several fields. Two items match what either matches,
// so they are no substitute for namespaces and pods, which are probably meant to restrict each
// other.
func oneOf(set []string) string {
	if slices.Equal(set, []string{"namespaces", "pods"}) {
		return "for pods of these namespaces, write the selector of namespaces as pods.namespaceSelector; for all that either selects, give each an item of its own"
	}
	return "give each an item of its own; the rule then matches all that either selects"
}

// setFields returns the names of the fields that are set in a peer.
func setFields(p *v1beta1.ClusterNetworkPolicyEgressPeer) (set []string) {
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"namespaces", p.Namespaces != nil},
		{"pods", p.Pods != nil},
		{"nodes", p.Nodes != nil},
		{"networks", len(p.Networks) > 0},
		{"domainNames", len(p.DomainNames) > 0},
	} {
		if f.set {
			set = append(set, f.name)
		}
	}
	return set
}

// selector parses a selector. malformed is empty if it can be understood.
func (x *ruleReader) selector(sel *metav1.LabelSelector, at, field string) (parsed labels.Selector, malformed string) {
	parsed, err := metav1.LabelSelectorAsSelector(sel)
	if err != nil {
		x.problem(at+field, err.Error(), selectorHint)
		return nil, field
	}
	return parsed, ""
}

func (x *ruleReader) pods(pods *v1beta1.NamespacedPod, at string) (out policy.Peer) {
	if out.Namespaces, out.Malformed = x.selector(&pods.NamespaceSelector, at, ".pods.namespaceSelector"); out.Malformed != "" {
		return out
	}
	out.Pods, out.Malformed = x.selector(&pods.PodSelector, at, ".pods.podSelector")
	return out
}

func (x *ruleReader) networks(networks []v1beta1.CIDR, at string) (out policy.Peer) {
	out.Networks = make([]netip.Prefix, 0, len(networks))
	for i, text := range networks {
		field := fmt.Sprintf(".networks[%d]", i)
		p, detail, hint := readNetwork(string(text))
		if detail == "" {
			out.Networks = append(out.Networks, p)
			continue
		}
		x.problem(at+field, fmt.Sprintf("%q %s", text, detail), hint)
		if out.Malformed == "" {
			out.Malformed = field
		}
	}
	if out.Malformed != "" {
		out.Networks = nil
	}
	return out
}

// readNetwork parses a CIDR without host bits. detail is empty if it is valid.
func readNetwork(text string) (p netip.Prefix, detail, hint string) {
	p, err := netip.ParsePrefix(text)
	switch {
	case err == nil && p.Addr().Is4In6():
		return p, "is not a CIDR: it is an IPv4 address in the form of IPv6", "write the IPv4 network"
	case err == nil && p != p.Masked():
		return p, "has bits beyond its prefix length", fmt.Sprintf("write %s for the network or %s for the address", p.Masked(), netip.PrefixFrom(p.Addr(), p.Addr().BitLen()))
	case err == nil:
		return p, "", ""
	}
	if a, err := netip.ParseAddr(text); err == nil && a.Zone() == "" {
		return p, "is not a CIDR", fmt.Sprintf("write %s/%d", a, a.BitLen())
	}
	return p, "is not a CIDR", "write an address and a prefix length, without leading zeros, such as 10.0.0.0/8 or 2001:db8::/32"
}

// names converts a peer of domain names. The API has them only for rules that accept.
func (x *ruleReader) names(names []v1beta1.DomainName, at string) (out policy.Peer) {
	for _, n := range names {
		out.Names = append(out.Names, string(n))
	}
	if x.action != policy.Accept {
		x.problem(at+".domainNames", "only rules that accept can have domain names", "write the addresses as networks")
		out.Malformed = ".domainNames"
		return out
	}
	x.add(policy.Problem{
		Policy: x.p.Ref, Field: x.field + at + ".domainNames", Detail: "domain names are not supported", Effect: "this peer accepts nothing",
		Hint: "in " + x.title + ", write the addresses as networks", Unsupported: true,
	})
	return out
}
