package hubble

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// TLSFiles are the paths of the PEM files of a server that requires certificates of its clients.
type TLSFiles struct{ Cert, Key, ClientCA string }

// Certificates reads TLSFiles again for each connection, so that the server uses a renewed certificate
// without a restart. If it cannot read the files, it logs the reason and uses those that it has read
// last. If it has never read them, it refuses the connection.
type Certificates struct {
	files  TLSFiles
	logger *slog.Logger
	now    func() time.Time // time.Now, except in tests

	mu     sync.Mutex
	last   *tls.Config // nil if the files were never read
	failed error       // the error of the last attempt to read the files; nil if it succeeded
}

// NewCertificates reads the files for the first time. If it fails, it logs the error, and the agent starts
// nevertheless.
func NewCertificates(files TLSFiles, logger *slog.Logger) *Certificates {
	c := &Certificates{files: files, logger: logger, now: time.Now}
	_, _ = c.current() // current logs the error
	return c
}

// Credentials returns the credentials of a server with these certificates.
func (c *Certificates) Credentials() credentials.TransportCredentials {
	return credentials.NewTLS(&tls.Config{
		MinVersion:         tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current() },
	})
}

func (c *Certificates) current() (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.load()
	was := c.failed
	c.failed = err
	switch {
	case err == nil:
		c.last = now
		if was != nil {
			c.logger.Info("the certificates of Hubble's API can be read again")
		}
	case was == nil || was.Error() != err.Error():
		c.logger.Error("cannot read the certificates of Hubble's API; policies are still enforced", "err", err, "effect", c.effect())
	}
	if c.last == nil {
		return nil, err
	}
	return c.last, nil
}

// effect returns the effect of a failure to read the files. The caller holds c.mu.
func (c *Certificates) effect() string {
	if c.last == nil {
		return "all clients are refused"
	}
	return "the certificate that was read last is used"
}

// Failure reads the files. If they cannot be read, or if the certificate has expired, it returns the reason
// and the effect; otherwise it returns "".
func (c *Certificates) Failure() string {
	_, _ = c.current() // the error is in c.failed
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failed != nil {
		return c.failed.Error() + "; " + c.effect()
	}
	if end := c.last.Certificates[0].Leaf.NotAfter; c.now().After(end) {
		return fmt.Sprintf("the certificate of Hubble's API expired at %s; clients refuse it", end.Format(time.RFC3339))
	}
	return ""
}

func (c *Certificates) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return nil, fmt.Errorf("read the certificate of Hubble's API: %w", err)
	}
	pem, err := os.ReadFile(c.files.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("read the authority of the clients of Hubble's API: %w", err)
	}
	clients := x509.NewCertPool()
	if !clients.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the authority of the clients of Hubble's API: %s has no certificate", c.files.ClientCA)
	}
	if len(cert.Leaf.DNSNames) == 0 {
		return nil, errors.New("read the certificate of Hubble's API: it has no DNS name, by which a relay could know it")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients, NextProtos: []string{"h2"},
	}, nil
}

// ServerName returns the name by which a relay verifies the certificate of the agent on a node: the first
// DNS name in this agent's certificate. If it begins with an asterisk, as in Cilium's
// "*.default.hubble-grpc.cilium.io", the name of the node replaces the asterisk.
func (c *Certificates) ServerName(node string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == nil {
		return ""
	}
	name := c.last.Certificates[0].Leaf.DNSNames[0]
	if rest, is := strings.CutPrefix(name, "*."); is {
		return strings.ReplaceAll(node, ".", "-") + "." + rest
	}
	return name
}
