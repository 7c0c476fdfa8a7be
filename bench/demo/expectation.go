package main

import (
	"fmt"
	"strings"
)

// expectation states whether the probes that match it must reach their target. If several
// expectations match a probe, the last one applies. Each list begins with everythingElse, so
// that every probe has an expectation.
//
// The text of an expectation is "yes FROM -> TO" or "no FROM -> TO". FROM is a host, and TO
// a host with port and protocol, as in "default/db:6379/TCP". A star at the end matches any
// further text. If TO is "itself", it means the host FROM.
type expectation struct {
	from, to string
	reach    bool
}

// everythingElse is the expectation for probes that no other expectation matches.
var everythingElse = expectation{from: "*", to: "*", reach: true}

func parseExpectation(text string) (expectation, error) {
	f := strings.Fields(text)
	if len(f) != 4 || f[0] != "yes" && f[0] != "no" || f[2] != "->" {
		return expectation{}, fmt.Errorf("expectation %q: write yes or no, who, ->, whom", text)
	}
	return expectation{from: f[1], to: f[3], reach: f[0] == "yes"}, nil
}

func (p expectation) String() string {
	if p == everythingElse {
		return "everything else"
	}
	return p.from + " -> " + p.to
}

// parseExpectations parses the expectations of a step, in order.
func (s step) parseExpectations() ([]expectation, error) {
	all := []expectation{everythingElse}
	for _, texts := range [][]string{s.expectations, always} {
		for _, text := range texts {
			p, err := parseExpectation(text)
			if err != nil {
				return nil, fmt.Errorf("step %s: %w", s.name, err)
			}
			all = append(all, p)
		}
	}
	return all, nil
}

func (p expectation) matches(pr probe) bool {
	if !matchPattern(p.from, pr.from.name) {
		return false
	}
	if p.to == "itself" {
		return pr.from == pr.to.host
	}
	return matchPattern(p.to, pr.to.String()+"/"+strings.ToUpper(pr.network))
}

// matchPattern reports whether a text matches a pattern, which may end in a star.
func matchPattern(pattern, text string) bool {
	if start, star := strings.CutSuffix(pattern, "*"); star {
		return strings.HasPrefix(text, start)
	}
	return pattern == text
}

// deciding returns the index of the expectation that applies to a probe.
func deciding(expectations []expectation, pr probe) int {
	last := 0
	for i, p := range expectations {
		if p.matches(pr) {
			last = i
		}
	}
	return last
}
