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

	"google.golang.org/grpc/credentials"
)

// TLSFiles are the PEM files of a server that only clients with a certificate may ask.
type TLSFiles struct{ Cert, Key, ClientCA string }

// Certificates reads TLSFiles again for each connection, so that a renewed certificate is used without
// a restart. If they cannot be read then, it logs the reason and uses the last ones; without any, it
// refuses the connection.
type Certificates struct {
	files  TLSFiles
	logger *slog.Logger

	mu     sync.Mutex
	last   *tls.Config // nil if the files were never read
	failed string      // why they could not be read the last time
}

// NewCertificates reads the files for the first time. A failure does not keep the agent from starting.
func NewCertificates(files TLSFiles, logger *slog.Logger) *Certificates {
	c := &Certificates{files: files, logger: logger}
	_, _ = c.current() // it has logged the error
	return c
}

// Credentials returns those of a server.
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
	switch {
	case err == nil:
		c.last, c.failed = now, ""
	case err.Error() != c.failed:
		c.failed = err.Error()
		c.logger.Error("cannot read the certificates of Hubble's API; policies are still enforced", "err", err)
	}
	if c.last == nil {
		return nil, err
	}
	return c.last, nil
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

// ServerName returns the name by which a relay verifies the certificate of a node's agent: the first
// name in this agent's certificate. If that begins with an asterisk, as Cilium's "*.default.hubble-grpc.cilium.io",
// the name of the node replaces it.
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
