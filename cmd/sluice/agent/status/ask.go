package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"time"
)

// DefaultSocket is the path of the socket for sluice status.
const DefaultSocket = "/run/sluice/sluice.sock"

// ErrNoAgent is wrapped by errors of Ask if no agent listens on the socket.
var ErrNoAgent = errors.New("no agent answers")

// askTimeout bounds the wait for an agent's status.
const askTimeout = 5 * time.Second

// Ask requests the status of the agent that listens on a socket. The error wraps ErrNoAgent if
// no agent listens there.
func Ask(ctx context.Context, path string) (*Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("it took longer than %v to answer", askTimeout))
	defer cancel()
	process := 0
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			process = listenerOf(conn)
		}
		return conn, err
	}}
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/status", nil)
	if err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	response, err := transport.RoundTrip(request)
	switch {
	case noListener(err):
		return nil, fmt.Errorf("%w on %s: %s", ErrNoAgent, path, noAgentHint)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("only its owner may open the agent's socket %s: ask as root", path)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ask the agent on %s: %w", path, context.Cause(ctx))
	case err != nil:
		return nil, fmt.Errorf("ask the agent on %s: %w", path, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200)) // on an error, the part of the text that was read is enough
		return nil, fmt.Errorf("the agent on %s answers %s: %s", path, response.Status, text)
	}
	var s Status
	if err := json.NewDecoder(response.Body).Decode(&s); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("read the answer of the agent on %s: %w", path, err)
	}
	s.Process = process
	return &s, nil
}
