package lab

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
)

// Serve answers on a port, "tcp" or "udp", on all addresses of the host, until the host is
// closed. To each TCP connection it sends one line, with the host's name and the client's
// address and port as the server sees it, and echoes what follows. To each datagram it answers
// with such a line and the datagram. [Host.Connect] is its client.
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

// identify returns a server's line: its name and the client that it sees.
func identify(name string, client netip.AddrPort) string {
	return name + " " + netip.AddrPortFrom(client.Addr().Unmap(), client.Port()).String() + "\n"
}

// tcpServer is a listener whose connections end with it.
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
			break // closed; other errors do not occur in a lab
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

// serve ends when the client closes. Errors show on the client's side.
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

// serveUDP ends when the socket is closed.
func serveUDP(c *net.UDPConn, name string) {
	buf := make([]byte, 64<<10)
	for {
		n, client, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		// A client that is gone must not end the server.
		_, _ = c.WriteToUDPAddrPort(append([]byte(identify(name, client)), buf[:n]...), client)
	}
}
