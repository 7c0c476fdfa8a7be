package iptables

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// withReject returns Defaults with the rules that reject, for which three jumps have conditions.
func withReject() Options {
	o := Defaults
	o.Reject = true
	return o
}

// conditional is a jump with a condition.
type conditional struct {
	in    *layout
	entry entry
}

// conditionals returns the jumps with conditions.
func conditionals(o Options) (all []conditional) {
	for _, in := range []*layout{mangle, rejecting} {
		for _, e := range o.entries(in) {
			if e.when != "" {
				all = append(all, conditional{in, e})
			}
		}
	}
	return all
}

// jumpDamage lists changes that other programs could make to a jump with a condition, as lines of
// iptables-restore. HOOK, WHEN and CHAIN are the parts of the jump.
var jumpDamage = map[string]string{
	"no condition":      "-F HOOK\n-A HOOK -j CHAIN",
	"the opposite":      "-F HOOK\n-A HOOK OPPOSITE -j CHAIN",
	"another value":     "-F HOOK\n-A HOOK VALUE -j CHAIN",
	"another mask":      "-F HOOK\n-A HOOK MASK -j CHAIN",
	"another mark":      "-F HOOK\n-A HOOK OTHER -j CHAIN",
	"a goto":            "-F HOOK\n-A HOOK WHEN -g CHAIN",
	"twice":             "-A HOOK WHEN -j CHAIN",
	"once without":      "-A HOOK -j CHAIN",
	"narrowed":          "-F HOOK\n-A HOOK -p tcp WHEN -j CHAIN",
	"narrowed by marks": "-F HOOK\n-A HOOK -m mark ! --mark 0x1 WHEN -j CHAIN",
	"gone":              "-F HOOK",
	"not first":         "-I HOOK 1 -p udp -j ACCEPT",
}

// damaging returns the transaction of an entry of jumpDamage.
func (c conditional) damaging(lines string) string {
	opposite := strings.Replace(c.entry.when, " --mark", " ! --mark", 1)
	if strings.Contains(c.entry.when, "!") {
		opposite = strings.Replace(c.entry.when, "! ", "", 1)
	}
	other := "-m connmark --mark 0x20/0x20"
	if c.in == mangle {
		other = "-m mark ! --mark 0x10/0x30"
	}
	before, mask, _ := strings.Cut(c.entry.when, "/")
	return "*" + c.in.table + "\n" + strings.NewReplacer("HOOK", c.entry.name, "WHEN", c.entry.when, "CHAIN", c.entry.chain, "OPPOSITE", opposite,
		"VALUE", before[:strings.LastIndex(before, "0x")]+"0x0/"+mask, "MASK", before+"/0x70", "OTHER", other).Replace(lines) + "\nCOMMIT\n"
}

// Run recognizes the jumps with conditions as it has written them, and repairs each change to them:
// in every backend and in the separate tables. Rules of others stay, and Remove leaves no rule.
func TestRealConditionalJumps(t *testing.T) {
	withPlaces(t, func(t *testing.T, b Backend) {
		n := newRealNode(t, b, withReject())
		n.inside(n.Apply)
		n.wantJumps("at first")
		for _, c := range conditionals(n.opts) {
			for name, lines := range jumpDamage {
				if n.own && c.in == mangle {
					continue // iptables does not write to separate tables: see TestRealConditionalJumpsInOwnTable
				}
				what := fmt.Sprintf("%s in %s %s", name, c.in.table, c.entry.name)
				n.damage(c, lines)
				n.repairedOnce(what)
				if name == "not first" {
					n.damage(c, "-D HOOK -p udp -j ACCEPT")
				}
			}
		}
		n.inside(n.Remove)
		for _, f := range Families {
			for _, in := range []*layout{mangle, rejecting} {
				if text := n.output(f.command()+"-"+string(n.backend)+"-save", "-t", in.table); strings.Contains(text, Chain) {
					t.Errorf("%s: left\n%s", f, text)
				}
			}
		}
	})
}

// ownJumpDamage is like jumpDamage, for FORWARD of the separate table. The last entries make the
// agent renew the table, once with a right jump in FORWARD and once with a wrong one.
var ownJumpDamage = []string{
	"flush chain %[1]s sluice FORWARD\nadd rule %[1]s sluice FORWARD counter jump SLUICE-FORWARD",
	"flush chain %[1]s sluice FORWARD\nadd rule %[1]s sluice FORWARD ct mark and 0x30 == 0x10 counter jump SLUICE-FORWARD",
	"flush chain %[1]s sluice FORWARD\nadd rule %[1]s sluice FORWARD meta mark and 0x30 != 0x10 counter jump SLUICE-FORWARD",
	"flush chain %[1]s sluice FORWARD",
	"insert rule %[1]s sluice FORWARD counter accept",
	"add rule %[1]s sluice FORWARD counter jump SLUICE-FORWARD",
	"flush chain %[1]s sluice POSTROUTING\ndelete chain %[1]s sluice POSTROUTING\nadd chain %[1]s sluice POSTROUTING { type filter hook input priority 7; }",
	"flush chain %[1]s sluice FORWARD\nadd rule %[1]s sluice FORWARD counter jump SLUICE-FORWARD\nflush chain %[1]s sluice POSTROUTING\ndelete chain %[1]s sluice POSTROUTING\nadd chain %[1]s sluice POSTROUTING { type filter hook input priority 7; }",
}

// Run repairs the jump with a condition in the separate tables.
func TestRealConditionalJumpsInOwnTable(t *testing.T) {
	n := newRealNode(t, inOwn, withReject())
	n.inside(n.Apply)
	n.wantJumps("at first")
	for _, script := range ownJumpDamage {
		n.nft(script)
		writes := n.tables[0].writes.Load()
		n.repairedOnce(script)
		if got := n.tables[0].writes.Load() - writes; got != 1 {
			t.Errorf("%s: repaired in %d transactions, want one, so that no packet passes in between", script, got)
		}
	}
}

// damage applies an entry of jumpDamage to the tables of both families.
func (n *realNode) damage(c conditional, lines string) {
	n.t.Helper()
	n.inside(func(ctx context.Context) error {
		for _, t := range n.tables {
			table := t.companion()
			if c.in == mangle {
				table = t.Table
			}
			if err := table.Restore(ctx, c.damaging(lines)); err != nil {
				return err
			}
		}
		return nil
	})
}

// repairedOnce checks that one check repairs the tables of both families, and the next one changes
// nothing.
func (n *realNode) repairedOnce(what string) {
	n.t.Helper()
	repairs := n.Repairs()
	n.inside(n.repair)
	if got := n.Repairs() - repairs; got != 2 {
		n.t.Errorf("%s: %d repairs, want one of each family\n%s", what, got, n.logs)
	}
	n.wantJumps(what)
	n.inside(n.Apply)
	n.inside(n.repair)
	if got := n.Repairs() - repairs; got != 2 {
		n.t.Errorf("%s: %d repairs, want none of right rules\n%s", what, got-2, n.logs)
	}
}

// wantJumps checks that each jump with a condition is the first rule of its hook and the only one
// that leads to an owned chain, as Jumps reads it and as iptables prints it.
func (n *realNode) wantJumps(what string) {
	n.t.Helper()
	for i, t := range n.tables {
		for _, c := range conditionals(n.opts) {
			var table Table = t
			if c.in == rejecting {
				table = t.companion()
			}
			n.inside(func(ctx context.Context) error {
				rules, err := table.Jumps(ctx, c.entry.name)
				if text := strings.Join(rules, "\n"); err == nil && (len(rules) == 0 || rules[0] != c.entry.jump() || strings.Count(text, Chain) != 1) {
					n.t.Errorf("%s: %s %s has\n%s", what, table, c.entry.name, text)
				}
				return err
			})
			if n.own && c.in == mangle {
				continue
			}
			if text := n.output(Families[i].command()+"-"+string(n.backend), "-t", c.in.table, "-S", c.entry.name); !strings.Contains(text, "ACCEPT\n"+c.entry.jump()+"\n") {
				n.t.Errorf("%s: iptables prints\n%s", what, text)
			}
		}
	}
}

// If iptables-legacy cannot print the rules of a chain, its listing has enough to recognize the
// jumps with conditions.
func TestPlainJump(t *testing.T) {
	for line, want := range map[string]string{
		"0 0 SLUICE all -- * * 0.0.0.0/0 0.0.0.0/0":                                      " -j SLUICE",
		"0 0 SLUICE 0 -- * * ::/0 ::/0":                                                  " -j SLUICE",
		"0 0 SLUICE all * * ::/0 ::/0":                                                   " -j SLUICE",
		"9 7 S-FORWARD 0 -- * * 0.0.0.0/0 0.0.0.0/0 connmark match ! 0x10/0x30":          " -m connmark ! --mark 0x10/0x30 -j S-FORWARD",
		"9 7 S-REJECT all * * ::/0 ::/0 mark match 0x20/0x20":                            " -m mark --mark 0x20/0x20 -j S-REJECT",
		"0 0 S all -- * * 0.0.0.0/0 0.0.0.0/0 mark match ! 0x1 connmark match 0x10/0x30": " -m mark ! --mark 0x1 -m connmark --mark 0x10/0x30 -j S",
		"0 0 S tcp -- * * 0.0.0.0/0 0.0.0.0/0 mark match 0x20/0x20":                      "",
		"0 0 S all -- eth0 * 0.0.0.0/0 0.0.0.0/0 mark match 0x20/0x20":                   "",
		"0 0 S all -- * * 10.0.0.0/8 0.0.0.0/0 mark match 0x20/0x20":                     "",
		"0 0 S all -- * * 0.0.0.0/0 0.0.0.0/0 ctstate NEW mark match 0x20/0x20":          "",
		"0 0 S all -- * * 0.0.0.0/0 0.0.0.0/0 mark match 0x20/0x20 ctstate NEW":          "",
		"0 0 S all -- * * 0.0.0.0/0 0.0.0.0/0 mark match 0x20/0x20 /* a */":              "",
		"0 0 S all -- * * 0.0.0.0/0 0.0.0.0/0 [goto] mark match 0x20/0x20":               "",
		"mark match 0x20/0x20": "", "match 0x20": "", "! 0x20": "", "": "",
	} {
		if got := plainJump(strings.Fields(line)); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// Only a rule whose text has all its conditions is printed without its handle. All others must
// not be mistaken for the jumps with conditions.
func TestNFTConditions(t *testing.T) {
	const register = unix.NFT_REG_1
	word := func(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }
	data := func(n uint32) attributes { return attributes{}.raw(unix.NFTA_DATA_VALUE, word(n)) }
	load := func(e *encoded, key uint32) {
		e.addExpression("meta", attributes{}.number(unix.NFTA_META_KEY, key).number(unix.NFTA_META_DREG, register))
	}
	apply := func(e *encoded, mask, xor, operation uint32) {
		e.addExpression("bitwise", attributes{}.number(unix.NFTA_BITWISE_SREG, register).number(unix.NFTA_BITWISE_DREG, register).number(unix.NFTA_BITWISE_LEN, 4).
			raw(unix.NFTA_BITWISE_MASK, data(mask)).raw(unix.NFTA_BITWISE_XOR, data(xor)).number(6, operation))
	}
	jump := func(e *encoded) {
		if err := e.end("-j", rejectChain, nil); err != nil {
			t.Fatal(err)
		}
	}
	extension := func(e *encoded, flag, name string, a arguments) {
		if err := e.add(IPv4, flag, name, a); err != nil {
			t.Fatal(err)
		}
	}
	const mark, unknown = unix.NFT_META_MARK, "-A FORWARD @7 -j SLUICE-REJECT"
	for name, c := range map[string]struct {
		build func(e *encoded)
		want  string
	}{
		"mark": {func(e *encoded) { load(e, mark); apply(e, 0x20, 0, 0); e.compare(word(0x20)); jump(e) }, "-A FORWARD -m mark --mark 0x20/0x20 -j SLUICE-REJECT"},
		"not a mark": {func(e *encoded) {
			load(e, mark)
			apply(e, 0x30, 0, 0)
			e.compareBy(unix.NFT_CMP_NEQ, word(0x10))
			jump(e)
		}, "-A FORWARD -m mark ! --mark 0x10/0x30 -j SLUICE-REJECT"},
		"the whole mark": {func(e *encoded) { load(e, mark); e.compare(word(7)); jump(e) }, "-A FORWARD -m mark --mark 0x7 -j SLUICE-REJECT"},
		"two masks": {func(e *encoded) {
			load(e, mark)
			apply(e, 0x30, 0, 0)
			apply(e, 0x60, 0, 0)
			e.compare(word(0x20))
			jump(e)
		}, "-A FORWARD -m mark --mark 0x20/0x20 -j SLUICE-REJECT"},
		"extensions": {func(e *encoded) {
			extension(e, "-m", "mark", arguments{"--mark": "0x20/0x20"})
			extension(e, "-m", "connmark", arguments{"! --mark": "0x10/0x30"})
			jump(e)
		}, "-A FORWARD -m mark --mark 0x20/0x20 -m connmark ! --mark 0x10/0x30 -j SLUICE-REJECT"},
		"greater": {func(e *encoded) {
			load(e, mark)
			apply(e, 0x20, 0, 0)
			e.compareBy(unix.NFT_CMP_GT, word(0x20))
			jump(e)
		}, unknown},
		"xor":     {func(e *encoded) { load(e, mark); apply(e, 0x20, 1, 0); e.compare(word(0x20)); jump(e) }, unknown},
		"a shift": {func(e *encoded) { load(e, mark); apply(e, 0x20, 0, 1); e.compare(word(0x20)); jump(e) }, unknown},
		"another key": {func(e *encoded) {
			load(e, unix.NFT_META_PRIORITY)
			apply(e, 0x20, 0, 0)
			e.compare(word(0x20))
			jump(e)
		}, unknown},
		"nothing loaded": {func(e *encoded) { apply(e, 0x20, 0, 0); e.compare(word(0x20)); jump(e) }, unknown},
		"not compared":   {func(e *encoded) { load(e, mark); jump(e) }, unknown},
		"after the jump": {func(e *encoded) { jump(e); load(e, mark); e.compare(word(7)) }, unknown},
		"another width":  {func(e *encoded) { load(e, mark); e.compare([]byte{7}); jump(e) }, unknown},
		"another match": {func(e *encoded) {
			extension(e, "-m", "mark", arguments{"--mark": "0x20/0x20"})
			extension(e, "-m", "conntrack", arguments{"--ctstate": "RELATED"})
			jump(e)
		}, unknown},
		"a protocol": {func(e *encoded) {
			extension(e, "-p", "tcp", nil)
			extension(e, "-m", "mark", arguments{"--mark": "0x20/0x20"})
			jump(e)
		}, unknown},
		"no data": {func(e *encoded) {
			e.expressions = e.expressions.raw(unix.NFTA_LIST_ELEM, attributes{}.text(unix.NFTA_EXPR_NAME, "notrack"))
			jump(e)
		}, unknown},
		"an old revision": {func(e *encoded) {
			e.addExpression("match", attributes{}.text(unix.NFTA_MATCH_NAME, "mark").number(unix.NFTA_MATCH_REV, 0).raw(unix.NFTA_MATCH_INFO, make([]byte, 24)))
			jump(e)
		}, unknown},
	} {
		var e encoded
		c.build(&e)
		attrs := attributes{}.text(unix.NFTA_RULE_TABLE, "filter").text(unix.NFTA_RULE_CHAIN, "FORWARD").
			raw(unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, 7)).raw(unix.NFTA_RULE_EXPRESSIONS, e.expressions)
		ad, err := netlink.NewAttributeDecoder(attrs)
		if err != nil {
			t.Fatal(err)
		}
		ad.ByteOrder = binary.BigEndian
		r, _, err := readRule(ad)
		if got := r.text("FORWARD"); err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", name, got, err, c.want)
		}
	}
}
