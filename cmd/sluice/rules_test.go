//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	ct "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"sluice/bench/testbed/lab"
	"sluice/cmd/sluice/agent/status"
	"sluice/cmd/sluice/agent/telemetry"
	"sluice/filter/iptables"
)

func TestRulesPrintsWhatRunKeeps(t *testing.T) {
	tests := map[string]struct {
		args []string
		opts iptables.Options
	}{
		"defaults": {nil, iptables.Defaults},
		"all flags": {
			[]string{"--allowed-mark", "0x100", "--revoked-mark", "512", "--queue-first", "9", "--queues", "1", "--source-share", "50", "--fail", "open", "--iptables", "legacy"},
			iptables.Options{AllowedMark: 0x100, RevokedMark: 0x200, FirstQueue: 9, Queues: 1, SourceShare: 50, FailOpen: true, Backend: iptables.Legacy},
		},
	}
	judged := iptables.Defaults
	judged.NodeSources = []netip.Prefix{netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00::/64")}
	tests["node sources"] = struct {
		args []string
		opts iptables.Options
	}{[]string{"--node-sources", "10.1.0.0/24,fd00::/64"}, judged}
	if text := judged.Wanted(iptables.IPv6); !strings.Contains(text, "-A SLUICE-INPUT -s fd00::/64 -g SLUICE-NODE\n") {
		t.Errorf("no rule for the source:\n%s", text)
	}
	rejecting := iptables.Defaults
	rejecting.Reject = true
	tests["reject"] = struct {
		args []string
		opts iptables.Options
	}{[]string{"--deny-with", "reject"}, rejecting}
	bridged := rejecting
	bridged.BridgePorts = true
	tests["bridge ports"] = struct {
		args []string
		opts iptables.Options
	}{[]string{"--deny-with", "reject", "--bridge-ports"}, bridged}
	if text := bridged.Wanted(iptables.IPv4); strings.Count(text, "--physdev-is-in") == 0 || !strings.Contains(text, "BROADCAST,MULTICAST") {
		t.Errorf("the rules about ports of a bridge are missing:\n%s", text)
	}
	guarded := iptables.Defaults
	guarded.Guarded = true
	tests["guarded"] = struct {
		args []string
		opts iptables.Options
	}{[]string{"--guarded"}, guarded}
	if text := guarded.Wanted(iptables.IPv4); strings.Contains(text, "SOURCE") || strings.Contains(text, "PREROUTING") {
		t.Errorf("with the guard there are source rules:\n%s", text)
	}
	for name, tt := range tests {
		status, stdout, stderr := sluice(t, append([]string{"rules"}, tt.args...)...)
		if want := "# IPv4\n" + tt.opts.Wanted(iptables.IPv4) + "# IPv6\n" + tt.opts.Wanted(iptables.IPv6); status != 0 || stdout != want {
			t.Errorf("%s: status %d, %s, it prints\n%s\nwant\n%s", name, status, stderr, stdout, want)
		}
	}
}

func TestRulesUsageErrors(t *testing.T) {
	tests := map[string]struct{ args, message string }{
		"fail":       {"--fail maybe", "give open or closed"},
		"backend":    {"--iptables nftables", "give one of auto, nft, legacy"},
		"mark":       {"--allowed-mark green", "such as 0x10"},
		"long mark":  {"--revoked-mark 0x100000000", "32-bit number"},
		"two bits":   {"--allowed-mark 0x3", "exactly one"},
		"one bit":    {"--allowed-mark 0x20", "two different bits"},
		"queues":     {"--queues 0", "from 1 to 65535"},
		"first":      {"--queue-first -1", "from 0 to 65534"},
		"last queue": {"--queue-first 65533", "give 1 to 2"},
		"argument":   {"now", "now"},
		"words":      {"--words=xx", `"xx" for --words: give true or false (see`},
	}
	for name, tt := range tests {
		status, stdout, stderr := sluice(t, append([]string{"rules"}, strings.Fields(tt.args)...)...)
		if status != exitFailed || !strings.Contains(stderr, tt.message) || stdout != "" {
			t.Errorf("%s: status %d, %q, want %d and %q", name, status, stderr, exitFailed, tt.message)
		}
	}
}

// iptables-restore and ip6tables-restore accept the printed rules.
func TestRulesPrintsWhatRestoreTakes(t *testing.T) {
	node := lab.ForTest(t, lab.Options{}).Nodes[0]
	_, stdout, _ := sluice(t, "rules")
	v4, v6, _ := strings.Cut(stdout, "# IPv6\n")
	for command, text := range map[string]string{"iptables-restore": v4, "ip6tables-restore": v6} {
		restore := exec.Command(command, "--noflush")
		restore.Stdin = strings.NewReader(text)
		if _, err := node.Output(restore); err != nil {
			t.Errorf("%s: %v", command, err)
		}
	}
}

// rulesRemove runs sluice rules --remove on a node. It looks for a running agent only if
// args contain --socket.
func rulesRemove(t *testing.T, node *lab.Node, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	if err := node.Do(func() error {
		status, stdout, stderr = sluice(t, append([]string{"rules", "--remove", "--socket", ""}, args...)...)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return status, stdout, stderr
}

func TestRulesRemove(t *testing.T) {
	node := lab.ForTest(t, lab.Options{}).Nodes[0]
	const nothing = "There was nothing to remove.\n"
	if status, stdout, stderr := rulesRemove(t, node); status != 0 || stdout != nothing {
		t.Fatalf("with nothing to remove: status %d, %s%s", status, stdout, stderr)
	}
	createLeftovers(t, node)
	status, stdout, stderr := rulesRemove(t, node)
	for _, line := range []string{
		"removed iptables-nft: mangle rule POSTROUTING -j SLUICE",
		"removed ip6tables-nft: mangle chain SLUICE, rules: 13",
		"removed iptables-legacy: mangle chain SLUICE-ALLOW, rules: 2",
		"removed ip6tables-legacy: mangle rule POSTROUTING -j SLUICE",
		"removed the marks of 2 connections",
	} {
		if !strings.Contains(stdout, line+"\n") {
			t.Errorf("there is no line %q in\n%s", line, stdout)
		}
	}
	if status != 0 || strings.Count(stdout, "\n") != 4*5+1 {
		t.Errorf("status %d, %s\n%s", status, stderr, stdout)
	}
	for _, name := range []string{"iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save"} {
		if text, err := node.Output(exec.Command(name)); err != nil || strings.Contains(text, "SLUICE") {
			t.Errorf("%s: %v\n%s", name, err, text)
		}
	}
	if got := connectionMarks(t, node); len(got) != 3 || got[1] != 1 || got[2] != 0 || got[3] != 0x40 {
		t.Errorf("the marks are %#x", got)
	}
	if status, stdout, stderr := rulesRemove(t, node); status != 0 || stdout != nothing {
		t.Errorf("again: status %d, %s%s", status, stdout, stderr)
	}
}

// createLeftovers creates on a node the rules that agents of both backends leave, and three
// connections: two with marks of an agent, and one with only another program's mark.
func createLeftovers(t *testing.T, node *lab.Node) {
	t.Helper()
	for _, b := range []iptables.Backend{iptables.NFT, iptables.Legacy} {
		if err := node.Do(func() error {
			tables, err := iptables.Open(t.Context(), b, slog.New(slog.DiscardHandler))
			if err != nil {
				return err
			}
			return iptables.New(iptables.Defaults, tables, nil).Apply(context.Background())
		}); err != nil {
			t.Fatal(err)
		}
	}
	c := dialConntrack(t, node)
	defer c.Close()
	for port, mark := range map[uint16]uint32{1: 0x11, 2: 0x20, 3: 0x40} {
		if err := c.Create(ct.NewFlow(17, 0, netip.MustParseAddr("10.77.0.1"), netip.MustParseAddr("10.77.0.2"), 1000, port, 600, mark)); err != nil {
			t.Fatal(err)
		}
	}
}

func dialConntrack(t *testing.T, node *lab.Node) *ct.Conn {
	t.Helper()
	c, err := ct.Dial(&netlink.Config{NetNS: node.NetNS()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// connectionMarks returns the marks of the node's connections by destination port.
func connectionMarks(t *testing.T, node *lab.Node) map[uint16]uint32 {
	t.Helper()
	c := dialConntrack(t, node)
	defer c.Close()
	flows, err := c.Dump(nil)
	if err != nil {
		t.Fatal(err)
	}
	marks := map[uint16]uint32{}
	for _, f := range flows {
		marks[f.TupleOrig.Proto.DestinationPort] = f.Mark
	}
	return marks
}

// sluice rules --remove warns of an agent that still runs, because the agent would restore the
// rules.
func TestRulesRemoveWarnsOfAgents(t *testing.T) {
	node := lab.ForTest(t, lab.Options{}).Nodes[0]
	path := filepath.Join(t.TempDir(), "s")
	check := func(when string, wantStatus int, wantErr, wantOut string) {
		t.Helper()
		status, stdout, stderr := rulesRemove(t, node, "--socket", path)
		if status != wantStatus || stderr != wantErr || !strings.Contains(stdout, wantOut) {
			t.Errorf("%s: status %d, %q, want %d and %q:\n%s", when, status, stderr, wantStatus, wantErr, stdout)
		}
	}
	check("without an agent", 0, "", "nothing to remove")
	killed, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	killed.SetUnlinkOnClose(false)
	killed.Close()
	check("after a killed agent", 0, "", "removed the socket "+path)
	check("after the removal", 0, "", "nothing to remove")
	createLeftovers(t, node)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		telemetry.Serve(ctx, telemetry.Options{Socket: path}, func() *telemetry.State { return &telemetry.State{Now: time.Now()} })
	}()
	for end := time.Now().Add(waitTimeout); ; time.Sleep(time.Millisecond) {
		if _, err := status.Ask(ctx, path); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	check("with a running agent", exitFindings, fmt.Sprintf("sluice: warning: an agent still runs (process %d) and restores what is removed: stop it first\n", os.Getpid()), "removed the marks")
	stop()
	<-ended
	check("after the agent's end", 0, "", "nothing to remove")
}

// Without privileges, sluice rules --remove removes nothing and asks to be run as root.
func TestRulesRemoveWithoutPrivilege(t *testing.T) {
	done := make(chan struct{})
	var status int
	var stdout, stderr string
	go func() {
		defer close(done)
		if os.Geteuid() == 0 {
			runtime.LockOSThread() // never unlocked: no other goroutine may use this thread
			if err := dropPrivilege(); err != nil {
				t.Errorf("drop privileges: %v", err)
				return
			}
		}
		status, stdout, stderr = sluice(t, "rules", "--remove")
	}()
	<-done
	if strings.Contains(stderr, iptables.ErrNotInstalled.Error()) {
		t.Skip("needs iptables: install the package iptables")
	}
	if status != exitFailed || stdout != "" || !strings.Contains(stderr, "run as root") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
}

// dropPrivilege removes CAP_NET_ADMIN from this thread and the processes that it starts. It
// first enters a new network namespace, so that the machine's network cannot be changed.
func dropPrivilege() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_NET_ADMIN, 0, 0, 0); err != nil {
		return err
	}
	var caps [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return err
	}
	caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	caps[0].Permitted &^= 1 << unix.CAP_NET_ADMIN
	return unix.Capset(&header, &caps[0])
}

// The old flag --judged-mark still sets --allowed-mark, and prints a notice. If both flags are
// given, their values must be equal.
func TestDeprecatedFlags(t *testing.T) {
	status, stdout, stderr := sluice(t, "rules", "--judged-mark", "0x100")
	if status != 0 || !strings.Contains(stdout, "0x100") || stderr != "sluice: --judged-mark is deprecated: use --allowed-mark\n" {
		t.Errorf("status %d, %s%s", status, stderr, stdout)
	}
	if _, help, _ := sluice(t, "rules", "--help"); strings.Contains(help, "judged-mark") {
		t.Errorf("the help names the old flag:\n%s", help)
	}
	for _, names := range [][2]string{{"--judged-mark", "--allowed-mark"}, {"--allowed-mark", "--judged-mark"}} {
		if status, _, stderr := sluice(t, "rules", names[0], "0x100", names[1], "256"); status != 0 {
			t.Errorf("%v with the same value: status %d, %s", names, status, stderr)
		}
		status, _, stderr := sluice(t, "rules", names[0], "0x100", names[1], "0x200")
		if status != exitFailed || !strings.Contains(stderr, names[0]+" is the same flag and is 0x100") {
			t.Errorf("%v with different values: status %d, %s", names, status, stderr)
		}
	}
}
