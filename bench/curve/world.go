package main

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"sluice/bench/testbed/cluster"
	"sluice/filter"
	"sluice/filter/policy"
	"sluice/filter/policy/kubepod"
)

// maxPodsOfNode is the number of pods whose addresses fit into the range of a node, a /24, with some to
// spare, so that an address is not used again at once.
const maxPodsOfNode = 200

// world is a cluster that changes, and the source of its connections.
type world struct {
	opts     options
	cluster  *cluster.Cluster
	store    *policy.Store
	replicas int
	addrs    []netip.Addr // of pods, by their index in the cluster
	local    []int        // the pods of this node
	lastByte []int        // by node: the last byte of the address that was given out last
	taken    map[netip.Addr]bool
	replaced int // number of pods that were replaced
	random   *rand.Rand
	popular  *rand.Zipf // apps
}

// newWorld generates a cluster. All pods of an app have the same labels.
func newWorld(opts options) (*world, error) {
	if opts.apps < 1 || opts.pods < opts.apps || opts.nodes < 1 || opts.nodes > 250 || opts.pods > opts.nodes*maxPodsOfNode {
		return nil, fmt.Errorf("%d pods of %d workloads on %d nodes: need a pod for each workload, at most 250 nodes, and at most %d pods on each", opts.pods, opts.apps, opts.nodes, maxPodsOfNode)
	}
	w := &world{opts: opts, store: policy.NewStore(), replicas: opts.pods / opts.apps, lastByte: make([]int, opts.nodes), taken: make(map[netip.Addr]bool)}
	w.cluster = cluster.New(opts.seed, cluster.Options{Pods: opts.apps * w.replicas, Policies: opts.apps, Namespaces: max(1, opts.apps/10), Replicas: w.replicas})
	w.random = rand.New(rand.NewPCG(opts.seed, 2))
	w.popular = rand.NewZipf(w.random, 1.1, 1, uint64(opts.apps-1))
	w.addrs = make([]netip.Addr, len(w.cluster.Pods))
	for i, p := range w.cluster.Pods {
		p.Labels = w.cluster.Pods[i-i%w.replicas].Labels
		p.Status.HostIP = fmt.Sprintf("172.16.0.%d", 1+w.nodeOf(i))
		p.Status.HostIPs = []corev1.HostIP{{IP: p.Status.HostIP}}
		w.setAddress(i)
		if w.nodeOf(i) == 0 {
			w.local = append(w.local, i)
		}
	}
	w.store.SetNode([]netip.Addr{netip.MustParseAddr("172.16.0.1")})
	w.cluster.Fill(w.store)
	return w, nil
}

// nodeOf returns the node of a pod. The pods of an app are on different nodes.
func (w *world) nodeOf(pod int) int { return pod % w.opts.nodes }

// setAddress gives a pod the next free address in the range of its node.
func (w *world) setAddress(pod int) {
	node := w.nodeOf(pod)
	delete(w.taken, w.addrs[pod])
	for {
		w.lastByte[node] = w.lastByte[node]%254 + 1
		a := netip.AddrFrom4([4]byte{10, 1, byte(node), byte(w.lastByte[node])})
		if !w.taken[a] && a != w.addrs[pod] {
			w.taken[a], w.addrs[pod] = true, a
			break
		}
	}
	s := &w.cluster.Pods[pod].Status
	s.PodIP = w.addrs[pod].String()
	s.PodIPs = []corev1.PodIP{{IP: s.PodIP}}
}

// replacePod replaces the next pod, as the rollout of a Deployment does: the new pod has another name,
// template hash and address. The rollouts are of one app after the other.
func (w *world) replacePod() {
	i := w.replaced % len(w.cluster.Pods)
	w.replaced++
	round := strconv.Itoa(w.replaced)
	old := w.cluster.Pods[i]
	w.store.DeletePod(old.Namespace, old.Name)
	p := old.DeepCopy()
	p.Name = "pod-" + strconv.Itoa(i) + "-" + round
	p.Labels = maps.Clone(p.Labels)
	p.Labels["pod-template-hash"] = strconv.Itoa((w.replaced - 1) / w.replicas)
	w.cluster.Pods[i] = p
	w.setAddress(i)
	w.store.SetPod(kubepod.Read(p))
}

// servicePorts are the ports of apps beside cluster.ClientPort.
var servicePorts = [...]uint16{80, 443, 5432, 6379, 8080, 8443, 9090}

// servicePort returns the port at which an app serves others than its clients.
func servicePort(app int) uint16 { return servicePorts[app%len(servicePorts)] }

// connection returns a random connection from or to a pod of this node:
//
//   - -any percent from or to any pod, at any port;
//   - half of the others between an app and its client, at cluster.ClientPort;
//   - three eighths from or to an app that is chosen by a Zipf distribution, at the server's port;
//   - one eighth from or to one of 150,000 addresses outside of the cluster.
//
// In half of them, the local pod is the client.
func (w *world) connection() filter.Key {
	local := w.local[w.random.IntN(len(w.local))]
	app, outgoing := local/w.replicas, w.random.IntN(2) == 0
	key := func(peer netip.Addr, port uint16) filter.Key {
		if outgoing {
			return filter.NewKey(w.addrs[local], peer, filter.TCP, port)
		}
		return filter.NewKey(peer, w.addrs[local], filter.TCP, port)
	}
	if w.random.IntN(100) < w.opts.anyPercent {
		return key(w.addrs[w.random.IntN(len(w.addrs))], servicePorts[w.random.IntN(len(servicePorts))])
	}
	switch n := w.random.IntN(8); {
	case n < 4 && outgoing:
		return key(w.podOf(w.serverOf(app)), cluster.ClientPort)
	case n < 4:
		return key(w.podOf(w.cluster.Client(app)), cluster.ClientPort)
	case n < 7:
		peer := int(w.popular.Uint64())
		server := app
		if outgoing {
			server = peer
		}
		return key(w.podOf(peer), servicePort(server))
	}
	return key(w.outside(), 443)
}

// podOf returns the address of any pod of an app.
func (w *world) podOf(app int) netip.Addr {
	return w.addrs[app*w.replicas+w.random.IntN(w.replicas)]
}

// serverOf returns the app that an app is the client of, or any app if there is none.
func (w *world) serverOf(app int) int {
	namespaces := len(w.cluster.Namespaces)
	if server := app - namespaces; server >= 0 {
		return server
	}
	return w.random.IntN(w.cluster.Apps())
}

// outside returns an address outside of the cluster. A third of them are in the ipBlocks of policies.
func (w *world) outside() netip.Addr {
	n := w.random.IntN(150_000)
	if n < 200*256 {
		return netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)})
	}
	return netip.AddrFrom4([4]byte{198, byte(51 + n>>16), byte(n >> 8), byte(n)})
}
