//go:build linux

package iptables

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// iptables-legacy prints a rule as a command (-S) only if it has the library of every match and
// target in it. Another container may have written a rule whose library this image lacks. The
// listing for people (-L) always works.

// legacyChains returns the names of all chains.
func (k *kernelTable) legacyChains(ctx context.Context) ([]string, error) {
	chains, err := k.reader.ListChains(k.in.table)
	if err == nil {
		return chains, nil
	}
	lines, second := listing(ctx, k.path, k.in.table, k.wait)
	if second != nil {
		return nil, fmt.Errorf("list the chains of %s: %w", k.in.table, explain(err))
	}
	chains = nil
	for _, line := range lines {
		if words := strings.Fields(line); len(words) > 2 && words[0] == "Chain" {
			chains = append(chains, words[1])
		}
	}
	return chains, nil
}

// legacyRules returns the rules of a chain from its listing. For a rule that only jumps, under
// conditions about marks or none, it returns the command that iptables -S would print. For any other
// rule, it returns "-A CHAIN".
func (k *kernelTable) legacyRules(ctx context.Context, chain string) ([]string, error) {
	lines, err := listing(ctx, k.path, k.in.table, k.wait, chain)
	if err != nil {
		return nil, err
	}
	var rules []string
	for _, line := range lines[min(2, len(lines)):] { // after the chain's name and the column headings
		if words := strings.Fields(line); len(words) > 0 {
			rules = append(rules, "-A "+chain+plainJump(words))
		}
	}
	return rules, nil
}

// plainJump returns the jump of a rule if the rule applies to all packets, or to those that fulfil
// conditions about marks. Otherwise it returns "". words is the rule's line in a listing: counters,
// target, protocol, options, interfaces, addresses, conditions.
func plainJump(words []string) string {
	words, conditions := listedConditions(words)
	everywhere := [][]string{{"0.0.0.0/0", "0.0.0.0/0"}, {"::/0", "::/0"}}
	if len(words) < 8 {
		return ""
	}
	interfaces, ends := words[len(words)-4:len(words)-2], words[len(words)-2:]
	protocol := words[3]
	all := protocol == "all" || protocol == "0"
	if all && slices.Equal(interfaces, []string{"*", "*"}) && slices.ContainsFunc(everywhere, func(e []string) bool { return slices.Equal(e, ends) }) {
		return conditions + " -j " + words[2]
	}
	return ""
}

// listedConditions splits the conditions about marks from the end of a rule's line in a listing, such
// as "connmark match ! 0x10/0x30", and returns them as iptables -S would print them.
func listedConditions(words []string) (rest []string, conditions string) {
	for len(words) > 3 {
		n, not := len(words)-1, ""
		if words[n-1] == "!" {
			n, not = n-1, " !"
		}
		if words[n-1] != "match" || words[n-2] != "mark" && words[n-2] != "connmark" {
			break
		}
		conditions = " -m " + words[n-2] + not + " --mark " + words[len(words)-1] + conditions
		words = words[:n-2]
	}
	return words, conditions
}

// listing returns the output lines of iptables -L.
func listing(ctx context.Context, path, table string, wait []string, chain ...string) ([]string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, restoreTimeout, errSlow)
	defer cancel()
	args := slices.Concat([]string{"-t", table, "-n", "-v"}, wait, []string{"-L"}, chain)
	out, err := command(ctx, path, args...).Output()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // more helpful than "killed"
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"), nil
}

// addListings adds to u the chains and rules of other programs in the legacy tables of a family,
// as listed by iptables -L.
func (u *use) addListings(ctx context.Context, t tool) error {
	tables, err := legacyTables(t.family)
	if err != nil {
		return err
	}
	for _, name := range tables {
		lines, err := listing(ctx, t.path, name, nil)
		if err != nil {
			return err
		}
		var chain string
		for _, line := range lines {
			switch words := strings.Fields(line); {
			case len(words) < 3:
			case words[0] == "Chain":
				chain = words[1]
				u.kubelet = u.kubelet || isKubelets(chain)
			case words[0] != "pkts" && !isOwned(chain) && !isOwned(words[2]):
				u.rules++
			}
		}
	}
	return nil
}
