package kube

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"syscall"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// APIError is why the API server does not tell what it should.
type APIError struct {
	Server string
	// Request is what was asked, as in "watch pods"; empty if the server is in
	// trouble with whatever it is asked.
	Request string
	Cause   error
	Hint    string // what would help

	resource string // that was asked for; empty if Request is
}

func (t *APIError) Error() string {
	request := "reach the API server"
	if t.Request != "" {
		request = t.Request
	}
	return fmt.Sprintf("%s at %s: %v: %s", request, t.Server, t.Cause, t.Hint)
}

func (t *APIError) Unwrap() error { return t.Cause }

// LogValue keeps the parts apart in structured logs.
func (t *APIError) LogValue() slog.Value {
	var request []slog.Attr
	if t.Request != "" {
		request = []slog.Attr{slog.String("request", t.Request)}
	}
	return slog.GroupValue(append(request,
		slog.String("server", t.Server), slog.String("cause", t.Cause.Error()), slog.String("hint", t.Hint))...)
}

// key is the same for what a reader would take for the same trouble: the mend is
// chosen by the nature of the cause, whose text may hold ports and times, and who
// may not watch may not list in most cases either.
func (t *APIError) key() string { return t.resource + "\x00" + t.Hint }

func (t *APIError) alike(o *APIError) bool { return t.key() == o.key() }

// isRestart says whether an error is none: the watch has ended as all do, or is to go
// on from a version that is too old.
func isRestart(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) ||
		apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

func newAPIError(err error, server string, k *kind, verb string) *APIError {
	t := &APIError{Server: server, Request: verb + " " + k.resource, Cause: withText(err), resource: k.resource}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		if t.Hint = statusHint(err, status, k); t.Hint == "" {
			t.Request, t.resource, t.Hint = "", "", "see the API server's log; sluice tries again"
		}
		return t
	}
	t.Request, t.resource, t.Hint = "", "", connectHint(err)
	return t
}

// withText gives an error without a text one: a Status says all that it says in its
// code, if a server or a proxy leaves its message away.
func withText(err error) error {
	if strings.TrimSpace(err.Error()) != "" {
		return err
	}
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return fmt.Errorf("an error of type %T without a text%w", err, err)
	}
	s := status.Status()
	name := http.StatusText(int(s.Code))
	if name == "" {
		name = cmp.Or(string(s.Reason), "which HTTP has no name for")
	}
	return fmt.Errorf("the server answers %d, %s%w", s.Code, name, err)
}

// statusHint is what helps against an answer that concerns one kind, or the user.
func statusHint(err error, status apierrors.APIStatus, k *kind) string {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("let this user list and watch %s of API group %q in the whole cluster, by a ClusterRole and a ClusterRoleBinding", k.resource, k.group.Group)
	case apierrors.IsUnauthorized(err):
		return "give credentials that the API server accepts, in the kubeconfig or by the pod's service account; they may have expired"
	case apierrors.IsNotFound(err), apierrors.IsMethodNotSupported(err):
		return fmt.Sprintf("the server does not serve %s of %s: check that the address is that of a Kubernetes API server and that it has this API enabled", k.resource, k.group)
	case apierrors.IsNotAcceptable(err), status.Status().Code == http.StatusBadRequest:
		return "this server is no Kubernetes API server, or one of a version that sluice does not know"
	}
	return ""
}

// connectHint is what helps where no answer came.
func connectHint(err error) string {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
		lookup    *net.DNSError
		timeout   net.Error
	)
	switch {
	case utilnet.IsConnectionRefused(err):
		return "start the API server, or correct its address; sluice tries again"
	case errors.As(err, &lookup):
		return "correct the server's name in the kubeconfig, or the node's DNS"
	case errors.As(err, &authority):
		return "give the certificate authority of this cluster, in the kubeconfig's certificate-authority"
	case errors.As(err, &hostname), errors.As(err, &invalid):
		return "the server's certificate is for another name or time: correct the address, the certificate or the clock"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "the server does not speak TLS there: correct the address, or write http:// in the kubeconfig"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "make a route from this node to the API server, or correct its address"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "look whether the network between this node and the API server lets packets pass; sluice tries again"
	}
	return "sluice tries again"
}
