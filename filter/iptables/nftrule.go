//go:build linux

package iptables

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftRule is a rule of nf_tables. Of its expressions, only verdicts, counters and conditions about
// marks are decoded.
type nftRule struct {
	handle  uint64
	targets []nftTarget
	// conditions are the conditions of the jump, as iptables prints them; see markReader. plain is
	// set if the rule does nothing but test them, count and jump.
	conditions string
	plain      bool
	// drops is set if the rule's verdict is to drop; "packets" is the rule's counter.
	drops   bool
	packets uint64
	// expressions is the kernel's form of the matches, counter and verdict.
	expressions []byte
}

type nftTarget struct {
	flag  string // iptables' option: -j or -g
	chain string
}

// rulePlace is the location of a rule.
type rulePlace struct{ table, chain string }

func readRule(ad *netlink.AttributeDecoder) (r nftRule, at rulePlace, err error) {
	r.plain = true
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_TABLE:
			at.table = ad.String()
		case unix.NFTA_RULE_CHAIN:
			at.chain = ad.String()
		case unix.NFTA_RULE_HANDLE:
			r.handle = ad.Uint64()
		case unix.NFTA_RULE_EXPRESSIONS:
			r.expressions = ad.Bytes()
			ad.Nested(r.readExpressions)
		}
	}
	return r, at, ad.Err()
}

func (r *nftRule) readExpressions(ad *netlink.AttributeDecoder) error {
	var marks markReader
	for ad.Next() {
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			var name string
			known := false
			for ad.Next() {
				switch ad.Type() {
				case unix.NFTA_EXPR_NAME:
					name = ad.String()
					known = name == "counter" || name == "immediate"
				case unix.NFTA_EXPR_DATA:
					ad.Nested(func(ad *netlink.AttributeDecoder) error {
						known = r.readExpression(name, ad, &marks)
						return nil
					})
				}
			}
			r.plain = r.plain && known
			return nil
		})
	}
	r.plain = r.plain && len(r.targets) == 1 && !marks.loaded
	return nil
}

// readExpression decodes one expression, and reports whether it is one of those that text prints.
func (r *nftRule) readExpression(name string, ad *netlink.AttributeDecoder, marks *markReader) (known bool) {
	switch name {
	case "immediate":
		r.readImmediate(ad)
		return true
	case "counter":
		r.readCounter(ad)
		return true
	}
	condition, known := marks.read(name, ad)
	r.conditions += condition
	return known && len(r.targets) == 0 // the kernel ignores what follows a jump
}

func (r *nftRule) readCounter(ad *netlink.AttributeDecoder) {
	for ad.Next() {
		if ad.Type() == unix.NFTA_COUNTER_PACKETS {
			r.packets = ad.Uint64()
		}
	}
}

// verdictDrop is NF_DROP.
const verdictDrop = 0

// readImmediate decodes the verdict in an immediate expression.
func (r *nftRule) readImmediate(ad *netlink.AttributeDecoder) {
	for ad.Next() {
		if ad.Type() != unix.NFTA_IMMEDIATE_DATA {
			continue
		}
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			for ad.Next() {
				if ad.Type() == unix.NFTA_DATA_VERDICT {
					ad.Nested(r.readVerdict)
				}
			}
			return nil
		})
	}
}

func (r *nftRule) readVerdict(ad *netlink.AttributeDecoder) error {
	var code int32
	var chain string
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			code = int32(ad.Uint32())
		case unix.NFTA_VERDICT_CHAIN:
			chain = ad.String()
		}
	}
	switch code {
	case verdictDrop:
		r.drops = true
	case unix.NFT_JUMP:
		r.targets = append(r.targets, nftTarget{"-j", chain})
	case unix.NFT_GOTO:
		r.targets = append(r.targets, nftTarget{"-g", chain})
	}
	return nil
}

// text returns the text of a rule. For a plain rule, this is the text that iptables prints, such as
// "-A FORWARD -m mark --mark 0x20/0x20 -j SLUICE-REJECT". For any other rule, it is the chain, the
// handle and the jumps, such as "-A FORWARD @7 -j SLUICE".
// This is enough for leadsTo to find the jumps, and for [kernelTable.Restore] to delete the rule
// by its handle.
func (r nftRule) text(chain string) string {
	text := "-A " + chain
	if r.plain {
		text += r.conditions
	} else {
		text += fmt.Sprintf(" %s%d", handleSign, r.handle)
	}
	for _, t := range r.targets {
		text += " " + t.flag + " " + t.chain
	}
	return text
}

// withHandles rewrites a transaction: in each line that deletes a rule by its text, it replaces
// the text with the rule's handle. The text must have the form that [nftRule.text] returns. If
// the rule of such a line does not exist, withHandles omits the line. All other lines stay
// unchanged.
func (t nftTable) withHandles(text string) (string, error) {
	var out strings.Builder
	remaining := map[string][]nftRule{} // rules whose handles are not used yet, by chain
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if _, _, has := handleOf(line); has || len(words) < 3 || words[0] != "-D" {
			out.WriteString(line)
			continue
		}
		chain, rule := words[1], "-A "+strings.TrimSpace(strings.TrimPrefix(line, "-D "))
		rules, read := remaining[chain]
		if !read {
			var err error
			if rules, err = t.rules(chain); err != nil {
				return "", err
			}
		}
		at := slices.IndexFunc(rules, func(r nftRule) bool { return r.text(chain) == rule })
		if at >= 0 { // otherwise the rule is gone
			fmt.Fprintf(&out, "-D %s %s%d\n", chain, handleSign, rules[at].handle)
			rules = slices.Delete(rules, at, at+1)
		}
		remaining[chain] = rules
	}
	return out.String(), nil
}
