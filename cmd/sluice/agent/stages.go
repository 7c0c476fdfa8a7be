package agent

import (
	"context"

	"sluice/watch"
)

// stages returns the stages that put a change of policy in force, in order. Each stage returns
// when its part decides nothing by an older snapshot, except the last one: a sweep may take
// longer than the next change should wait, so the follower sweeps on its own goroutine.
//
// The verdict log comes first, so that it misses no verdict of the new snapshot. It waits for nothing
// unless an annotation has changed what it watches, and then for some system calls. Pending packets come before the kernel cache, so that they do not wait for its stage, which
// takes some 10 ms. The guard does not depend on the others. The rules come after both, because
// iptables may wait for seconds for another program. Connections come last: a sweep is complete
// only if no verdict of an older snapshot can still create or mark a connection.
func (a *agent) stages() []watch.Stage {
	return []watch.Stage{
		watch.StageFunc{Name: "verdict log", Func: a.watchVerdicts},
		watch.StageFunc{Name: "workers", Func: a.awaitWorkers},
		watch.StageFunc{Name: "pending packets", Func: a.judgePending},
		watch.StageFunc{Name: "kernel cache", Func: a.publishToKernel},
		watch.StageFunc{Name: "guard", Func: a.publishToGuard},
		watch.StageFunc{Name: "rules", Func: a.adaptRules},
		watch.StageFunc{Name: "connections", Func: a.judgeConnections},
	}
}

// watchVerdicts makes the verdict log watch what annotations ask for.
func (a *agent) watchVerdicts(_ context.Context, c watch.Change) error {
	a.verdicts.Follow(c.Snapshot.Logging())
	return nil
}

// awaitWorkers returns when no worker decides by an older snapshot. From then on, deleted
// policies deny nothing, so awaitWorkers removes their metrics.
func (a *agent) awaitWorkers(ctx context.Context, c watch.Change) error {
	err := watch.Workers{Published: &a.published, Logger: a.log}.Apply(ctx, c)
	if ctx.Err() == nil {
		markNow(&a.inForce)
	}
	if deleted := c.Snapshot.Deleted(); len(deleted) > 0 {
		for _, e := range a.evaluators {
			e.Forget(deleted)
		}
		a.flows.kernelDenied.Forget(deleted)
		a.series.Free(deleted)
	}
	return err
}

// judgePending makes the workers judge the held packets again.
func (a *agent) judgePending(context.Context, watch.Change) error {
	a.queues.Reevaluate()
	return nil
}

// publishToKernel publishes the snapshot to the kernel's flow cache. It returns when the cache
// decides no packet by an older snapshot.
func (a *agent) publishToKernel(_ context.Context, c watch.Change) error {
	if a.kernel == nil {
		return nil
	}
	return a.kernelError(a.kernel.Publish(c.Snapshot, c.Addresses))
}

// publishToGuard updates the programs on pods' interfaces. If that fails, the guard itself
// tries again.
func (a *agent) publishToGuard(_ context.Context, c watch.Change) error {
	if a.guard != nil {
		a.updateGuard(c.Snapshot)
	}
	return nil
}

// judgeConnections passes the change to the follower. The follower then judges the live
// connections that the change concerns.
func (a *agent) judgeConnections(_ context.Context, c watch.Change) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.phase == enforcing { // otherwise another agent judges the connections
		a.follower.Published(c.Snapshot, c.Addresses, a.scope(c))
	}
	return nil
}
