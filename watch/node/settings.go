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

// DefaultSysctls is the directory of the kernel's settings. For settings of a network
// namespace, a process reads those of its own.
const DefaultSysctls = "/proc/sys"

// SettingProblem is a setting of the kernel by which packets between pods reach their
// receiver without passing iptables, and so without a verdict.
type SettingProblem struct {
	Setting string // a sysctl's name, or that of a module
	Where   string // the interface, and how many more
	Detail  string
	Hint    string // the command that sets it right
}

const (
	bridgeSysctls = "net.bridge."
	callIPTables  = bridgeSysctls + "bridge-nf-call-iptables"
	callIP6Tables = bridgeSysctls + "bridge-nf-call-ip6tables"
	vlanTagged    = bridgeSysctls + "bridge-nf-filter-vlan-tagged"
)

// CheckSettings lists the settings, read from root, by which packets between pods on
// these bridges pass iptables by. A kernel that has no such settings is a problem if
// there is a bridge, and none otherwise. With guarded, pods' interfaces let no VLAN tags
// pass, so that the setting for those does not matter.
func CheckSettings(root string, bridges []Link, guarded bool) (found []SettingProblem) {
	if len(bridges) == 0 {
		return nil // what is routed always passes iptables
	}
	s := sysctls(root)
	if _, err := os.Stat(s.path("net.bridge")); errors.Is(err, fs.ErrNotExist) {
		for _, b := range bridges {
			found = append(found, SettingProblem{
				Setting: "br_netfilter", Where: b.Name,
				Detail: fmt.Sprintf("the module is not loaded: packets between pods on bridge %s pass iptables by, and no policy holds between them", b.Name),
				Hint:   "modprobe br_netfilter && sysctl -w " + strings.Join([]string{callIPTables + "=1", callIP6Tables + "=1", vlanTagged + "=1"}, " "),
			})
		}
		return found
	}
	for _, b := range bridges {
		if !b.CallIPTables {
			found = s.want(found, callIPTables, b, "IPv4 packets between pods on bridge %s pass iptables by, and no policy holds between them")
		}
		if _, err := os.Stat(s.path("net.ipv6")); err == nil && !b.CallIP6Tables {
			found = s.want(found, callIP6Tables, b, "IPv6 packets between pods on bridge %s, also those between link-local addresses that every pod has, pass iptables by, and no policy holds between them")
		}
		if guarded {
			continue
		}
		found = s.want(found, vlanTagged, b, "frames with a VLAN tag between pods on bridge %s pass iptables by: a pod that may send raw packets tags them with VLAN 0, which its receiver takes as untagged, and no policy holds for them")
	}
	slices.SortStableFunc(found, func(a, b SettingProblem) int { return strings.Compare(a.Setting, b.Setting) })
	return found
}

// CheckSources lists the settings, read from root, by which the node takes packets from
// these interfaces, which lead to pods, with sources in 127.0.0.0/8. They count as the
// node's own, which may reach every pod. It matters only where no rule drops forged
// sources: kube-proxy sets route_localnet on most nodes, and rp_filter is 0 on many.
func CheckSources(root string, links []Link) []SettingProblem {
	s := sysctls(root)
	var open []string
	for _, l := range links {
		// The kernel takes route_localnet if either is set, and the higher rp_filter.
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
		Detail: "is 0, with route_localnet 1, and this node's iptables cannot drop forged sources: packets of pods with sources in 127.0.0.0/8 pass as this node's own",
		Hint:   "sysctl -w net.ipv4.conf.all.rp_filter=2",
	}}
}

// sysctls is the folder with the kernel's settings.
type sysctls string

func (s sysctls) path(name string) string {
	return filepath.Join(string(s), strings.ReplaceAll(name, ".", "/"))
}

// number is an interface's setting for IPv4; 0 if it cannot be read, as of an interface
// that has gone.
func (s sysctls) number(link, setting string) int {
	text, err := os.ReadFile(filepath.Join(string(s), "net/ipv4/conf", link, setting))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}

// want adds a problem if a setting is off, or cannot be read.
func (s sysctls) want(found []SettingProblem, name string, b Link, detail string) []SettingProblem {
	text, err := os.ReadFile(s.path(name))
	p := SettingProblem{Setting: name, Where: b.Name, Hint: "sysctl -w " + name + "=1"}
	switch value := strings.TrimSpace(string(text)); {
	case err != nil:
		p.Detail = fmt.Sprintf("%v: it is not known whether iptables sees packets between pods on bridge %s", err, b.Name)
	case value != "0":
		return found
	default:
		p.Detail = "is 0: " + fmt.Sprintf(detail, b.Name)
	}
	return append(found, p)
}
