package hubble

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	observerpb "github.com/cilium/cilium/api/v1/observer"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"sluice/bench/testbed/authority"
	"sluice/filter/flow"
	"sluice/filter/policy"
)

// call calls the server and returns the error. If certified is true, the client has a certificate of the
// authority.
func call(t *testing.T, a *authority.Authority, address, server string, certified bool) error {
	t.Helper()
	if !certified {
		return callWith(t, a.Path("ca.crt"), TLSFiles{}, address, server)
	}
	a.Client("client")
	return callWith(t, a.Path("ca.crt"), TLSFiles{Cert: a.Path("client.crt"), Key: a.Path("client.key")}, address, server)
}

// callWith is like call, with the files of the server's authority and of the client's certificate.
func callWith(t *testing.T, authorityFile string, client TLSFiles, address, server string) error {
	t.Helper()
	roots := x509.NewCertPool()
	text, err := os.ReadFile(authorityFile)
	if err != nil || !roots.AppendCertsFromPEM(text) {
		t.Fatalf("%s has no certificate: %v", authorityFile, err)
	}
	config := &tls.Config{RootCAs: roots, ServerName: server, MinVersion: tls.VersionTLS13}
	if client != (TLSFiles{}) {
		cert, err := tls.LoadX509KeyPair(client.Cert, client.Key)
		if err != nil {
			t.Fatal(err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
	defer cancel()
	_, err = observerpb.NewObserverClient(conn).ServerStatus(ctx, &observerpb.ServerStatusRequest{})
	return err
}

// The server answers only clients with a certificate of the authority. It uses a renewed certificate
// without a restart, and keeps the last one if a file is broken.
func TestTLS(t *testing.T) {
	a := authority.New(t)
	a.Server("server", "*.default.hubble-grpc.cilium.io")
	var log bytes.Buffer
	listen := Listen{Address: "127.0.0.1:0", TLS: TLSFiles{Cert: a.Path("server.crt"), Key: a.Path("server.key"), ClientCA: a.Path("ca.crt")}}
	_, server := listen.Servers(Options{Log: flow.NewLog(1, nil), Snapshot: new(policy.Published).Snapshot, Logger: slog.New(slog.NewTextHandler(&log, nil))})
	defer server.Close()
	l, err := net.Listen("tcp", listen.Address)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(l)
	address := l.Addr().String()
	if err := call(t, a, address, "n1.default.hubble-grpc.cilium.io", true); err != nil {
		t.Errorf("with a certificate: %v", err)
	}
	if err := call(t, a, address, "n1.default.hubble-grpc.cilium.io", false); err == nil {
		t.Error("without a certificate, the client is answered")
	}
	if err := call(t, authority.New(t), address, "n1.default.hubble-grpc.cilium.io", true); err == nil {
		t.Error("with a certificate of another authority, the client is answered")
	}
	a.Server("server", "renewed")
	if err := call(t, a, address, "renewed", true); err != nil {
		t.Errorf("after a renewal: %v", err)
	}
	if err := os.WriteFile(a.Path("server.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := call(t, a, address, "renewed", true); err != nil {
		t.Errorf("with a broken file: %v", err)
	}
	_ = server.Close()
	if !strings.Contains(log.String(), "cannot read the certificates") {
		t.Errorf("the log does not tell of the broken file: %s", &log)
	}
}

// While the files cannot be read, Failure returns the reason and the effect. It reads the files at each
// call, so the failure ends even if no client connects.
func TestFailure(t *testing.T) {
	a := authority.New(t)
	var log bytes.Buffer
	files := TLSFiles{Cert: a.Path("server.crt"), Key: a.Path("server.key"), ClientCA: a.Path("ca.crt")}
	_, server := Listen{Address: ":0", TLS: files}.Servers(Options{Log: flow.NewLog(1, nil), Logger: slog.New(slog.NewTextHandler(&log, nil))})
	defer server.Close()
	for range 2 {
		if got := server.Failure(); !strings.Contains(got, "server.crt: no such file or directory; all clients are refused") {
			t.Errorf("without the files: %q", got)
		}
	}
	a.Server("server", "n1")
	if got := server.Failure(); got != "" {
		t.Errorf("with the files: %q", got)
	}
	if err := os.WriteFile(a.Path("ca.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := server.Failure(); !strings.Contains(got, "ca.crt has no certificate; the certificate that was read last is used") {
		t.Errorf("with an empty ca.crt: %q", got)
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 2 || !strings.Contains(log.String(), "can be read again") {
		t.Errorf("%d errors are logged, want one for each reason:\n%s", n, &log)
	}
}

// An expired certificate is a failure: clients refuse it, and the agent does not notice that.
func TestExpiry(t *testing.T) {
	a := authority.New(t)
	a.Server("server", "n1")
	c := NewCertificates(TLSFiles{Cert: a.Path("server.crt"), Key: a.Path("server.key"), ClientCA: a.Path("ca.crt")}, slog.New(slog.DiscardHandler))
	if got := c.Failure(); got != "" {
		t.Errorf("a valid certificate: %q", got)
	}
	c.now = func() time.Time { return time.Now().AddDate(1, 0, 0) }
	if got := c.Failure(); !strings.Contains(got, "expired at 20") {
		t.Errorf("a year later: %q", got)
	}
}

// The name of another node's certificate is derived from the name in this node's certificate.
func TestServerName(t *testing.T) {
	a := authority.New(t)
	files := TLSFiles{Cert: a.Path("server.crt"), Key: a.Path("server.key"), ClientCA: a.Path("ca.crt")}
	if got := NewCertificates(files, slog.New(slog.DiscardHandler)).ServerName("n1"); got != "" {
		t.Errorf("without a certificate: %q", got)
	}
	for dns, want := range map[string]string{"*.default.hubble-grpc.cilium.io": "n-1.default.hubble-grpc.cilium.io", "sluice": "sluice"} {
		a.Server("server", dns)
		if got := NewCertificates(files, slog.New(slog.DiscardHandler)).ServerName("n.1"); got != want {
			t.Errorf("%s: %q, want %q", dns, got, want)
		}
	}
}

// If flags contradict each other or would show the flows to all clients, Check returns an error with a
// hint.
func TestCheck(t *testing.T) {
	all := TLSFiles{Cert: "c", Key: "k", ClientCA: "a"}
	for _, tt := range []struct {
		listen Listen
		want   string
	}{
		{Listen{Socket: "/s"}, ""},
		{Listen{Address: "127.0.0.1:4244"}, ""},
		{Listen{Address: "localhost:4244"}, ""},
		{Listen{Address: "[::1]:4244"}, ""},
		{Listen{Address: ":4244", TLS: all}, ""},
		{Listen{Address: ":4244", DisableTLS: true}, ""},
		{Listen{Address: ":4244"}, "or --hubble-disable-tls"},
		{Listen{Address: "192.0.2.1:4244"}, "or --hubble-disable-tls"},
		{Listen{Address: ":4244", TLS: TLSFiles{Cert: "c", Key: "k"}}, "together"},
		{Listen{Address: ":4244", TLS: all, DisableTLS: true}, "contradicts"},
		{Listen{TLS: all}, "give it, such as :4244"},
	} {
		err := tt.listen.Check()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %q", tt.listen, err, tt.want)
		}
	}
}
