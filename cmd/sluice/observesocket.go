package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"sluice/cmd/sluice/agent/status"
	"sluice/filter/flow"
)

// reconnectInterval is the time between two attempts to reach the next agent.
const reconnectInterval = 100 * time.Millisecond

// socketStream reads the records of this node's agent, and of the agents that replace it.
type socketStream struct {
	env     env
	opts    *observeOptions
	records chan<- *flow.Record
	// If lines is not nil, it copies the lines of the agent, and records gets only the gaps between two
	// agents. To copy a line takes a tenth of the CPU that it takes to decode a record and encode it
	// again.
	lines *lineCopier
}

// readAnswer reads the records of an answer until its end.
func (s *socketStream) readAnswer(ctx context.Context, answer io.Reader) error {
	if s.lines != nil {
		return s.lines.copy(answer)
	}
	return readRecords(ctx, answer, "", s.records)
}

// once reads the records that the agent has kept.
func (s *socketStream) once(ctx context.Context) error {
	answer, err := status.Open(ctx, s.opts.socket, s.opts.request(true))
	if err != nil {
		return err
	}
	defer answer.Close()
	return s.failure(s.readAnswer(ctx, answer))
}

// follow reads records as they come, until ctx ends. When the agent has gone, it goes on with the next
// agent. It returns an error if there is no agent at the start, or if waiting for the next agent cannot
// help. With --end-with-stdin, the command runs for a client outside of the pod, which tells the user and
// connects again. In this case, follow returns an error when the agent has gone.
func (s *socketStream) follow(ctx context.Context) error {
	answer, err := status.Open(ctx, s.opts.socket, s.opts.request(true))
	if err != nil && (s.opts.endWithStdin || !errors.Is(err, status.ErrNotEnforcing)) {
		return err
	}
	if err == nil && s.opts.endWithStdin {
		fmt.Fprintln(s.env.stdout) // tells the client of this command that flows are watched from now on
	}
	for {
		what := "the agent does not enforce yet, or another one has taken over"
		if err == nil {
			what = "the agent has gone"
			if err = s.read(ctx, answer); ctx.Err() != nil || !breaksOff(err) {
				return s.failure(err)
			}
			if s.opts.endWithStdin {
				return fmt.Errorf("the agent on %s has gone", s.opts.socket)
			}
		}
		gone := time.Now()
		s.env.say("%s: flows are shown again when it answers on %s", what, s.opts.socket)
		if answer, err = s.reconnect(ctx); err != nil {
			return err
		}
		sayAgain(s.env, "the agent", gone)
		passGap(ctx, s.records, "", gone)
	}
}

// read reads records until the stream breaks off. It always returns an error.
func (s *socketStream) read(ctx context.Context, answer io.ReadCloser) error {
	defer answer.Close()
	if err := s.readAnswer(ctx, answer); err != nil {
		return err
	}
	return io.EOF
}

// reconnect waits for an agent that answers.
func (s *socketStream) reconnect(ctx context.Context) (io.ReadCloser, error) {
	for {
		answer, err := status.Open(ctx, s.opts.socket, s.opts.request(false))
		if err == nil || status.Permanent(err) {
			return answer, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(reconnectInterval):
		}
	}
}

func (s *socketStream) failure(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("read the flows of the agent on %s: %w", s.opts.socket, err)
}

// breaksOff reports whether a stream has ended in a way that lets follow go on with the next agent. This
// is not so if a record has wrong syntax or types, because the next agent would send the same again. It is
// also not so if the output cannot be written.
func breaksOff(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	var output outputError
	return !errors.As(err, &syntax) && !errors.As(err, &kind) && !errors.As(err, &output)
}

// sayAgain tells the user that an agent answers again, and for how long no flows were seen.
func sayAgain(e env, what string, gone time.Time) {
	e.say("%s answers again: nothing was seen for %s", what, flow.Rounded(time.Since(gone)))
}

// passGap adds a record about the time, from gone until now, in which no flows were seen.
func passGap(ctx context.Context, records chan<- *flow.Record, node string, gone time.Time) {
	select {
	case records <- flow.Gap(node, gone, time.Now()):
	case <-ctx.Done():
	}
}
