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
	"strings"
	"time"
)

// DefaultSocket is the path of the socket for sluice status.
const DefaultSocket = "/run/sluice/sluice.sock"

// ErrNoAgent is wrapped by errors of Ask if no agent listens on the socket.
var ErrNoAgent = errors.New("no agent answers")

// ErrNotEnforcing is wrapped by errors of Open if the agent does not enforce yet, or if another agent has
// taken over. In the latter case, the other agent will soon listen on the socket.
var ErrNotEnforcing = errors.New("it does not enforce yet, or another one has taken over")

// askTimeout bounds the wait for an agent's status. For other requests, it bounds the wait for the
// beginning of the answer.
const askTimeout = 5 * time.Second

// Ask requests the status of the agent that listens on a socket. The error wraps ErrNoAgent if
// no agent listens there.
func Ask(ctx context.Context, path string) (*Status, error) { return ask(ctx, path, "/status") }

// AskAll is like Ask, but also requests the policies in force.
func AskAll(ctx context.Context, path string) (*Status, error) {
	return ask(ctx, path, "/status?policies=true")
}

func ask(ctx context.Context, path, what string) (*Status, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTimeout, fmt.Errorf("it took longer than %v to answer", askTimeout))
	defer cancel()
	var s Status
	body, process, err := open(ctx, path, http.MethodGet, what, nil)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if err := json.NewDecoder(body).Decode(&s); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("read the answer of the agent on %s: %w", path, err)
	}
	s.Process = process
	return &s, nil
}

// Open sends a request, such as "/denials", to the agent that listens on a socket, and returns the answer.
// If no agent listens there, the error wraps ErrNoAgent. If the answer needs an agent that enforces and
// this one does not, the error wraps ErrNotEnforcing.
func Open(ctx context.Context, path, request string) (io.ReadCloser, error) {
	body, _, err := open(ctx, path, http.MethodGet, request, nil)
	return body, err
}

// body is the body of a response. Close also closes the connection.
type body struct {
	io.ReadCloser
	transport *http.Transport
}

func (b body) Close() error {
	defer b.transport.CloseIdleConnections()
	return b.ReadCloser.Close()
}

// open is like Open, with any method and with a body, which may be nil. It also returns the PID of the
// agent, as in Status.Process.
func open(ctx context.Context, path, method, what string, content io.Reader) (answer io.ReadCloser, process int, err error) {
	transport := &http.Transport{ResponseHeaderTimeout: askTimeout, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err == nil {
			process = listenerOf(conn)
		}
		return conn, err
	}}
	request, err := http.NewRequestWithContext(ctx, method, "http://agent"+what, content)
	if err != nil {
		return nil, 0, fmt.Errorf("ask the agent: %w", err)
	}
	response, err := transport.RoundTrip(request) //nolint:bodyclose // the caller closes b, which holds the body
	switch {
	case noListener(err):
		return nil, 0, fmt.Errorf("%w on %s: %s", ErrNoAgent, path, noAgentHint)
	case errors.Is(err, fs.ErrPermission):
		return nil, 0, permanentError{fmt.Errorf("only its owner may open the agent's socket %s: ask as root", path)}
	case ctx.Err() != nil:
		return nil, 0, fmt.Errorf("ask the agent on %s: %w", path, context.Cause(ctx))
	case isTimeout(err):
		return nil, 0, fmt.Errorf("ask the agent on %s: it took longer than %v to answer", path, askTimeout)
	case err != nil:
		return nil, 0, fmt.Errorf("ask the agent on %s: %w", path, err)
	}
	b := body{response.Body, transport}
	if response.StatusCode == http.StatusServiceUnavailable {
		return nil, 0, errors.Join(fmt.Errorf("ask the agent on %s: %w: ask again in a moment", path, ErrNotEnforcing), b.Close())
	}
	if response.StatusCode != http.StatusOK {
		defer b.Close()
		text, _ := io.ReadAll(io.LimitReader(b, 200)) // an incomplete text is better than none
		err := fmt.Errorf("the agent on %s answers %s: %s", path, response.Status, strings.TrimSpace(string(text)))
		if response.StatusCode < http.StatusInternalServerError {
			err = permanentError{err}
		}
		return nil, 0, err
	}
	return b, process, nil
}

func isTimeout(err error) bool {
	var failed net.Error
	return errors.As(err, &failed) && failed.Timeout()
}

// permanentError is an error that remains if the same request is sent again.
type permanentError struct{ error }

// Permanent reports whether an error of Open remains until the user does something: sending the request
// again, to this agent or the next one on the socket, would return the same error.
func Permanent(err error) bool {
	var permanent permanentError
	return errors.As(err, &permanent)
}
