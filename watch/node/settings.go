package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// DefaultSysctls is the directory of the kernel's settings, as seen in the process's own
// network namespace.
const DefaultSysctls = "/proc/sys"

// SettingProblem is a kernel setting that lets some packets bypass all policies.
type SettingProblem struct {
	Setting string // name of a sysctl or of a module
	Where   string // the interface; if there are several, one of them and the number of others
	Detail  string
	Hint    string // how to correct it: a command
}

const (
	bridgeSysctls = "net.bridge."
	callIPTables  = bridgeSysctls + "bridge-nf-call-iptables"
	callIP6Tables = bridgeSysctls + "bridge-nf-call-ip6tables"
	vlanTagged    = bridgeSysctls + "bridge-nf-filter-vlan-tagged"
)

// CheckSettings reads the kernel settings below the directory root. It returns the settings
// that let packets between pods on the given bridges bypass iptables, or the missing module
// that has these settings. Without bridges, it returns nil. "guarded" means that the guard
// drops frames with VLAN tags at the pods' interfaces, so that the setting for such frames need
// not be checked.
func CheckSettings(root string, bridges []Link, guarded bool) (found []SettingProblem) {
	if len(bridges) == 0 {
		return nil // routed packets always pass iptables
	}
	s := sysctls(root)
	if _, err := os.Stat(s.path("net.bridge")); errors.Is(err, fs.ErrNotExist) {
		for _, b := range bridges {
			found = append(found, SettingProblem{
				Setting: "br_netfilter", Where: b.Name,
				Detail: fmt.Sprintf("the module is not loaded: packets between pods on bridge %s bypass iptables, so no policy applies to them", b.Name),
				Hint:   "modprobe br_netfilter && sysctl -w " + strings.Join([]string{callIPTables + "=1", callIP6Tables + "=1", vlanTagged + "=1"}, " "),
			})
		}
		return found
	}
	for _, b := range bridges {
		if !b.CallIPTables {
			found = s.want(found, callIPTables, b, "IPv4 packets between pods on bridge %s bypass iptables, so no policy applies to them")
		}
		if _, err := os.Stat(s.path("net.ipv6")); err == nil && !b.CallIP6Tables {
			found = s.want(found, callIP6Tables, b, "IPv6 packets between pods on bridge %s, also between the link-local addresses that every pod has, bypass iptables, so no policy applies to them")
		}
		if guarded {
			continue
		}
		found = s.want(found, vlanTagged, b, "frames with a VLAN tag between pods on bridge %s bypass iptables: a pod that may send raw packets can tag them with VLAN 0, which the receiver ignores, so no policy applies to them")
	}
	slices.SortStableFunc(found, func(a, b SettingProblem) int { return strings.Compare(a.Setting, b.Setting) })
	return found
}

// CheckSources reads the settings from root, and returns those that let pods on these
// interfaces send packets with sources in 127.0.0.0/8. Such packets count as the node's
// own, and may reach every pod. Call it only on a node without rules that drop forged
// sources. The problem is common: kube-proxy sets route_localnet on most nodes, and
// rp_filter is 0 on many.
func CheckSources(root string, links []Link) []SettingProblem {
	s := sysctls(root)
	var open []string
	for _, l := range links {
		// The kernel combines the setting for all interfaces with the interface's own:
		// route_localnet is on if it is on in one of the two, and the higher rp_filter applies.
		routed := max(s.number("all", "route_localnet"), s.number(l.Name, "route_localnet"))
		if filter := max(s.number("all", "rp_filter"), s.number(l.Name, "rp_filter")); routed > 0 && filter == 0 {
			open = append(open, l.Name)
		}
	}
	if len(open) == 0 {
		return nil
	}
	where := open[0]
	if more := len(open) - 1; more > 0 {
		where += fmt.Sprintf(" and %d more", more)
	}
	return []SettingProblem{{
		Setting: "net.ipv4.conf.all.rp_filter", Where: where,
		Detail: "is 0, with route_localnet 1, and this node's iptables cannot drop forged sources: pods' packets with sources in 127.0.0.0/8 pass as this node's own",
		Hint:   "sysctl -w net.ipv4.conf.all.rp_filter=2",
	}}
}

// sysctls is the path of a directory with the kernel's settings.
type sysctls string

func (s sysctls) path(name string) string {
	return filepath.Join(string(s), strings.ReplaceAll(name, ".", "/"))
}

// number returns an IPv4 setting of an interface. It returns 0 if the setting cannot be
// read, for example because the interface has been deleted.
func (s sysctls) number(link, setting string) int {
	text, err := os.ReadFile(filepath.Join(string(s), "net/ipv4/conf", link, setting))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// want appends a problem to the list if a setting is 0 or cannot be read.
func (s sysctls) want(found []SettingProblem, name string, b Link, detail string) []SettingProblem {
	text, err := os.ReadFile(s.path(name))
	p := SettingProblem{Setting: name, Where: b.Name, Hint: "sysctl -w " + name + "=1"}
	switch value := strings.TrimSpace(string(text)); {
	case err != nil:
		p.Detail = fmt.Sprintf("%v: cannot tell whether iptables sees packets between pods on bridge %s", err, b.Name)
	case value != "0":
		return found
	default:
		p.Detail = "is 0: " + fmt.Sprintf(detail, b.Name)
	}
	return append(found, p)
}
