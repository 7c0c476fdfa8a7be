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

// APIError describes a failed request to the API server.
type APIError struct {
	Server string
	// Request is the failed request, as in "watch pods". It is empty if the failure affects
	// all requests.
	Request string
	Cause   error
	Hint    string // how to correct the cause

	resource string // resource of the request; empty if Request is empty
}

func (e *APIError) Error() string {
	request := "reach the API server"
	if e.Request != "" {
		request = e.Request
	}
	return fmt.Sprintf("%s at %s: %v: %s", request, e.Server, e.Cause, e.Hint)
}

func (e *APIError) Unwrap() error { return e.Cause }

// once removes the hint that sluice retries, which is true of the agent only, and returns the error. It
// is for commands, which send a request once.
func (e *APIError) once() *APIError {
	e.Hint = strings.TrimSuffix(strings.TrimSuffix(e.Hint, "sluice retries"), "; ")
	return e
}

// LogValue logs the parts of the error as separate attributes.
func (e *APIError) LogValue() slog.Value {
	var request []slog.Attr
	if e.Request != "" {
		request = []slog.Attr{slog.String("request", e.Request)}
	}
	return slog.GroupValue(append(request,
		slog.String("server", e.Server), slog.String("cause", e.Cause.Error()), slog.String("hint", e.Hint))...)
}

// key returns the same string for errors that mean the same to a reader. It contains the
// resource, and the hint, which depends on the kind of the cause. It omits the cause, whose
// text may contain ports and times. It omits the verb, because a user without the right to
// watch usually lacks the right to list too.
func (e *APIError) key() string { return e.resource + "\x00" + e.Hint }

func (e *APIError) alike(o *APIError) bool { return e.key() == o.key() }

// isRestart reports whether err is not a failure: the watch has ended normally, or the
// server does not have the requested resource version and the reflector must list again.
func isRestart(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, io.EOF) ||
		apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

// newAPIError describes the error of a request, and adds a hint.
func newAPIError(err error, server string, k *kind, verb string) *APIError {
	e := &APIError{Server: server, Request: verb + " " + k.resource, Cause: withText(err), resource: k.resource}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		if e.Hint = statusHint(err, status, k); e.Hint == "" {
			e.Request, e.resource, e.Hint = "", "", "see the API server's log; sluice retries"
		}
		return e
	}
	var unreadable *decodeError
	if errors.As(err, &unreadable) {
		e.Hint = fmt.Sprintf("the response is not a list of %s as this version of sluice knows them: check the CustomResourceDefinition, if there is one, and any proxy before the server; sluice retries", k.resource)
		return e
	}
	e.Request, e.resource, e.Hint = "", "", connectHint(err)
	return e
}

// newDiscoveryError describes the error of a discovery of a kind, and adds a hint.
func newDiscoveryError(err error, server string, k *kind) *APIError {
	e := newAPIError(err, server, k, "discover")
	hint := ""
	var unknown unknownVersion
	switch {
	case errors.As(err, &unknown):
		hint = fmt.Sprintf("update Sluice, or let the CustomResourceDefinition serve %s too", k.group.Version)
	case apierrors.IsForbidden(err):
		hint = fmt.Sprintf("let this user get the paths /apis and /apis/%s/*, as the ClusterRole system:discovery does, and list %s", k.group.Group, k.resource)
	case apierrors.IsNotFound(err):
		hint = "this server is not a Kubernetes API server, or a proxy before it does not reach one: correct its address; sluice retries"
	case apierrors.IsGone(err):
		hint = "see the API server's log; sluice retries"
	}
	if hint != "" {
		e.Request, e.resource, e.Hint = "discover "+k.resource, "discovery of "+k.resource, hint
	}
	return e
}

// withText adds a text to an error whose text is blank. A server or a proxy may omit the
// message of a Status. In that case, only the code of the Status identifies the cause.
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
		name = cmp.Or(string(s.Reason), "which has no name in HTTP")
	}
	return fmt.Errorf("the server responds with %d, %s%w", s.Code, name, err)
}

// statusHint returns a hint if the server rejects the user, does not serve the kind, or is
// not a supported API server. For any other response, it returns "".
func statusHint(err error, status apierrors.APIStatus, k *kind) string {
	switch {
	case apierrors.IsForbidden(err):
		return fmt.Sprintf("let this user list and watch %s of API group %q in the whole cluster, with a ClusterRole and a ClusterRoleBinding", k.resource, k.group.Group)
	case apierrors.IsUnauthorized(err):
		return "give credentials that the API server accepts, in the kubeconfig or with the pod's service account; the current ones may have expired"
	case apierrors.IsNotFound(err), apierrors.IsMethodNotSupported(err):
		return fmt.Sprintf("the server does not serve %s of %s: check that the address is that of a Kubernetes API server with this API enabled", k.resource, k.group)
	case apierrors.IsNotAcceptable(err), status.Status().Code == http.StatusBadRequest:
		return "this server is not a Kubernetes API server, or its version is not supported by sluice"
	}
	return ""
}

// connectHint returns a hint for a request that got no response.
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
		return "start the API server, or correct its address; sluice retries"
	case errors.As(err, &lookup):
		return "correct the server's name in the kubeconfig, or the node's DNS"
	case errors.As(err, &authority):
		return "give the certificate authority of this cluster, in the kubeconfig's certificate-authority"
	case errors.As(err, &hostname), errors.As(err, &invalid):
		return "the server's certificate is for another name or time: correct the address, the certificate or the clock"
	case errors.As(err, &record), errors.Is(err, http.ErrSchemeMismatch):
		return "the server does not speak TLS there: correct the address, or write http:// in the kubeconfig"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "add a route from this node to the API server, or correct its address"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "check that the network between this node and the API server passes packets; sluice retries"
	}
	return "sluice retries"
}
