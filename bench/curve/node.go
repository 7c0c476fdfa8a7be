package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"sluice/cache"
	"sluice/cache/bpf"
	"sluice/filter"
	"sluice/filter/engine"
	"sluice/filter/policy"
)

// node decides connections as an agent does, without packets.
type node struct {
	world     *world
	dir       string // where the BPF file system is mounted
	published policy.Published
	kernel    *bpf.Cache
	programs  []*ebpf.Program
	flows     *ebpf.Map         // the verdicts in the kernel
	behind    *engine.Evaluator // decides what the kernel does not
	alone     *engine.Evaluator // decides all
	queued    int
	frame     []byte
}

func newNode(w *world) (n *node, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("needs root: it loads and runs BPF programs")
	}
	n = &node{world: w, frame: newFrame()}
	if n.dir, err = os.MkdirTemp("", "curve-"); err != nil {
		return nil, fmt.Errorf("make a directory for the BPF file system: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	if n.kernel, err = bpf.Open(bpf.Options{BPFFS: n.dir, Flows: w.opts.flows}); err != nil {
		return nil, err
	}
	for _, path := range []string{n.kernel.AllowPin(), n.kernel.DenyPin()} {
		p, err := ebpf.LoadPinnedProgram(path, nil)
		if err != nil {
			return nil, fmt.Errorf("load the program %s: %w", path, err)
		}
		n.programs = append(n.programs, p)
	}
	if n.flows, err = mapOf(n.programs[0], "flows"); err != nil {
		return nil, err
	}
	n.behind = engine.New(engine.Config{Published: &n.published, Memory: n.kernel.NewWriter()}, cache.NewFlows(cache.DefaultSize))
	n.alone = engine.New(engine.Config{Published: &n.published}, cache.NewFlows(cache.DefaultSize))
	return n, n.commit()
}

// close releases everything that newNode has made.
func (n *node) close() error {
	var errs []error
	for _, p := range n.programs {
		errs = append(errs, p.Close())
	}
	if n.flows != nil {
		errs = append(errs, n.flows.Close())
	}
	if n.kernel != nil {
		errs = append(errs, n.kernel.Remove())
	}
	if err := unix.Unmount(n.dir, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
		errs = append(errs, fmt.Errorf("unmount %s: %w", n.dir, err))
	}
	return errors.Join(append(errs, os.Remove(n.dir))...)
}

// mapOf returns a map that a program uses, by its name.
func mapOf(p *ebpf.Program, name string) (*ebpf.Map, error) {
	info, err := p.Info()
	if err != nil {
		return nil, fmt.Errorf("list the maps of a program: %w", err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, fmt.Errorf("open map %d: %w", id, err)
		}
		if is, err := m.Info(); err == nil && is.Name == name {
			return m, nil
		}
		_ = m.Close()
	}
	return nil, fmt.Errorf("the programs have no map %q", name)
}

// commit publishes the state of the cluster, in user space and in the kernel.
func (n *node) commit() error {
	s, changes := n.world.store.Commit()
	n.published.Publish(s)
	return n.kernel.Publish(s, changes)
}

// connect decides the first packet of a connection.
func (n *node) connect(k filter.Key) error {
	packet := n.syn(k)
	known := false
	for _, p := range n.programs {
		matches, err := p.Run(&ebpf.RunOptions{Data: n.frame})
		if err != nil {
			return fmt.Errorf("run a program on %s: %w", k, err)
		}
		known = known || matches != 0
	}
	if !known {
		n.queued++
		evaluate(n.behind, packet)
	}
	evaluate(n.alone, packet)
	return nil
}

func evaluate(e *engine.Evaluator, packet []byte) {
	e.Enter()
	e.Evaluate(packet, filter.AtPostrouting)
	e.Exit()
}

const (
	etherLen = 14
	ipLen    = 20
	tcpLen   = 20
)

// newFrame returns a frame with a SYN over IPv4, without addresses and ports.
func newFrame() []byte {
	frame := make([]byte, etherLen+ipLen+tcpLen)
	binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IP)
	ip := frame[etherLen:]
	ip[0], ip[9] = 0x45, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], ipLen+tcpLen)
	ip[ipLen+12], ip[ipLen+13] = tcpLen/4<<4, 0x02
	return frame
}

// syn makes the frame that of a connection, and returns its packet.
func (n *node) syn(k filter.Key) []byte {
	packet := n.frame[etherLen:]
	copy(packet[12:], k.SrcAddr().AsSlice())
	copy(packet[16:], k.DstAddr().AsSlice())
	binary.BigEndian.PutUint16(packet[ipLen+2:], k.Port)
	return packet
}

// sample holds the counts after a number of connections.
type sample struct {
	connections    int
	kernel, behind int // entries
	queued         int
	alone          int // entries
	decided        int // by policies, without the kernel's cache
}

func (n *node) sample(connections int) (sample, error) {
	s := sample{connections: connections, queued: n.queued, behind: n.behind.Stats().Size, alone: n.alone.Stats().Size}
	s.decided = int(n.alone.Stats().Misses)
	var key, value []byte
	all := n.flows.Iterate()
	for all.Next(&key, &value) {
		s.kernel++
	}
	if err := all.Err(); err != nil {
		return s, fmt.Errorf("count the verdicts in the kernel: %w", err)
	}
	return s, nil
}

// print prints a row of the table; last is the sample of the previous one.
func (s sample) print(replaced int, last sample) {
	share := func(now, before int) float64 {
		return 100 * float64(now-before) / float64(s.connections-last.connections)
	}
	fmt.Printf("%11d %9d %8d %8d %9d %7.2f %% %10d %9d %7.2f %%\n", s.connections, replaced, s.kernel, s.behind, s.queued, share(s.queued, last.queued),
		s.alone, s.decided, share(s.decided, last.decided))
}
