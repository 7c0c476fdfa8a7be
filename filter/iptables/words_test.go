package iptables

import (
	"strings"
	"testing"
)

// Each rule that options can produce is described, and two rules of a chain have the same words
// only if they differ in a type or an address.
func TestInWords(t *testing.T) {
	for _, o := range append(everyRule(), rejectOptions()) {
		for _, f := range Families {
			text := o.InWords(f)
			if strings.Contains(text, "(not described)") {
				t.Errorf("%s: a rule is not described:\n%s", f, text)
			}
			var rules []string
			for line := range strings.Lines(text) {
				if !strings.HasPrefix(line, "#") {
					rules = append(rules, line)
				}
			}
			if strings.Join(rules, "") != o.Wanted(f) {
				t.Errorf("%s: the rules are not those of Wanted:\n%s", f, text)
			}
			said := make(map[string]string)
			for line := range strings.Lines(text) {
				words, chain := said["last"], strings.SplitN(line, " ", 3)
				if strings.HasPrefix(line, "#") {
					said["last"] = line
				} else if strings.HasPrefix(line, "-A") && !strings.Contains(line, "icmpv6-type") && !strings.Contains(line, " -s ") {
					if other, twice := said[chain[1]+words]; twice {
						t.Errorf("%s: both are described as %s%s%s", f, words, other, line)
					}
					said[chain[1]+words] = line
				}
			}
		}
	}
}
