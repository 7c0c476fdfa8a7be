package node

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// settings creates a directory with the given kernel settings and returns its path.
func settings(t *testing.T, values map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for path, value := range values {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(value+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	fileIPv4 = "net/bridge/bridge-nf-call-iptables"
	fileIPv6 = "net/bridge/bridge-nf-call-ip6tables"
	fileVLAN = "net/bridge/bridge-nf-filter-vlan-tagged"
	fileV6   = "net/ipv6/conf/all/forwarding"
)

// For bridges of pods, each setting that lets packets bypass iptables is reported with the
// command that corrects it.
func TestCheckSettings(t *testing.T) {
	cni := []Link{{Index: 3, Name: "cni0", Kind: "bridge"}}
	good := map[string]string{fileIPv4: "1", fileIPv6: "1", fileVLAN: "1", fileV6: "1"}
	with := func(changes ...string) map[string]string {
		m := make(map[string]string)
		for k, v := range good {
			m[k] = v
		}
		for i := 0; i < len(changes); i += 2 {
			if m[changes[i]] = changes[i+1]; changes[i+1] == "" {
				delete(m, changes[i])
			}
		}
		return m
	}
	for name, tt := range map[string]struct {
		values  map[string]string
		bridges []Link
		want    []string // settings and hints
	}{
		"no bridge with pods":     {map[string]string{}, nil, nil},
		"no bridge, all off":      {with(fileIPv4, "0", fileIPv6, "0", fileVLAN, "0"), nil, nil},
		"all on":                  {good, cni, nil},
		"IPv4 off":                {with(fileIPv4, "0"), cni, []string{"net.bridge.bridge-nf-call-iptables", "sysctl -w net.bridge.bridge-nf-call-iptables=1"}},
		"IPv6 off":                {with(fileIPv6, "0"), cni, []string{"net.bridge.bridge-nf-call-ip6tables", "sysctl -w net.bridge.bridge-nf-call-ip6tables=1"}},
		"VLAN off":                {with(fileVLAN, "0"), cni, []string{"net.bridge.bridge-nf-filter-vlan-tagged", "sysctl -w net.bridge.bridge-nf-filter-vlan-tagged=1"}},
		"VLAN off, guarded":       {with(fileVLAN, "0"), cni, nil},
		"no IPv6 in the kernel":   {with(fileIPv6, "0", fileV6, ""), cni, nil},
		"the bridge's own":        {with(fileIPv4, "0", fileIPv6, "0"), []Link{{Name: "cni0", CallIPTables: true, CallIP6Tables: true}}, nil},
		"the bridge's own, IPv4":  {with(fileIPv4, "0", fileIPv6, "0"), []Link{{Name: "cni0", CallIPTables: true}}, []string{"net.bridge.bridge-nf-call-ip6tables", "sysctl -w net.bridge.bridge-nf-call-ip6tables=1"}},
		"no br_netfilter":         {map[string]string{fileV6: "1"}, cni, []string{"br_netfilter", "modprobe br_netfilter && sysctl -w net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1 net.bridge.bridge-nf-filter-vlan-tagged=1"}},
		"a setting is missing":    {with(fileVLAN, ""), cni, []string{"net.bridge.bridge-nf-filter-vlan-tagged", "sysctl -w net.bridge.bridge-nf-filter-vlan-tagged=1"}},
		"two bridges, one is set": {with(fileIPv4, "0"), []Link{{Name: "a", CallIPTables: true}, {Name: "b"}}, []string{"net.bridge.bridge-nf-call-iptables", "sysctl -w net.bridge.bridge-nf-call-iptables=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, p := range CheckSettings(settings(t, tt.values), tt.bridges, strings.HasSuffix(name, "guarded")) {
				got = append(got, p.Setting, p.Hint)
				if !strings.Contains(p.Detail, "bridge "+p.Where) {
					t.Errorf("%q does not name the bridge", p.Detail)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// The kernel accepts loopback sources from an interface if route_localnet is on and
// rp_filter is off, where each may be set for the interface or for all interfaces.
func TestCheckSources(t *testing.T) {
	const all, one = "net/ipv4/conf/all/", "net/ipv4/conf/cali1.2/"
	links := []Link{{Name: "cali1.2"}, {Name: "gone"}}
	for name, tt := range map[string]struct {
		values map[string]string
		want   string // the expected Where
	}{
		"no settings at all":      {map[string]string{}, ""},
		"the default settings":    {map[string]string{all + "route_localnet": "0", all + "rp_filter": "0", one + "route_localnet": "0", one + "rp_filter": "0"}, ""},
		"kube-proxy, no rp":       {map[string]string{all + "route_localnet": "1", all + "rp_filter": "0", one + "rp_filter": "0"}, "cali1.2 and 1 more"},
		"kube-proxy, rp of all":   {map[string]string{all + "route_localnet": "1", all + "rp_filter": "2", one + "rp_filter": "0"}, ""},
		"kube-proxy, rp of one":   {map[string]string{all + "route_localnet": "1", all + "rp_filter": "0", one + "rp_filter": "1", "net/ipv4/conf/gone/rp_filter": "1"}, ""},
		"the interface's own":     {map[string]string{all + "route_localnet": "0", all + "rp_filter": "0", one + "route_localnet": "1", one + "rp_filter": "0"}, "cali1.2"},
		"the interface's own, rp": {map[string]string{all + "route_localnet": "0", all + "rp_filter": "0", one + "route_localnet": "1", one + "rp_filter": "2"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			where := ""
			for _, p := range CheckSources(settings(t, tt.values), links) {
				where += p.Where
			}
			if where != tt.want {
				t.Errorf("%q, want %q", where, tt.want)
			}
		})
	}
}
