package main

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter/policy"
	"sluice/watch/manifests"
)

// wantedPolicies returns the policies that the flags name. If here is true, policies from manifests also
// have the digest to wait for.
func (o *waitOptions) wantedPolicies(stdin io.Reader, here bool) (all []status.Wanted, err error) {
	if all, err = o.named(stdin); err != nil {
		return nil, err
	}
	if len(o.paths) > 0 {
		in, problems, err := manifests.Input{Paths: o.paths, Stdin: stdin, Command: "sluice wait"}.Read()
		switch {
		case err != nil:
			return nil, err
		case len(problems) > 0:
			return nil, fmt.Errorf("the manifests have problems, the first in %s: %s: correct it: an agent would keep what it had", problems[0].File, problems[0].What())
		case len(in.Policies) == 0:
			return nil, fmt.Errorf("there are no policies in %s: give manifests with the policies to wait for", strings.Join(o.paths, ", "))
		}
		all = ofManifests(all, in.Policies, here)
	}
	if len(all) == 0 {
		return nil, errors.New("there is nothing to wait for: name policies with --for, or give manifests with policies with -f")
	}
	for i := range all {
		all[i].Deleted = o.deleted
	}
	return all, nil
}

// named returns the policies that --for names.
func (o *waitOptions) named(stdin io.Reader) (all []status.Wanted, err error) {
	for _, name := range o.names {
		names := []string{name}
		if name == manifests.Stdin {
			if slices.Contains(o.paths, manifests.Stdin) {
				return nil, errors.New("--for - and -f - both read the standard input: give one of them")
			}
			if names, err = namesIn(stdin); err != nil {
				return nil, err
			}
		}
		for _, name := range names {
			w, err := status.ParseWanted(name)
			if err != nil {
				return nil, fmt.Errorf("--for: %w", err)
			}
			all = append(all, w)
		}
	}
	return all, nil
}

// namesIn returns the lines of a text up to the first empty line. The input may stay open behind this
// line.
func namesIn(in io.Reader) (names []string, err error) {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		name := strings.TrimSpace(lines.Text())
		if name == "" {
			break
		}
		names = append(names, name)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the names of policies from the standard input: %w", err)
	}
	return names, nil
}

// ofManifests returns the named policies. If none are named, it returns the policies that were read from
// manifests. If here is true, it also sets the digests of the policies that are in the manifests.
func ofManifests(named []status.Wanted, read []*policy.Policy, here bool) []status.Wanted {
	all := slices.Clone(named)
	at := make(map[policy.Ref]int, len(named))
	for i := range named {
		at[named[i].Ref] = i
	}
	for _, p := range read {
		i, is := at[p.Ref]
		if !is && len(named) > 0 {
			continue
		}
		if !is {
			i, all = len(all), append(all, status.Wanted{Ref: p.Ref})
			at[p.Ref] = i
		}
		if here {
			all[i].Digest = hex.EncodeToString(p.Digest[:16])
		}
	}
	return all
}

func refsOf(wanted []status.Wanted) (refs []policy.Ref) {
	for i := range wanted {
		refs = append(refs, wanted[i].Ref)
	}
	return refs
}

// maxReasons bounds the policies that a text names as not in force.
const maxReasons = 5

// reasonsText returns the first of the reasons why policies are not in force, and the number of the
// others.
func reasonsText(why []string) string {
	if more := len(why) - maxReasons; more > 0 {
		return fmt.Sprintf("%s; and %d more policies", strings.Join(why[:maxReasons], "; "), more)
	}
	return strings.Join(why, "; ")
}
