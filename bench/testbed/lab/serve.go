package lab

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
)

// Serve serves a port on all addresses of the host, until the host is closed. network is
// "tcp" or "udp". On each TCP connection, the server sends a line with the host's name and
// with the client's address and port as the server sees them. Then it echoes all data. It
// answers each datagram with such a line, followed by the datagram. [Host.Connect] is the
// client.
func (h *Host) Serve(network string, port uint16) error {
	at := netip.AddrPortFrom(netip.Addr{}, port)
	switch network {
	case "tcp":
		l, err := h.ListenTCP(at)
		if err != nil {
			return err
		}
		s := &tcpServer{TCPListener: l, name: h.Name, open: make(map[net.Conn]bool)}
		return h.closeWith(s, s.run)
	case "udp":
		c, err := h.ListenUDP(at)
		if err != nil {
			return err
		}
		return h.closeWith(c, func() { serveUDP(c, h.Name) })
	}
	return fmt.Errorf("serve on %s: network %q: give tcp or udp", h.Name, network)
}

// identify returns the line of a server: its name, and the client's address and port.
func identify(name string, client netip.AddrPort) string {
	return name + " " + netip.AddrPortFrom(client.Addr().Unmap(), client.Port()).String() + "\n"
}

// tcpServer is a listener that closes its connections when it is closed.
type tcpServer struct {
	*net.TCPListener
	name string

	mu     sync.Mutex
	open   map[net.Conn]bool
	closed bool
	conns  sync.WaitGroup
}

func (s *tcpServer) run() {
	for {
		c, err := s.AcceptTCP()
		if err != nil {
			break // the listener is closed; other errors do not occur in a lab
		}
		s.mu.Lock()
		if s.closed {
			_ = c.Close()
		} else {
			s.open[c] = true
			s.conns.Go(func() { s.serve(c) })
		}
		s.mu.Unlock()
	}
	s.conns.Wait()
}

// serve serves a connection until the client closes it. It ignores errors, because they show on
// the client's side.
func (s *tcpServer) serve(c *net.TCPConn) {
	client := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	if _, err := io.WriteString(c, identify(s.name, client)); err == nil {
		_, _ = io.Copy(c, c)
	}
	s.mu.Lock()
	delete(s.open, c)
	s.mu.Unlock()
	_ = c.Close()
}

func (s *tcpServer) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.open {
		_ = c.Close()
	}
	return s.TCPListener.Close()
}

// serveUDP answers datagrams until the socket is closed.
func serveUDP(c *net.UDPConn, name string) {
	buf := make([]byte, 64<<10)
	for {
		n, client, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		// Ignore the error: it means that the client is gone, and must not end the server.
		_, _ = c.WriteToUDPAddrPort(append([]byte(identify(name, client)), buf[:n]...), client)
	}
}
