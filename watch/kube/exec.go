package kube

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
)

// maxErrorText bounds the text of a command in a pod that is kept for its error.
const maxErrorText = 4 << 10

// CommandError is the error of a command that has ended with a status other than 0.
type CommandError struct {
	Status int
	Text   string // what it has written to its standard error, as far as it is kept
}

func (e *CommandError) Error() string {
	return cmp.Or(e.Text, fmt.Sprintf("exit status %d", e.Status))
}

// Run runs a command in the pod of an agent, with the rights of the user, and writes what it prints to
// out. The standard input of the command stays open until ctx ends, so that a command that reads it
// notices that. The error is a *CommandError if the command has run and failed.
func (a *Agents) Run(ctx context.Context, pod AgentPod, command []string, out io.Writer) error {
	if !pod.Running {
		return fmt.Errorf("pod %s does not run", pod)
	}
	request := a.client.groups[podKind.group].Post().Namespace(pod.Namespace).Resource(podKind.resource).Name(pod.Name).SubResource("exec").
		Param("container", pod.Container).Param("stdin", "true").Param("stdout", "true").Param("stderr", "true")
	for _, word := range command {
		request = request.Param("command", word)
	}
	executor, err := a.executor(request.URL())
	if err != nil {
		return fmt.Errorf("run a command in pod %s: %w", pod, err)
	}
	// client-go logs broken streams itself. Here they are part of the error.
	quiet := klog.NewContext(ctx, logr.Discard())
	in, hold := io.Pipe()
	defer hold.Close()
	failed := &boundedBuffer{left: maxErrorText}
	err = executor.StreamWithContext(quiet, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: failed})
	var status exec.CodeExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &status):
		return &CommandError{status.Code, failed.lines()}
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case apierrors.IsForbidden(err), strings.Contains(err.Error(), "forbidden"): // a refused upgrade is only a text
		return fmt.Errorf("run a command in pod %s: %w: let this user get and create pods/exec: see the rights in deploy/README.md", pod, err)
	}
	return fmt.Errorf("run a command in pod %s: %w", pod, err)
}

// executor returns what runs commands over a WebSocket or, with an API server or a proxy that refuses it,
// over SPDY.
func (a *Agents) executor(at *url.URL) (remotecommand.Executor, error) {
	socket, err := remotecommand.NewWebSocketExecutor(a.config, http.MethodGet, at.String())
	if err != nil {
		return nil, err
	}
	spdy, err := remotecommand.NewSPDYExecutor(a.config, http.MethodPost, at)
	if err != nil {
		return nil, err
	}
	return remotecommand.NewFallbackExecutor(socket, spdy, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
}

// boundedBuffer keeps the first bytes that are written to it. It has no other way in: io.Copy would use
// the buffer's ReadFrom.
type boundedBuffer struct {
	kept bytes.Buffer
	left int
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	n := min(b.left, len(p))
	b.left -= n
	b.kept.Write(p[:n])
	return len(p), nil
}

// lines returns the lines as one, without the program's name before each.
func (b *boundedBuffer) lines() string {
	var all []string
	for line := range strings.Lines(b.kept.String()) {
		if line = strings.TrimPrefix(strings.TrimSpace(line), "sluice: "); line != "" {
			all = append(all, line)
		}
	}
	return strings.Join(all, "; ")
}
