package kube

import (
	"context"
	"slices"
	"time"
)

// startWithout lets the first Update go ahead without optional kinds that cannot be read, if
// Options.StartWithout agrees. It returns when no first list is missing any more, or when ctx
// ends.
//
// Usually, the kind cannot be read because the ClusterRole is older than the kind and does not
// permit reading it. Any other failure that lasts has the same effect.
func (s *Source) startWithout(ctx context.Context) {
	var since time.Time // of the first in an unbroken sequence of failures
	for sleep(ctx, s.times.patience/10) {
		missing := s.queue.awaited()
		switch {
		case len(missing) == 0:
			return
		case slices.ContainsFunc(missing, func(k *kind) bool { return !k.optional || !s.health.failing(k) }):
			since = time.Time{}
		case since.IsZero():
			since = time.Now()
		case time.Since(since) < s.times.patience:
		case !s.without(ctx):
			since = time.Now()
		default:
			for _, k := range missing {
				if s.queue.skip(k) {
					s.health.skipped(k)
				}
			}
			return
		}
	}
}
