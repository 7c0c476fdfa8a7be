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

// maxErrorText bounds the part of a command's standard error that is kept for a CommandError.
const maxErrorText = 4 << 10

// CommandError is the error of a command that has ended with a status other than 0.
type CommandError struct {
	Status int
	Text   string // the first lines of its standard error
}

func (e *CommandError) Error() string {
	return cmp.Or(e.Text, fmt.Sprintf("exit status %d", e.Status))
}

// Command is a command to run in a pod.
type Command struct {
	Args []string
	// Input is what the command reads from its standard input. The standard input does not end there, but
	// when the context of the command ends, so that a command that reads it notices that its client has
	// gone.
	Input string
	Out   io.Writer // receives the standard output
	// Said, if not nil, receives the first lines of the standard error of a command that succeeds.
	Said *string
}

// Run runs a command in the pod of an agent, with the rights of the user. If the command has run and
// failed, the error is a *CommandError.
func (a *Agents) Run(ctx context.Context, pod AgentPod, command Command) error {
	if !pod.Running {
		return fmt.Errorf("pod %s does not run", pod)
	}
	request := a.client.groups[podKind.group].Post().Namespace(pod.Namespace).Resource(podKind.resource).Name(pod.Name).SubResource("exec").
		Param("container", pod.Container).Param("stdin", "true").Param("stdout", "true").Param("stderr", "true")
	for _, word := range command.Args {
		request = request.Param("command", word)
	}
	executor, err := a.executor(request.URL())
	if err != nil {
		return fmt.Errorf("run a command in pod %s: %w", pod, err)
	}
	// Without this, client-go would log broken streams, which are also in the error.
	quiet := klog.NewContext(ctx, logr.Discard())
	in, hold := io.Pipe()
	defer hold.Close()
	failed := &boundedBuffer{left: maxErrorText}
	err = executor.StreamWithContext(quiet, remotecommand.StreamOptions{
		Stdin: io.MultiReader(strings.NewReader(command.Input), in), Stdout: command.Out, Stderr: failed,
	})
	var status exec.CodeExitError
	switch {
	case err == nil && command.Said != nil:
		*command.Said = failed.lines()
		return nil
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

// executor returns an Executor that runs commands over a WebSocket or, if the API server or a proxy
// refuses WebSockets, over SPDY.
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

// boundedBuffer keeps the first bytes that are written to it. It does not embed the Buffer, because
// io.Copy would then call the Buffer's ReadFrom, which has no bound.
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

// lines returns the kept lines joined to one, each without the prefix "sluice: ".
func (b *boundedBuffer) lines() string {
	var all []string
	for line := range strings.Lines(b.kept.String()) {
		if line = strings.TrimPrefix(strings.TrimSpace(line), "sluice: "); line != "" {
			all = append(all, line)
		}
	}
	return strings.Join(all, "; ")
}
