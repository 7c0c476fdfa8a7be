package iptables

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// nftRule is a rule, as far as it says where packets go next.
type nftRule struct {
	handle  uint64
	targets []nftTarget
	// plain is set if the rule does nothing but count and jump.
	plain bool
	// drops is set if the rule ends with the verdict to drop, packets is what it counted.
	drops   bool
	packets uint64
	// expressions are what the rule does, as the kernel gives it.
	expressions []byte
}

type nftTarget struct {
	flag  string // of iptables: -j or -g
	chain string
}

// rulePlace is where a rule is.
type rulePlace struct{ table, chain string }

func readRule(ad *netlink.AttributeDecoder) (r nftRule, of rulePlace, err error) {
	r.plain = true
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_RULE_TABLE:
			of.table = ad.String()
		case unix.NFTA_RULE_CHAIN:
			of.chain = ad.String()
		case unix.NFTA_RULE_HANDLE:
			r.handle = ad.Uint64()
		case unix.NFTA_RULE_EXPRESSIONS:
			r.expressions = ad.Bytes()
			ad.Nested(r.readExpressions)
		}
	}
	return r, of, ad.Err()
}

func (r *nftRule) readExpressions(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		ad.Nested(func(ad *netlink.AttributeDecoder) error {
			var name string
			for ad.Next() {
				switch ad.Type() {
				case unix.NFTA_EXPR_NAME:
					name = ad.String()
				case unix.NFTA_EXPR_DATA:
					switch name {
					case "immediate":
						ad.Nested(r.readImmediate)
					case "counter":
						ad.Nested(r.readCounter)
					}
				}
			}
			r.plain = r.plain && (name == "counter" || name == "immediate")
			return nil
		})
	}
	r.plain = r.plain && len(r.targets) == 1
	return nil
}

func (r *nftRule) readCounter(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == unix.NFTA_COUNTER_PACKETS {
			r.packets = ad.Uint64()
		}
	}
	return nil
}

// verdictDrop is NF_DROP.
const verdictDrop = 0

// readImmediate finds the verdict that a rule ends with.
func (r *nftRule) readImmediate(ad *netlink.AttributeDecoder) error {
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
	return nil
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

// text writes the rule as iptables would, if iptables can express it. Otherwise it
// gives the rule's handle and where it leads, which leadsTo understands and
// [kernelTable.Restore] deletes by.
func (r nftRule) text(chain string) string {
	text := "-A " + chain
	if !r.plain {
		text += fmt.Sprintf(" %s%d", handleSign, r.handle)
	}
	for _, t := range r.targets {
		text += " " + t.flag + " " + t.chain
	}
	return text
}

// handleSign precedes a handle in the text of a rule.
const handleSign = "@"

// handleOf is the handle in a line of a transaction that deletes a rule by it.
func handleOf(line string) (chain string, handle uint64, is bool) {
	words := strings.Fields(line)
	if len(words) < 3 || words[0] != "-D" {
		return "", 0, false
	}
	n, err := fmt.Sscanf(words[2], handleSign+"%d", &handle)
	return words[1], handle, n == 1 && err == nil
}

// withHandles gives the handle of each rule that a transaction deletes by its text. The
// texts are those of [nftRule.text].
func (t nftTable) withHandles(text string) (string, error) {
	var out strings.Builder
	left := map[string][]nftRule{} // by chain
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if _, _, has := handleOf(line); has || len(words) < 3 || words[0] != "-D" {
			out.WriteString(line)
			continue
		}
		chain, rule := words[1], "-A "+strings.TrimSpace(strings.TrimPrefix(line, "-D "))
		rules, read := left[chain]
		if !read {
			var err error
			if rules, err = t.rules(chain); err != nil {
				return "", err
			}
		}
		at := slices.IndexFunc(rules, func(r nftRule) bool { return r.text(chain) == rule })
		if at >= 0 { // otherwise it is gone
			fmt.Fprintf(&out, "-D %s %s%d\n", chain, handleSign, rules[at].handle)
			rules = slices.Delete(rules, at, at+1)
		}
		left[chain] = rules
	}
	return out.String(), nil
}

var handleInRule = regexp.MustCompile(` ` + handleSign + `\d+`)

// withoutHandle makes the texts of rules comparable that were written twice.
func withoutHandle(rule string) string { return handleInRule.ReplaceAllString(rule, "") }
