package inventory

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// bare is a Deployment without addresses, and a policy with a range.
func bare(cidr, more string) string {
	return fmt.Sprintf(`
- {kind: Namespace, metadata: {name: shop}}
- {kind: Deployment, metadata: {namespace: shop, name: web}, spec: {template: {metadata: {labels: {app: web}}}}}
- kind: NetworkPolicy
  metadata: {namespace: shop, name: web}
  spec: {podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: %q}}]}]}
%s`, cidr, more)
}

func TestFamilies(t *testing.T) {
	const pod, node = "- {kind: Pod, metadata: {namespace: shop, name: a}, status: {podIPs: [{ip: %s}]}}", "- {kind: Node, metadata: {name: n}, status: {addresses: [{type: InternalIP, address: %s}]}}"
	for name, c := range map[string]struct {
		cidr, more, want string
		leftOut          string
	}{
		"nothing mentions IPv6":              {"10.0.0.0/8", "", "IPv4", ""},
		"a policy does":                      {"::/0", "", "IPv4 IPv6", ""},
		"the addresses of Nodes are no help": {"::/0", fmt.Sprintf(node, "192.0.2.1"), "IPv4 IPv6", ""},
		"a Node has IPv6":                    {"fd00::/8", fmt.Sprintf(node, "2001:db8::1"), "IPv6", ""},
		"a Service asks for IPv6":            {"10.0.0.0/8", "- {kind: Service, metadata: {namespace: shop, name: web}, spec: {ipFamilies: [IPv4, IPv6]}}", "IPv4 IPv6", ""},
		"pods have IPv4":                     {"::/0", fmt.Sprintf(pod, "10.0.0.1"), "IPv4", "IPv6 true"},
		"pods have IPv6":                     {"0.0.0.0/0", fmt.Sprintf(pod, "fd00::1"), "IPv6", "IPv4 true"},
		"instance metadata":                  {"fd00:ec2::254/128", "", "IPv4", "IPv6 false"},
	} {
		v := read(t, bare(c.cidr, c.more))
		e, err := v.EndOf(v.pods["shop/web"], true)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, a := range e.Addrs {
			got = append(got, familyNames[familyOf(a)])
		}
		leftOut := ""
		for _, out := range v.LeftOut() {
			leftOut = fmt.Sprint(out.Family, " ", out.Known)
		}
		if strings.Join(got, " ") != c.want || leftOut != c.leftOut {
			t.Errorf("%s: %v, left out %q; want %s, %q", name, got, leftOut, c.want, c.leftOut)
		}
	}
}

// TestFamiliesAsked asks about a family that nothing mentions.
func TestFamiliesAsked(t *testing.T) {
	v := read(t, bare("10.0.0.0/8", ""))
	for _, from := range []string{"2001:db8::1", "2001:db8::/32", "fd00::/8"} {
		flows, err := v.Flows(Question{From: from, To: "shop/web", Port: "80"})
		if err != nil || len(flows) != 1 || flows[0].Key.DstAddr().Is4() || flows[0].Key.SrcAddr() == flows[0].Key.DstAddr() {
			t.Errorf("from %s: %v, %v", from, flows, err)
		}
	}
	v = read(t, bare("10.0.0.0/8", "- {kind: Pod, metadata: {namespace: shop, name: a}, status: {podIPs: [{ip: 10.0.0.1}]}}"))
	if _, err := v.Flows(Question{From: "2001:db8::1", To: "shop/web", Port: "80"}); err == nil {
		t.Error("pods have IPv4 addresses only, but one got an IPv6 address")
	}
}

// TestFamiliesBeside compares an inventory that mentions no IPv6 with one that does: in both, the pods
// have the same families.
func TestFamiliesBeside(t *testing.T) {
	without, with := read(t, bare("10.0.0.0/8", "")), read(t, bare("::/0", ""))
	for _, v := range []*Inventory{without.Beside(with), with.Beside(without)} {
		if e, err := v.EndOf(v.pods["shop/web"], true); err != nil || len(e.Addrs) != 2 {
			t.Errorf("%v, %v", e, err)
		}
	}
}

// TestWorldWithoutPodRanges checks that world has no address in a known range of pods.
func TestWorldWithoutPodRanges(t *testing.T) {
	for _, cidr := range []string{"10.244.0.0/16", "10.244.3.0/24", "10.0.0.0/8"} {
		pods := netip.MustParsePrefix("10.244.0.0/16")
		v := read(t, bare(cidr, ""), func(o *Objects) { o.PodRanges = []netip.Prefix{pods} })
		unknown := 0
		for _, e := range v.Outside() {
			if in := pods.Contains(e.Addrs[0]); in != e.PodRange {
				t.Errorf("%s: %s has %s, in the pods' range: %t", cidr, e.Name, e.Addrs[0], e.PodRange)
			}
			if e.PodRange {
				unknown++
			}
		}
		if want := cidr != "10.0.0.0/8"; want != (unknown == 1) {
			t.Errorf("%s: %d ranges of unknown pods", cidr, unknown)
		}
		if slices.ContainsFunc(v.world(), func(e *End) bool { return e.PodRange }) {
			t.Errorf("%s: the world has a range of pods", cidr)
		}
	}
}
