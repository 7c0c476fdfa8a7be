//go:build linux

package iptables

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// ErrNotInstalled reports that the node lacks iptables.
var ErrNotInstalled = errors.New("iptables is not installed: install it (Debian, Ubuntu: apt-get install iptables)")

// tool is an iptables command on this node, for one family and one backend.
type tool struct {
	family     Family
	name, path string
	backend    Backend
}

// lookPath finds a command in PATH, or else in the directories of system commands, which a
// service often lacks in its PATH.
func lookPath(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, filepath.Base(name))); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("command %s not found: %w", filepath.Base(name), ErrNotInstalled)
}

// findTools returns the commands of a family on this node, at most one for each backend.
// The backend of plain "iptables" comes first.
func findTools(ctx context.Context, f Family) []tool {
	var tools []tool
	plain := tool{family: f, name: f.command()}
	if path, err := lookPath(plain.name); err == nil {
		plain.path, plain.backend = path, Legacy
		// Versions before 1.8 support only the legacy backend and do not print its name.
		if out, err := command(ctx, path, "--version").Output(); err == nil && strings.Contains(string(out), "nf_tables") {
			plain.backend = NFT
		}
	}
	for _, b := range []Backend{NFT, Legacy} {
		t := tool{family: f, name: f.command() + "-" + string(b), backend: b}
		path, err := lookPath(t.name)
		switch {
		case err == nil:
			t.path = path
		case plain.backend == b:
			t = plain
		default:
			continue
		}
		tools = append(tools, t)
	}
	if len(tools) == 2 && tools[1].backend == plain.backend {
		slices.Reverse(tools)
	}
	return tools
}

// use describes how other programs use a backend on this node.
type use struct {
	kubelet bool // kubelet's chains are in this backend
	rules   int  // number of rules of other programs
}

// usage counts the rules in all tables of a backend, for both families. It runs iptables-save and
// ip6tables-save, which read only existing tables, so that usage creates no table. The commands
// stop at the first rule that they cannot print; in that case addUnprintable counts the rules.
func usage(ctx context.Context, tools []tool) (use, error) {
	var u use
	for _, t := range tools {
		path, err := lookPath(t.path + "-save")
		if err != nil {
			return use{}, err
		}
		out, err := command(ctx, path).Output()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(exit.Stderr)))
		}
		if err != nil {
			err = explain(err)
		}
		if errors.Is(err, ErrPrivilege) || ctx.Err() != nil {
			return use{}, fmt.Errorf("%s: %w", path, err)
		}
		if err == nil && !strings.Contains(string(out), "is incompatible, use 'nft' tool") {
			u.add(string(out))
			continue
		}
		if second := u.addUnprintable(ctx, t); second != nil {
			return use{}, fmt.Errorf("%s: %w", path, errors.Join(err, second))
		}
	}
	return u, nil
}

// addUnprintable counts the rules of a backend that iptables-save cannot print completely.
func (u *use) addUnprintable(ctx context.Context, t tool) error {
	if t.backend == NFT {
		return nftTable{t.family, table}.count(u)
	}
	return u.addListings(ctx, t)
}

// add counts the rules in the output of iptables-save.
func (u *use) add(saved string) {
	for line := range strings.Lines(saved) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case strings.HasPrefix(fields[0], ":") && isKubelets(fields[0][1:]):
			u.kubelet = true
		case fields[0] == "-A" && !isOwned(fields[1]) && !leadsTo(line, isOwned):
			u.rules++ // Sluice's own rules are not counted: an earlier agent chose their backend
		}
	}
}

// isKubelets reports whether kubelet owns a chain. kubelet creates these chains in the backend
// that the node uses.
func isKubelets(chain string) bool {
	return chain == "KUBE-IPTABLES-HINT" || chain == "KUBE-KUBELET-CANARY"
}

// choose returns the backend that other programs use, and the reason for the choice.
func choose(nft, legacy use, usual Backend) (Backend, string) {
	switch {
	case nft.kubelet && !legacy.kubelet:
		return NFT, "kubelet's chains are there"
	case legacy.kubelet && !nft.kubelet:
		return Legacy, "kubelet's chains are there"
	case nft.rules > legacy.rules:
		return NFT, "most of the node's rules are there"
	case legacy.rules > nft.rules:
		return Legacy, "most of the node's rules are there"
	}
	return usual, "it is what the command iptables stands for"
}

// Open returns the tables for the rules: the tables of the wanted backend or, with Auto, of the
// backend that the node's other rules use. IPv4 is required. If IPv6 is not available, Open logs
// that once and returns only the IPv4 table.
func Open(ctx context.Context, want Backend, logger *slog.Logger) ([]Table, error) {
	tools := map[Family][]tool{}
	for _, f := range Families {
		tools[f] = findTools(ctx, f)
	}
	if len(tools[IPv4]) == 0 {
		return nil, ErrNotInstalled
	}
	backend, why := want, "by option"
	if want == Auto {
		var err error
		if backend, why, err = detect(ctx, tools); err != nil {
			return nil, fmt.Errorf("find out which iptables the node uses: %w", err)
		}
	}
	logger.Info("iptables chosen", "backend", string(backend), "because", why)
	var tables []Table
	for _, f := range Families {
		t, err := openFamily(f, backend, tools[f])
		switch {
		case err == nil && backend == NFT:
			tables = append(tables, newPlace(t, logger))
		case err == nil:
			tables = append(tables, t)
		case f == IPv4:
			return nil, err
		case errors.Is(err, errNoIPv6):
			logger.Info("IPv6 is not filtered: the kernel has it switched off")
		default:
			logger.Warn("IPv6 is not filtered, and policies do not hold for it", "err", err)
		}
	}
	return tables, nil
}

// detect returns the backend that other programs use, and the reason for the choice. If the node
// has only one backend, detect returns that one.
func detect(ctx context.Context, tools map[Family][]tool) (Backend, string, error) {
	usual := tools[IPv4][0].backend
	if len(tools[IPv4]) == 1 {
		return usual, "there is no other", nil
	}
	used := map[Backend]use{}
	for _, b := range []Backend{NFT, Legacy} {
		var err error
		if used[b], err = usage(ctx, slices.Concat(of(b, tools[IPv4]), of(b, tools[IPv6]))); err != nil {
			return "", "", err
		}
	}
	backend, why := choose(used[NFT], used[Legacy], usual)
	return backend, why, nil
}

// of returns the tools of a backend.
func of(b Backend, tools []tool) []tool {
	return slices.DeleteFunc(slices.Clone(tools), func(t tool) bool { return t.backend != b })
}

// errNoIPv6 reports that the kernel runs without IPv6.
var errNoIPv6 = errors.New("the kernel has IPv6 switched off")

// openFamily opens a family's table in a backend.
func openFamily(f Family, b Backend, tools []tool) (*kernelTable, error) {
	if _, err := os.Stat("/proc/sys/net/ipv6"); f == IPv6 && errors.Is(err, fs.ErrNotExist) {
		return nil, errNoIPv6
	}
	tools = of(b, tools)
	if len(tools) == 0 {
		return nil, fmt.Errorf("no %s for the %s backend: %w", f.command(), b, ErrNotInstalled)
	}
	return openTable(f, tools[0])
}

// OpenAll returns all tables from which [Cleanup] may have to remove rules: the tables mangle
// and filter of both backends and both families, and the separate tables in nf_tables. It omits
// a legacy table that does not exist, because reading it would create it.
func OpenAll(ctx context.Context) ([]Table, error) {
	var tables []Table
	for _, f := range Families {
		tools := findTools(ctx, f)
		if f == IPv4 && len(tools) == 0 {
			return nil, ErrNotInstalled
		}
		for _, t := range tools {
			opened, err := openFamily(f, t.backend, []tool{t})
			if errors.Is(err, errNoIPv6) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if t.backend == Legacy {
				if _, err := legacyTables(f); err != nil {
					return nil, err
				}
			}
			if opened.exists() {
				tables = append(tables, opened)
			}
			if opened.filter.exists() {
				tables = append(tables, opened.filter)
			}
		}
		own := newOwnTable(f)
		chains, err := own.Chains(ctx)
		if err != nil && slices.ContainsFunc(tools, func(t tool) bool { return t.backend == NFT }) {
			return nil, err // without a command for nft, an error may mean that the kernel lacks nf_tables
		}
		if len(chains) > 0 {
			tables = append(tables, own)
		}
	}
	return tables, nil
}

// Others returns the tables of OpenAll except inUse. An earlier agent with another backend may
// have left rules there. Packets would traverse these rules too, until [Cleanup] removes them.
// Cleanup empties a separate table (an ownTable) that Others has returned, but does not delete
// it: see ownTable.Leave.
func Others(ctx context.Context, inUse []Table) ([]Table, error) {
	all, err := OpenAll(ctx)
	if err != nil {
		return nil, err
	}
	for _, t := range all {
		if own, is := t.(*ownTable); is {
			own.stays = true
		}
	}
	return slices.DeleteFunc(all, func(t Table) bool {
		return slices.ContainsFunc(inUse, func(u Table) bool {
			c := u.companion()
			return u.String() == t.String() || c != nil && c.String() == t.String()
		})
	}), nil
}

// legacyTables returns the names of the legacy tables of this network namespace.
func legacyTables(f Family) ([]string, error) {
	// Use thread-self, because a network namespace belongs to a thread.
	path := map[Family]string{IPv4: "/proc/thread-self/net/ip_tables_names", IPv6: "/proc/thread-self/net/ip6_tables_names"}[f]
	names, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, ErrPrivilege
	}
	if err != nil {
		return nil, fmt.Errorf("read the names of legacy tables: %w", err)
	}
	return strings.Fields(string(names)), nil
}
