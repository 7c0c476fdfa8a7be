package policy

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// objectKey names a namespaced object.
type objectKey struct{ namespace, name string }

func (k objectKey) String() string { return k.namespace + "/" + k.name }

// Pod is a pod, as far as decisions and what explains them need it. A Pod that a store
// has been given must not be changed.
type Pod struct {
	Namespace, Name string
	Labels          labels.Set
	Addrs           []netip.Addr // its own; those of its node with HostNetwork
	Hosts           []netip.Addr // of its node, as its status has them
	Ports           []NamedPort  // that its containers declare; a store needs those with a name
	Node            string       // that it runs on
	Created         int64        // Unix time in nanoseconds
	Ending          bool         // it is being deleted
	HostNetwork     bool
	// Ended is the phase of a pod that will not run again; empty for others.
	Ended string
	// NotReady reports that no Service leads to it.
	NotReady bool
}

// String is "namespace/name".
func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// pod is what decisions need to know of a Pod, and what the store has found out
// about it.
type pod struct {
	objectKey
	identity *identity
	addrs    []netip.Addr // empty for pods without an address of their own
	host     *host
	ports    []namedPort
	created  int64 // Unix time, nanoseconds

	endpoint *Endpoint // as last compiled
	place    uint32    // in the identity's list
	renewed  bool      // a verdict about it may differ, whatever its class says
	local    bool      // it runs on this node
	ending   bool      // it is being deleted
	// relabeled: a verdict about it differs if its peers do.
	relabeled  bool
	dirty      bool // the next commit compiles it
	reselected bool // other policies may select it
	gone       bool // it has been deleted
}

// host is the addresses of a node that pods run on, as their status has them. The pods
// of a node share it; nil has none.
type host struct {
	addrs []netip.Addr // never empty
	pods  int
}

func (h *host) list() []netip.Addr {
	if h == nil {
		return nil
	}
	return h.addrs
}

// same reports whether both have the same addresses.
func (h *host) same(o *host) bool { return h == o || slices.Equal(h.list(), o.list()) }

// useHost returns the host that pods share in the place of one that was read, with one
// more use.
func (w *Store) useHost(read *host) *host {
	if read == nil {
		return nil
	}
	h := w.hosts[read.addrs[0]]
	if !h.same(read) {
		h = read
		w.hosts[h.addrs[0]] = h
	}
	h.pods++
	return h
}

func (w *Store) releaseHost(h *host) {
	if h == nil {
		return
	}
	if h.pods--; h.pods == 0 && w.hosts[h.addrs[0]] == h {
		delete(w.hosts, h.addrs[0])
	}
}

// namedPort is a container port that has a name.
type namedPort struct {
	name     string
	protocol filter.Protocol
	number   uint16
}

// readPod takes what decisions need. Pods of the host network and pods that have ended
// have no address of their own: the first have their node's, the second have given theirs
// up.
func readPod(o *Pod) *pod {
	p := &pod{objectKey: objectKey{o.Namespace, o.Name}, created: o.Created, ending: o.Ending}
	if o.HostNetwork || o.Ended != "" {
		return p
	}
	p.addrs, p.ports = o.Addrs, namedPorts(o.Ports)
	if len(o.Hosts) > 0 {
		p.host = &host{addrs: o.Hosts}
	}
	return p
}

// namedPorts lists the ports that a policy can name, by name. Of two with one name and
// protocol the first counts.
func namedPorts(ports []NamedPort) []namedPort {
	var found []namedPort
	for _, p := range ports {
		np := namedPort{p.Name, p.Protocol, p.Number}
		if np.name != "" && !slices.ContainsFunc(found, func(o namedPort) bool { return o.name == np.name && o.protocol == np.protocol }) {
			found = append(found, np)
		}
	}
	slices.SortFunc(found, func(a, b namedPort) int {
		return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.protocol, b.protocol))
	})
	return found
}

// sameIdentity reports whether nothing that a decision looks at differs but perhaps the
// labels.
func (p *pod) sameIdentity(o *pod) bool {
	return slices.Equal(p.addrs, o.addrs) && p.host.same(o.host) && slices.Equal(p.ports, o.ports) &&
		p.created == o.created && p.local == o.local && p.ending == o.ending
}

// beats says which of two live pods with one address has it: the one created
// last, because the delete of the other is then still on its way. The names
// settle a tie, so that the order of events never does.
func (p *pod) beats(o *pod) bool {
	if p.created != o.created {
		return p.created > o.created
	}
	return p.String() > o.String()
}

// selectedBy lists the policies that have a say about the pod in a direction, by tier.
func (p *pod) selectedBy(d filter.Direction) (found [numTiers][]*policy) {
	for _, s := range p.identity.subjects {
		for pol := range s.subjects {
			if pol.decides(d) {
				found[pol.tier] = append(found[pol.tier], pol)
			}
		}
	}
	return found
}
