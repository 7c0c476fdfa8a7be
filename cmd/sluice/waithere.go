package main

import (
	"context"
	"fmt"
	"time"

	"sluice/cmd/sluice/agent/status"
)

const (
	// waitInterval is the time between two requests to the agent of this node. It is longer if the answers
	// take long, so that the agent spends at most a tenth of the time on them.
	waitInterval = 20 * time.Millisecond
	// answersPerInterval is how many times as long as an answer the interval is at least.
	answersPerInterval = 10
)

// waitHere waits for the agent of this node until ctx ends.
func waitHere(ctx context.Context, e env, opts *waitOptions, wanted []status.Wanted) error {
	p := poll{socket: opts.socket, wanted: wanted, left: wanted}
	why := fmt.Sprintf("the agent on %s has not answered", opts.socket)
	for first := true; ; first = false {
		began := time.Now()
		v, missing, err := p.ask(ctx)
		switch {
		case err == nil && len(missing) == 0:
			v.SetTiers(wanted)
			sayInForce(e, wanted, "")
			if v.Bypass != "" {
				e.say("%s", v.Bypass)
			}
			return nil
		case err == nil:
			why = reasonsText(missing)
		case ended(ctx): // why keeps the reasons of the last answer
		case first:
			return err
		default:
			why = err.Error() // asks again: another agent may be about to take over
		}
		if opts.timeout == 0 {
			return opts.notInTime(ctx, why)
		}
		select {
		case <-ctx.Done():
			return opts.notInTime(ctx, why)
		case <-time.After(max(waitInterval, answersPerInterval*time.Since(began))):
		}
	}
}

// poll asks an agent until policies are in force as wanted.
type poll struct {
	socket string
	wanted []status.Wanted
	left   []status.Wanted // those that were not in force as wanted in the last answer
}

// ask asks the agent once, for the policies in left. If these are in force, it asks again for all, because
// some may have changed meanwhile. It returns a reason for each that is not in force as wanted.
func (p *poll) ask(ctx context.Context) (v *status.Versions, why []string, err error) {
	if v, err = status.AskVersions(ctx, p.socket, refsOf(p.left)...); err != nil {
		return nil, nil, err
	}
	asked := len(p.left)
	if p.left, why = v.Missing(p.left); len(why) > 0 {
		return v, why, nil
	}
	p.left = p.wanted
	if asked == len(p.wanted) {
		return v, nil, nil
	}
	if v, err = status.AskVersions(ctx, p.socket, refsOf(p.wanted)...); err != nil {
		return nil, nil, err
	}
	if p.left, why = v.Missing(p.wanted); len(why) == 0 {
		p.left = p.wanted
	}
	return v, why, nil
}
