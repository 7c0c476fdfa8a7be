package iptables

import (
	"context"
	"errors"
	"fmt"
)

// Traces takes away what an agent that is gone has left in the tables, such as
// [OpenAll] gives: chains named like ours, of any version, and rules that lead
// to them. It returns what it has removed, a line for each thing. With an error,
// something may be left.
//
// It does not know the marks of connections: conntrack.ClearMarks does.
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

// where names a table for the user.
func where(t Table) string {
	if _, own := t.(*ownTable); own {
		return t.String()
	}
	return t.String() + ": " + table
}
