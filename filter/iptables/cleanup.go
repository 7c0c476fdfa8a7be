//go:build linux

package iptables

import (
	"context"
	"errors"
	"fmt"
)

// Cleanup removes what an earlier agent left in the tables: owned chains of any version, and
// the rules that lead to them. [OpenAll] returns the tables that may have any. Cleanup returns
// a line for each removed object. After an error, chains and rules may be left.
//
// Cleanup does not change the marks of connections: conntrack.ClearMarks does.
func Cleanup(ctx context.Context, tables []Table) (removed []string, err error) {
	var errs []error
	for _, t := range tables {
		lines, err := cleanTable(ctx, t)
		if err == nil {
			err = t.Leave()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t, err))
		}
		for _, line := range lines {
			removed = append(removed, fmt.Sprintf("%s %s", where(t), line))
		}
	}
	return removed, errors.Join(errs...)
}

// InPlace reports whether rules of an agent of any version see packets in one of the tables.
// Owned chains to which no rule leads do not count, because they have no effect.
func InPlace(ctx context.Context, tables []Table) (bool, error) {
	for _, t := range tables {
		now, err := readTable(ctx, t)
		if err != nil {
			return false, fmt.Errorf("%s: %w", t, err)
		}
		if len(now.chains) == 0 {
			continue // no rule can lead to one
		}
		rules, err := leading(ctx, t, now, isOwned)
		if err != nil {
			return false, fmt.Errorf("%s: %w", t, err)
		}
		if len(rules) > 0 {
			return true, nil
		}
	}
	return false, nil
}

// where returns the name of a table for output to the user.
func where(t Table) string {
	if _, own := t.(*ownTable); own {
		return t.String()
	}
	if t.layout() == rejecting {
		return t.String() + ":"
	}
	return t.String() + ": " + table
}
