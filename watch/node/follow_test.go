package node

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"
)

// If a subscription ends or cannot be opened, follow opens another one. It signals once for all
// events that it may have missed meanwhile.
func TestFollowSubscribesAgain(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	events, done := make(chan struct{}, 1), make(chan struct{})
	subscriptions := make(chan context.Context, 8)
	live := make(chan int)
	go func() {
		defer close(done)
		n := 0
		follow(ctx, slog.New(slog.DiscardHandler), events, func(n int) bool { return n > 0 }, func(ctx context.Context, _ func(error)) (<-chan int, error) {
			subscriptions <- ctx
			switch n++; n {
			case 1:
				broken := make(chan int)
				close(broken)
				return broken, nil
			case 2:
				return nil, errors.New("no socket")
			}
			return live, nil
		})
	}()
	wait := func(what string, c <-chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(30 * time.Second):
			t.Fatalf("waited for %s", what)
		}
	}
	first := <-subscriptions
	wait("an event of the subscription that broke off", events)
	wait("the end of the context of that subscription", first.Done())
	<-subscriptions
	<-subscriptions
	live <- 0 // when follow() has received this, it has sent its signals about the subscriptions
	select {
	case <-events:
	default:
	}
	for range 3 {
		live <- 0 // an irrelevant change
		live <- 1
		wait("an event of the last subscription", events)
	}
	live <- 0
	cancel()
	wait("the end of follow", done)
	select {
	case <-events:
		t.Error("an irrelevant change counts as an event")
	default:
	}
}
