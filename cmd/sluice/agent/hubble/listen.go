package hubble

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
)

// SocketName is the usual name of the unix socket of Hubble's API, beside that of the agent.
const SocketName = "hubble.sock"

// Listen is where the API is served.
type Listen struct {
	Socket  string // path of a unix socket that only root may open; empty disables it
	Address string // TCP address, which other nodes reach; empty disables it
	TLS     TLSFiles
	// DisableTLS allows an Address that is not loopback without TLS: all who reach it read the flows.
	DisableTLS bool
}

// Check returns an error if the flags contradict each other, or would show the flows to all who reach
// the address without being told to.
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

// Peers returns how the other agents are reached: as this one.
func (l Listen) Peers() Peers {
	p := Peers{Socket: l.Socket}
	host, port, err := net.SplitHostPort(l.Address)
	if err != nil {
		return p // there is no address
	}
	if n, err := net.LookupPort("tcp", port); err == nil {
		p.Port = uint16(n)
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	p.Addr, _ = netip.ParseAddr(host) // all addresses without
	return p
}

// Servers returns the servers of an API: for the socket, and for the address. opts.Peers is set by them.
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
	return api.NewServer(nil), api.NewServer(certificates.Credentials())
}
