package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"sluice/cmd/sluice/agent/hubble"
	"sluice/cmd/sluice/agent/status"
	"sluice/cmd/sluice/agent/telemetry"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/watch"
	"sluice/watch/kube"
	"sluice/watch/manifests"
)

// records holds what the agent records for sluice status, metrics and probes.
type records struct {
	started   time.Time
	sources   []watch.Source
	ready     atomic.Pointer[time.Time] // when the agent was first ready
	inForce   atomic.Pointer[time.Time] // when the current snapshot came into force
	enforced  enforced
	manifests atomic.Pointer[[]manifests.Problem]
	notRead   atomic.Pointer[[]manifests.NotRead]
	// otherBackend is the error of the last attempt to remove the rules that an earlier
	// agent left in the other backend of iptables; nil if no such rules remain. While they
	// remain, packets traverse both the old rules and those of this agent.
	otherBackend atomic.Pointer[error]
}

// tableNames returns the names of the tables with the rules.
func (a *agent) tableNames() string {
	var names []string
	for _, t := range a.tables {
		names = append(names, t.String())
	}
	return strings.Join(names, ", ")
}

// markNow stores the current time.
func markNow(when *atomic.Pointer[time.Time]) {
	now := time.Now()
	when.Store(&now)
}

func timeOf(when *atomic.Pointer[time.Time]) time.Time {
	if t := when.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

// serve answers requests over HTTP and the socket until ctx ends.
func (a *agent) serve(ctx context.Context) {
	telemetry.Serve(ctx, telemetry.Options{
		Address: a.opts.HTTPAddress, Socket: a.opts.Socket, Logger: a.log,
		HandOver: a.handOver, TookOver: a.tookOver, Yielded: a.tookOverC, Flows: a.flows.serveFlows, Denials: a.flows.serveDenials, Policies: a.policies, Versions: a.serveVersions,
		Services: a.hubbleServices(),
	}, a.state)
}

// hubbleServices returns the servers of Hubble's API.
func (a *agent) hubbleServices() (all []telemetry.Service) {
	l := a.opts.Hubble
	if l.Socket == "" && l.Address == "" {
		return nil
	}
	socket, address := l.Servers(hubble.Options{
		Log: a.flows.log, Snapshot: a.published.Snapshot, NodeName: a.opts.NodeName, Version: a.opts.Version, Logger: a.log,
		Within: a.flows.tenure.within,
	})
	if l.Socket != "" {
		all = append(all, telemetry.Service{Name: l.Socket, Unix: true, Flag: "--hubble-socket", Server: socket})
	}
	if l.Address != "" {
		all = append(all, telemetry.Service{
			Name: l.Address, Flag: "--hubble-address", Server: address,
			Problems: func() []status.Problem { return certificateProblems(l.Address, address.Failure) },
		})
	}
	return all
}

// certificateProblems returns a problem if the certificates of Hubble's API at an address cannot be read, or
// if the agent's has expired. A rollout does not show this failure, because the agent nevertheless enforces
// policies and is ready.
func certificateProblems(address string, failure func() string) []status.Problem {
	if failure == nil {
		return nil
	}
	why := failure()
	if why == "" {
		return nil
	}
	return []status.Problem{{
		Kind: "hubble", Where: address, Detail: why,
		Hint: "correct the files of --hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca; in the chart, the Secret of hubble.tlsSecret",
	}}
}

// state returns the current state of the agent.
func (a *agent) state() *telemetry.State {
	s := &telemetry.State{
		Settings: status.Settings{
			Version: a.opts.Version, Node: a.opts.NodeName, PID: os.Getpid(), Tables: a.tableNames(), Queues: a.opts.Rules.Queues,
			Fail: failMode(a.opts.Rules.FailOpen), OnExit: string(a.opts.OnExit), DenyWith: a.opts.Denial.Or(filter.DenialDrop).String(),
			LogVerdicts: a.opts.Verdicts.Or(filter.LogNone).String(),
		},
		Now: time.Now(), Started: a.started, Ready: timeOf(&a.ready),
		Snapshot: a.published.Snapshot(), Published: timeOf(&a.inForce),
		Queue: a.queues.Stats(), Rejudged: a.follower.Total(), Repairs: a.manager.Repairs(),
		Unlogged: a.verdicts.Suppressed(), Failing: a.manager.Failures(),
		RepairFailures: a.manager.RepairFailures(), Reduced: a.manager.Reduced(),
	}
	if left := a.otherBackend.Load(); left != nil {
		s.Problems = append(s.Problems, status.Problem{Kind: "rules", Where: "of the other backend", Detail: (*left).Error()})
	}
	s.Digest, s.DigestSince = a.enforced.digestNow()
	s.FlowRecords, s.FlowsLeftOut = a.flows.log.Stats()
	s.Kernel = a.kernelStats()
	s.KernelDenied, s.KernelUnknown = a.flows.kernelDenials()
	s.Guard, s.Unguarded = a.guardStats()
	var err error
	if s.Forged, err = a.manager.Forged(); err != nil {
		a.log.Warn("cannot count forged packets", "err", err)
	}
	s.Waiting, _ = a.queues.Waiting() // Queues.Waiting has logged the error
	for _, e := range a.evaluators {
		s.Tally.Add(e.Tally())
		flows := e.Stats()
		s.Flows.Hits += flows.Hits
		s.Flows.Misses += flows.Misses
		s.Flows.Size += flows.Size
	}
	for _, source := range a.sources {
		s.Sources = append(s.Sources, source.String())
		if api, is := source.(*kube.Source); is {
			s.Watches = append(s.Watches, watches(api.Health())...)
			s.Problems = append(s.Problems, a.taintProblems(api)...)
		}
	}
	broken := a.brokenManifests()
	for _, p := range beyondManifests(a.controller.Problems(), broken) {
		s.Problems = append(s.Problems, problemOf(p))
	}
	a.network.addTo(s, a.opts.SysctlProblems)
	for _, c := range a.controller.Clashes() {
		s.Problems = append(s.Problems, status.Problem{
			Kind: "address", Where: c.Addr.String(), Detail: fmt.Sprintf("the live pods %s claim it; %s gets it", c.Pods(), c.Winner),
			Hint: "delete the pod that does not have the address, or correct its status",
		})
	}
	for _, p := range broken {
		s.Problems = append(s.Problems, manifestProblem(p))
	}
	if passed := a.notRead.Load(); passed != nil {
		s.NotRead = manifests.TextOf(*passed)
	}
	return s
}

// brokenManifests returns the current problems of the manifests.
func (a *agent) brokenManifests() []manifests.Problem {
	if read := a.manifests.Load(); read != nil {
		return *read
	}
	return nil
}

// problemOf returns a problem of the policy store as the status shows it.
func problemOf(p policy.Problem) status.Problem {
	out := status.Problem{Kind: "policy", Where: nameOf(p.Policy) + ", " + p.Field, Detail: p.What(), Hint: p.Hint}
	if p.Policy.Kind == "Namespace" {
		out.Kind, out.Where = "namespace", p.Policy.Name+", "+p.Field
	}
	return out
}

// reportedByManifests reports whether a problem of a policy is, or follows from, a problem that
// the source of manifests reports.
func (a *agent) reportedByManifests(p policy.Problem) bool {
	return len(beyondManifests([]policy.Problem{p}, a.brokenManifests())) == 0
}

// manifestProblem returns a problem of a manifest as the status shows it.
func manifestProblem(p manifests.Problem) status.Problem {
	return status.Problem{Kind: "manifest", Where: location(p), Detail: p.What(), Hint: p.Hint, InForce: p.InForce}
}

// nameOf returns the name of a policy in the status, with its kind if it is in no namespace.
func nameOf(r policy.Ref) string {
	if r.Namespace == "" {
		return r.Object()
	}
	return r.String()
}

// beyondManifests returns the problems in found that are not also in broken. A problem that is
// in both is reported as in broken, which names the file.
func beyondManifests(found []policy.Problem, broken []manifests.Problem) []policy.Problem {
	return slices.DeleteFunc(slices.Clone(found), func(p policy.Problem) bool {
		return manifests.CausedBy(p, broken) || slices.ContainsFunc(broken, func(m manifests.Problem) bool {
			return m.Object == p.Policy.Object() && m.Field == p.Field && m.Detail == p.Detail
		})
	})
}

// location returns the file, document, object and field of a problem.
func location(p manifests.Problem) string {
	text := p.File
	if p.Document > 0 {
		text += fmt.Sprintf(", document %d", p.Document)
	}
	for _, part := range []string{p.Object, p.Field} {
		if part != "" {
			text += ", " + part
		}
	}
	return text
}

func watches(kinds []kube.KindHealth) []status.Watch {
	var all []status.Watch
	for _, k := range kinds {
		w := status.Watch{Kind: k.Kind, Optional: k.Optional, Version: k.Version, Synced: k.Synced, Since: k.Since, Events: k.Events, Restarts: k.Restarts, Errors: k.Errors}
		if k.Err != nil {
			w.Broken = k.Err.Error()
		}
		all = append(all, w)
	}
	return all
}

// tookOver reports whether the predecessor has yielded to this agent.
func (a *agent) tookOver() bool { return a.predecessor != nil && a.is(applying, enforcing, resuming) }
