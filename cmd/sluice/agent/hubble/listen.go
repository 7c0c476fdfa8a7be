package hubble

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
)

// SocketName is the default name of the unix socket of Hubble's API, in the directory of the agent's
// socket.
const SocketName = "hubble.sock"

// Listen tells where and how the API is served.
type Listen struct {
	Socket  string // path of a unix socket that only root may open; empty disables it
	Address string // TCP address, for clients on other nodes; empty disables it
	TLS     TLSFiles
	// DisableTLS allows an Address other than loopback without TLS. Then every client that can connect to
	// it can read the flows.
	DisableTLS bool
}

// Check returns an error if the flags contradict each other, or if Address would show the flows to all
// clients although DisableTLS is not set.
func (l Listen) Check() error {
	given := l.TLS != TLSFiles{}
	switch {
	case given && l.Address == "":
		return errors.New("--hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca are about --hubble-address: give it, such as :4244")
	case given && (l.TLS.Cert == "" || l.TLS.Key == "" || l.TLS.ClientCA == ""):
		return errors.New("give --hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca together: clients are asked for a certificate")
	case given && l.DisableTLS:
		return errors.New("--hubble-disable-tls contradicts --hubble-tls-cert: leave out one")
	case given || l.Address == "" || l.DisableTLS || l.isLoopback():
		return nil
	}
	return fmt.Errorf("--hubble-address %s shows the flows to all who reach it: give --hubble-tls-cert, --hubble-tls-key and --hubble-tls-client-ca, or --hubble-disable-tls if you want that", l.Address)
}

func (l Listen) isLoopback() bool {
	host, _, err := net.SplitHostPort(l.Address)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// Peers returns how clients reach the agents of all nodes. The other agents are reached as this one, at
// the same port.
func (l Listen) Peers() Peers {
	p := Peers{Socket: l.Socket}
	host, port, err := net.SplitHostPort(l.Address)
	if err != nil {
		return p // l.Address is empty
	}
	if n, err := net.LookupPort("tcp", port); err == nil {
		p.Port = uint16(n)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	p.Addr, _ = netip.ParseAddr(host) // invalid without a host: the agent listens on all addresses
	return p
}

// Servers returns two servers of one API: for the socket, and for the address. It sets opts.Peers.
func (l Listen) Servers(opts Options) (socket, address Server) {
	opts.Peers = l.Peers()
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if l.TLS == (TLSFiles{}) {
		api := New(opts)
		return api.NewServer(nil), api.NewServer(nil)
	}
	certificates := NewCertificates(l.TLS, opts.Logger)
	opts.Peers.ServerName = certificates.ServerName
	api := New(opts)
	address = api.NewServer(certificates.Credentials())
	address.Failure = certificates.Failure
	return api.NewServer(nil), address
}
