//go:build linux

package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"
)

// lockTimeout bounds the wait of a command for the lock of the legacy backend. Kubernetes
// components hold the lock for tenths of a second.
const lockTimeout = 5 * time.Second

// restoreTimeout bounds one run of iptables-restore, so that a hanging command does not stop all
// repairs.
const restoreTimeout = 20 * time.Second

// errSlow is the cancellation cause of a command that ran longer than restoreTimeout.
var errSlow = fmt.Errorf("it took longer than %v", restoreTimeout)

// ErrPrivilege reports that the kernel denied a change for lack of privilege.
var ErrPrivilege = errors.New("no privilege to change the node's packet filter: run as root, or with the capabilities NET_ADMIN and NET_RAW")

// kernelTable is the table mangle or filter of the kernel, accessed with the iptables commands.
type kernelTable struct {
	noChoice
	family  Family
	name    string
	in      *layout
	filter  *kernelTable // the table filter of the same command; nil if this is that table
	watched atomic.Bool  // see Table.attend
	backend Backend
	reader  *goiptables.IPTables
	path    string   // path of iptables
	restore string   // path of iptables-restore
	wait    []string // arguments that make both commands wait for the lock
	// byHandle is set after Restore has failed. While it is set, Rules reads the chains of
	// other programs over netlink instead of with iptables, and Restore deletes rules by the
	// handles that netlink reports. It is atomic because tests use a table concurrently with
	// the Manager.
	byHandle atomic.Bool
}

// openTable returns the mangle table of t, with its companion. It detects which options the command supports.
func openTable(f Family, t tool) (*kernelTable, error) {
	protocol := goiptables.ProtocolIPv4
	if f == IPv6 {
		protocol = goiptables.ProtocolIPv6
	}
	reader, err := goiptables.New(goiptables.IPFamily(protocol), goiptables.Path(t.path), goiptables.Timeout(int(lockTimeout/time.Second)))
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", t.path, err)
	}
	restore, err := lookPath(t.path + "-restore")
	if err != nil {
		return nil, fmt.Errorf("use %s: %w", t.path, err)
	}
	var wait []string
	if a, b, c := reader.GetIptablesVersion(); a > 1 || b > 6 || b == 6 && c >= 2 {
		wait = []string{"-w", strconv.Itoa(int(lockTimeout / time.Second))} // supported since 1.6.2
	}
	open := func(in *layout, name string) *kernelTable {
		return &kernelTable{in: in, family: f, name: name, backend: t.backend, reader: reader, path: t.path, restore: restore, wait: wait}
	}
	k := open(mangle, t.name)
	k.filter = open(rejecting, t.name+" -t "+rejecting.table)
	return k, nil
}

func (k *kernelTable) Family() Family { return k.family }
func (k *kernelTable) String() string { return k.name }

func (k *kernelTable) layout() *layout { return k.in }
func (k *kernelTable) attend(on bool)  { k.watched.Store(on) }

// attended reports whether Watch must notify of changes to the table. k may be nil.
func (k *kernelTable) attended() bool { return k != nil && k.watched.Load() }

func (k *kernelTable) companion() Table {
	if k.filter == nil {
		return nil
	}
	return k.filter
}

func (k *kernelTable) exists() bool {
	if k.backend == NFT {
		return true
	}
	names, err := legacyTables(k.family)
	return err == nil && slices.Contains(names, k.in.table)
}

// Chains reads nf_tables over netlink, because iptables-nft refuses to list a table with a rule
// that it does not understand.
func (k *kernelTable) Chains(ctx context.Context) ([]string, error) {
	if k.backend != NFT {
		return k.legacyChains(ctx)
	}
	chains, err := k.nft().chains()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, c := range chains {
		names = append(names, c.name)
	}
	return names, nil
}

// Rules lists the chain with iptables. Rules returns the short form of the rules (see [Table]) in
// two cases: if the listing fails for another reason than missing privilege, and if byHandle is
// set and the chain belongs to another program.
func (k *kernelTable) Rules(ctx context.Context, chain string) ([]string, error) {
	if !k.byHandle.Load() || isOwned(chain) {
		rules, err := k.list(chain)
		if err == nil || errors.Is(explain(err), ErrPrivilege) {
			return rules, err
		}
		if k.backend != NFT {
			if rules, second := k.legacyRules(ctx, chain); second == nil {
				return rules, nil
			}
			return nil, err
		}
	}
	return k.Jumps(ctx, chain)
}

// Jumps reads nf_tables over netlink, which takes a twentieth of the time of iptables.
func (k *kernelTable) Jumps(ctx context.Context, chain string) ([]string, error) {
	if k.backend != NFT {
		return k.Rules(ctx, chain)
	}
	rules, err := k.nft().rules(chain)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, r := range rules {
		lines = append(lines, r.text(chain))
	}
	return lines, nil
}

// Count implements Table. It ignores errors: the caller then calls Rules, which reports them.
func (k *kernelTable) Count(_ context.Context, chain string) (int, bool) {
	if k.backend != NFT {
		return 0, false
	}
	rules, err := k.nft().rules(chain)
	return len(rules), err == nil
}

// list lists the rules of a chain with iptables.
func (k *kernelTable) list(chain string) ([]string, error) {
	lines, err := k.reader.List(k.in.table, chain)
	if err != nil {
		return nil, fmt.Errorf("list the rules of %s %s: %w", k.in.table, chain, explain(err))
	}
	var rules []string
	for _, line := range lines { // other lines, -P and -N, declare the chain
		if strings.HasPrefix(line, "-A ") {
			rules = append(rules, line)
		}
	}
	return rules, nil
}

func (k *kernelTable) nft() nftTable { return nftTable{k.family, k.in.table} }

// Inactive implements Table. A table of the legacy backend is never inactive.
func (k *kernelTable) Inactive(context.Context) (string, error) {
	if k.backend != NFT {
		return "", nil
	}
	return k.nft().inactive()
}

// Generation implements Table. Only nf_tables has a generation, which counts the changes to all
// tables. Errors are ignored: the caller then calls Rules, which reports them.
func (k *kernelTable) Generation() (uint32, bool) {
	if k.backend != NFT {
		return 0, false
	}
	n, err := nftGeneration()
	return n, err == nil
}

// Restore applies the text with iptables-restore, except for two changes that iptables cannot
// make: to delete rules by handle, and to switch on a dormant table. Rules are deleted by handle
// after the new rules are in place, and before the chains that they may lead to are deleted.
func (k *kernelTable) Restore(ctx context.Context, text string) error {
	if k.backend != NFT {
		return k.run(ctx, text)
	}
	if k.byHandle.Load() {
		var err error
		if text, err = k.nft().withHandles(text); err != nil {
			return err
		}
	}
	steps := splitText(text)
	err := k.run(ctx, steps.first)
	if err != nil && k.clearBaseChains() {
		err = k.run(ctx, steps.first)
	}
	for _, h := range steps.handles {
		if err == nil {
			err = k.nft().deleteRule(h.chain, h.handle)
		}
	}
	if err == nil && steps.last != "" {
		err = k.run(ctx, steps.last)
	}
	// A deletion by iptables may fail: it may not find a rule that it has printed itself, or not
	// understand some rule of the table. A deletion by handle does not depend on iptables, so the
	// next attempt deletes by handle.
	k.byHandle.Store(err != nil)
	if err != nil {
		if hasOwner, second := k.nft().hasOwner(); hasOwner && second == nil {
			err = fmt.Errorf("table %s belongs to a process (nft list tables shows which), and only that process can change it: %w", k.in.table, err)
		}
		return err
	}
	if off, err := k.nft().dormant(); err != nil || !off {
		return err
	}
	return k.nft().wake()
}

// run runs iptables-restore once.
func (k *kernelTable) run(ctx context.Context, text string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, restoreTimeout, errSlow)
	defer cancel()
	cmd := command(ctx, k.restore, append([]string{"--noflush"}, k.wait...)...)
	cmd.Stdin = strings.NewReader(text)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // more helpful than "killed"
		}
		return fmt.Errorf("%s: %w", k.restore, explain(fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))))
	}
	return nil
}

// clearBaseChains deletes owned chains that are base chains, and reports whether it deleted any.
// No rule can jump to a base chain, and iptables cannot delete it.
func (k *kernelTable) clearBaseChains() (cleared bool) {
	chains, err := k.nft().chains()
	if err != nil {
		return false
	}
	for _, c := range chains {
		if c.base && isOwned(c.name) && k.nft().deleteChain(c.name) == nil {
			cleared = true
		}
	}
	return cleared
}

// steps are the parts into which splitText splits a transaction. Restore passes steps.first to
// iptables-restore, then deletes the rules with the handles, and then passes steps.last to
// iptables-restore, which deletes chains.
type steps struct {
	first   string
	handles []ruleHandle
	last    string
}

type ruleHandle struct {
	chain  string
	handle uint64
}

// splitText splits the text of a transaction into steps if it deletes rules by handle.
// Otherwise, the whole text is a single step, so that it remains one transaction.
func splitText(text string) steps {
	var s steps
	var first, last []string
	for line := range strings.Lines(text) {
		if chain, handle, is := handleOf(line); is {
			s.handles = append(s.handles, ruleHandle{chain, handle})
		} else if strings.HasPrefix(line, "-X ") {
			last = append(last, line)
		} else {
			first = append(first, line)
		}
	}
	if len(s.handles) == 0 {
		return steps{first: text}
	}
	s.first = strings.Join(first, "")
	if len(last) > 0 {
		declaration, _, _ := strings.Cut(text, "\n") // "*" and the table
		s.last = declaration + "\n" + strings.Join(last, "") + "COMMIT\n"
	}
	return s
}

// explain adds a hint to errors that a user can resolve. Errors of netlink have codes; errors
// of the commands are recognized by their texts.
func explain(err error) error {
	text := err.Error()
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w (%s)", ErrPrivilege, text)
	}
	for _, sign := range []string{"Permission denied", "Operation not permitted", "you must be root"} {
		if strings.Contains(text, sign) {
			return fmt.Errorf("%w (%s)", ErrPrivilege, strings.TrimSpace(text))
		}
	}
	return err
}

// countedDrop matches a DROP rule as iptables prints it with its counters.
var countedDrop = regexp.MustCompile(`-c (\d+) \d+ -j DROP$`)

// Dropped returns the number of packets that the rules of a chain have dropped since the chain was
// written, 0 if the chain does not exist.
func (k *kernelTable) Dropped(chain string) (packets uint64, err error) {
	lines, err := k.reader.ListWithCounters(k.in.table, chain)
	if err != nil {
		// The error does not reveal that the chain is missing: iptables-nft reports a missing
		// chain as incompatible.
		if chains, listErr := k.reader.ListChains(k.in.table); listErr == nil && !slices.Contains(chains, chain) {
			return 0, nil
		}
		return 0, fmt.Errorf("list the counters of %s %s: %w", k.in.table, chain, explain(err))
	}
	for _, line := range lines {
		if m := countedDrop.FindStringSubmatch(line); m != nil {
			n, err := strconv.ParseUint(m[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the counter of %q: %w", line, err)
			}
			packets += n
		}
	}
	return packets, nil
}
