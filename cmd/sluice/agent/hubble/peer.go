package hubble

import (
	"cmp"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	peerpb "github.com/cilium/cilium/api/v1/peer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sluice/filter/policy"
)

// peerInterval is the time between two checks for changes of the nodes, while a client follows the peers.
const peerInterval = time.Second

// Peers tells how clients reach the agents of all nodes: at the addresses of the nodes, each with the
// same port and TLS settings as this agent.
type Peers struct {
	// Port is the TCP port of all agents. If it is 0, agents have no TCP address, and the only peer is this
	// agent, at Socket.
	Port   uint16
	Socket string
	// Addr is the address that this agent listens on; invalid or unspecified for all addresses. If no
	// address of this node is known from a Node object, clients get Addr, unless it means all addresses.
	Addr netip.Addr
	// ServerName returns the name in the certificate of the agent on a node. If it is nil, connections are
	// not encrypted.
	ServerName func(node string) string
}

// peer implements Hubble's service Peer.
type peer struct {
	peerpb.UnimplementedPeerServer
	Options
	calls    chan struct{} // holds a value for each running call of Notify
	interval time.Duration

	mu      sync.Mutex
	missing map[string]bool // the nodes without an address that are logged
}

// Notify sends the nodes of the cluster, and follows their changes until the client has gone.
func (p *peer) Notify(_ *peerpb.NotifyRequest, stream peerpb.Peer_NotifyServer) error {
	select {
	case p.calls <- struct{}{}:
		defer func() { <-p.calls }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d clients follow the peers of %s already", maxPeers, p.NodeName)
	}
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	var told map[string]*peerpb.ChangeNotification
	for seen, first := (*policy.Snapshot)(nil), true; ; first = false {
		if s := p.Snapshot(); first || s != seen || p.Peers.ServerName != nil { // a new certificate may change the names
			seen = s
			now := p.peers(s)
			for _, change := range changes(told, now) {
				if err := stream.Send(change); err != nil {
					return err
				}
			}
			told = now
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-tick.C:
		}
	}
}

// peers returns the peers by the names of their nodes. This node is among them if it has an address,
// either in its Node object or in Peers.Addr.
func (p *peer) peers(s *policy.Snapshot) map[string]*peerpb.ChangeNotification {
	out := make(map[string]*peerpb.ChangeNotification)
	if p.Peers.Port == 0 {
		out[p.NodeName] = &peerpb.ChangeNotification{Name: p.NodeName, Address: "unix://" + p.Peers.Socket}
		return out
	}
	missing := make(map[string]bool)
	if s != nil {
		for n := range s.Nodes() {
			i := slices.IndexFunc(n.Addrs, func(a netip.Addr) bool { return a.Is4() || !p.Peers.Addr.Is4() })
			if i < 0 {
				missing[n.Name] = true // also a node that is being added
				continue
			}
			out[n.Name] = p.at(n.Name, n.Addrs[i])
		}
	}
	if a := p.Peers.Addr; out[p.NodeName] == nil && a.IsValid() && !a.IsUnspecified() {
		out[p.NodeName] = p.at(p.NodeName, a)
		delete(missing, p.NodeName)
	}
	p.logMissing(missing)
	return out
}

// logMissing logs each node that clients do not reach because it has no address. It logs a node again only
// if the node had an address meanwhile.
func (p *peer) logMissing(missing map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(missing)) {
		if !p.missing[name] {
			p.Logger.Warn("hubble-relay does not get the flows of a node: its Node object has no address that agents listen on", "node", name)
		}
	}
	p.missing = missing
}

func (p *peer) at(node string, addr netip.Addr) *peerpb.ChangeNotification {
	c := &peerpb.ChangeNotification{Name: node, Address: net.JoinHostPort(addr.String(), strconv.Itoa(int(p.Peers.Port)))}
	if p.Peers.ServerName != nil {
		c.Tls = &peerpb.TLS{ServerName: p.Peers.ServerName(node)}
	}
	return c
}

// changes returns the notifications that a client with the peers in was needs in order to have the peers
// in now.
func changes(was, now map[string]*peerpb.ChangeNotification) (out []*peerpb.ChangeNotification) {
	for name, n := range now {
		switch o := was[name]; {
		case o == nil:
			n.Type = peerpb.ChangeNotificationType_PEER_ADDED
		case o.GetAddress() != n.GetAddress() || o.GetTls().GetServerName() != n.GetTls().GetServerName():
			n.Type = peerpb.ChangeNotificationType_PEER_UPDATED
		default:
			continue
		}
		out = append(out, n)
	}
	for name, o := range was {
		if now[name] == nil {
			o.Type = peerpb.ChangeNotificationType_PEER_DELETED
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b *peerpb.ChangeNotification) int {
		return cmp.Or(cmp.Compare(a.GetType(), b.GetType()), strings.Compare(a.GetName(), b.GetName()))
	})
	return out
}
