package telemetry

import (
	"sluice/cache/conntrack"
	"sluice/cmd/sluice/agent/status"
	"sluice/filter"
	"sluice/filter/policy"
)

func tierCounts(c policy.Counts) map[string]int {
	counts := make(map[string]int)
	for t := policy.Admin; t < filter.NumTiers; t++ {
		counts[t.String()] = c.Tiers[t]
	}
	return counts
}

func liveOf(r conntrack.Result) status.Live {
	return status.Live{
		Judged: r.Evaluated, Unchanged: max(0, r.Evaluated-r.Written()), Allowed: r.Allowed,
		Revoked: r.Revoked, Restored: r.Restored, Unjudged: r.Unjudged,
	}
}

// Status returns s in the form that sluice status shows.
func (s *State) Status() *status.Status {
	out := &status.Status{
		Settings: s.Settings, Started: s.Started, Unready: s.Unready(), Repairs: s.Repairs, Failed: s.RepairFailures,
		Watches: append([]status.Watch{}, s.Watches...), Problems: s.AllProblems(), NotRead: s.NotRead, Now: s.Now,
		Packets: status.Packets{
			Waiting: s.Waiting, Held: s.Queue.Held, Expired: s.Queue.HoldExpired, Refused: s.Queue.HoldRejected, Dropped: s.Queue.Dropped, Overflow: s.Queue.Overflow, OverflowDropped: s.Queue.OverflowDropped, Panics: s.Queue.Panics, Restart: s.Queue.Restarts,
			Rejected: s.Tally.Rejected, Cached: s.Flows.Hits, Reasons: make(map[string]uint64),
		},
		Live: liveOf(s.Rejudged),
	}
	if k := s.Kernel; k != nil {
		out.Kernel = &status.InKernel{Open: k.Open, Allowed: k.Allowed, Denied: k.Denied + k.Rejected, Rejected: k.Rejected}
	}
	out.Forged.Rules = s.Forged
	if g := s.Guard; g != nil {
		out.Forged = status.Forged{Rules: s.Forged, Reasons: g.Dropped, Guarded: true, Ports: g.Ports, Unknown: g.Unknown}
	}
	out.Ready = out.Unready == ""
	for labels, n := range byDirection(&s.Tally.Verdicts) {
		if labels.action == filter.Allow {
			out.Packets.Allowed += n
		} else {
			out.Packets.Denied += n
		}
		if n > 0 {
			out.Packets.Reasons[labels.reason.String()] += n
		}
	}
	if s.Snapshot != nil {
		c := s.Snapshot.Counts()
		out.Enforcing = &status.Enforcing{
			Since: s.Ready, Snapshot: s.Snapshot.Number(), Published: s.Published,
			Policies: c.Policies, Pods: c.Pods, Namespaces: c.Namespaces, Endpoints: c.Endpoints, Tiers: tierCounts(c),
			Digest: s.Digest, DigestSince: s.DigestSince,
		}
		if l := s.Snapshot.Logging(); l != nil {
			namespaces, policies := l.Annotated()
			out.LogAnnotations = &status.LogAnnotations{Namespaces: namespaces, Policies: policies, Most: l.Most().String()}
		}
	}
	return out
}
