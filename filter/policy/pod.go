package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"sluice/filter"
)

// objectKey names a namespaced object.
type objectKey struct{ namespace, name string }

func (k objectKey) String() string { return k.namespace + "/" + k.name }

// Pod holds the fields of a pod that decisions and their explanations need. A Pod must not
// be changed after it was passed to a store.
type Pod struct {
	Namespace, Name string
	Labels          labels.Set
	Addrs           []netip.Addr // its own addresses; with HostNetwork, those of its node
	Hosts           []netip.Addr // addresses of its node, from the pod's status
	Ports           []NamedPort  // ports that its containers declare; a store uses only ports with a name
	Node            string       // name of the Node that it runs on
	Created         int64        // Unix time in nanoseconds
	Ending          bool         // it is being deleted
	HostNetwork     bool
	Owner           Ref // the workload that created the pod, such as a Deployment; zero if it is not known
	// Ended is the phase of a pod that will not run again; empty for others.
	Ended string
	// NotReady reports that Services do not send traffic to the pod.
	NotReady bool
}

// String returns "namespace/name".
func (p *Pod) String() string { return p.Namespace + "/" + p.Name }

// pod holds the fields of a Pod that decisions need, and what the store has compiled from
// them.
type pod struct {
	objectKey
	identity *identity
	about    *description
	addrs    []netip.Addr // empty for a pod without an address of its own
	host     *host
	ports    []namedPort
	created  int64 // Unix time, nanoseconds

	endpoint *Endpoint // the endpoint from the last Commit; nil until then
	place    uint32    // index in identity.pods
	due      work      // for the next Commit
	local    bool      // it runs on this node
	ending   bool      // it is being deleted
	gone     bool      // it has been deleted
}

// work is the set of tasks of the next Commit for a pod.
type work uint8

const (
	toCompile work = 1 << iota
	toRenew        // it needs a new epoch, even if its class stays the same
	// relabeled means that the labels have changed. The pod needs a new epoch, unless the same peer
	// selectors match it as before.
	relabeled
	reselected // the set of policies that select it may have changed
)

// has reports whether a set contains one of the given tasks.
func (w work) has(some work) bool { return w&some != 0 }

// host holds the addresses of a node, as the status of its pods reports them. The pods of a
// node share one host. A nil host has no addresses.
type host struct {
	node   string       // name of the Node object
	status []netip.Addr // addresses from the status of the pods
	addrs  []netip.Addr // status, and the addresses of the Node object if AssumeNodeAddrs was called
	pods   int
}

// hostKey identifies a host, unless pods disagree about its addresses.
type hostKey struct {
	node  string
	first netip.Addr // the first address in host.status
}

func (h *host) key() hostKey {
	key := hostKey{node: h.node}
	if len(h.status) > 0 {
		key.first = h.status[0]
	}
	return key
}

// sameStatus reports whether two hosts have the same node name, and the same addresses from the
// status of their pods.
func (h *host) sameStatus(o *host) bool {
	return h == o || h != nil && o != nil && h.node == o.node && slices.Equal(h.status, o.status)
}

func (h *host) list() []netip.Addr {
	if h == nil {
		return nil
	}
	return h.addrs
}

// same reports whether two hosts have the same addresses.
func (h *host) same(o *host) bool { return h == o || slices.Equal(h.list(), o.list()) }

// useHost returns the shared host with the same addresses as the given one, and adds a use to
// it.
func (w *Store) useHost(read *host) *host {
	if read == nil {
		return nil
	}
	h := w.hosts[read.key()]
	if !h.sameStatus(read) {
		h = &host{node: read.node, status: read.status, addrs: w.addrsOf(read)}
		w.hosts[h.key()] = h
	}
	h.pods++
	return h
}

// addrsOf returns the addresses of a host: those in the status of its pods. After
// AssumeNodeAddrs, addrsOf adds those of its Node object.
func (w *Store) addrsOf(h *host) []netip.Addr {
	if !w.nodes.assumed {
		return h.status
	}
	all := slices.Clip(h.status)
	for _, a := range w.nodes.byName[h.node].addrs() {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all
}

func (w *Store) releaseHost(h *host) {
	if h == nil {
		return
	}
	if h.pods--; h.pods == 0 && w.hosts[h.key()] == h {
		delete(w.hosts, h.key())
	}
}

// renewHosts gives pods the addresses of their Node objects, where these have changed since
// the last Commit.
func (w *Store) renewHosts() {
	moved := w.nodes.moved
	if len(moved) == 0 {
		return
	}
	w.nodes.moved = make(map[string]struct{})
	maps.DeleteFunc(w.hosts, func(key hostKey, _ *host) bool {
		_, is := moved[key.node]
		return is
	})
	for _, p := range w.pods {
		if p.host == nil {
			continue
		}
		if _, is := moved[p.host.node]; is {
			p.host = w.useHost(p.host)
			w.dirty(p)
		}
	}
}

// namedPort is a container port that has a name.
type namedPort struct {
	name     string
	protocol filter.Protocol
	number   uint16
}

// readPod returns the fields of a Pod that decisions need. A pod with HostNetwork has no
// address of its own, because it uses its node's. A pod that has ended has none either,
// because it has released its address.
func readPod(o *Pod) *pod {
	p := &pod{objectKey: objectKey{o.Namespace, o.Name}, created: o.Created, ending: o.Ending, about: &description{o.Labels, o.Owner}}
	if o.HostNetwork || o.Ended != "" {
		return p
	}
	p.addrs, p.ports = o.Addrs, namedPorts(o.Ports)
	if len(o.Hosts) > 0 || o.Node != "" {
		p.host = &host{node: o.Node, status: o.Hosts}
	}
	return p
}

// namedPorts returns the ports that have a name, sorted by name and protocol. If several
// have the same name and protocol, the first one counts.
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

// equalButLabels reports whether two versions of a pod are the same for decisions, apart
// from their labels.
func (p *pod) equalButLabels(o *pod) bool {
	return slices.Equal(p.addrs, o.addrs) && p.host.sameStatus(o.host) && slices.Equal(p.ports, o.ports) &&
		p.created == o.created && p.local == o.local && p.ending == o.ending && p.about.workload == o.about.workload
}

// beats reports whether p rather than o owns an address that both claim. The pod that was
// created later owns it, because the other pod's deletion has not been reported yet. Names
// break a tie, so that the order of events does not matter.
func (p *pod) beats(o *pod) bool {
	if p.created != o.created {
		return p.created > o.created
	}
	return p.String() > o.String()
}
