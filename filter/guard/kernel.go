package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"sluice/filter/addrbits"
)

// write updates the maps in the kernel to the wanted state, and records in recorded what it
// has written. It writes the addresses of pods before the ports: as soon as the map of ports
// assigns a port to a pod, the programs accept from this port only the addresses that the maps
// have for the pod.
func (o *programObjects) write(recorded *state, want state) error {
	return errors.Join(
		ensure(o.Own, recorded.own, want.own), ensure(o.Known, recorded.known, want.known),
		ensure(o.NodeBits, recorded.nodes, nodeWords(want.known)),
		ensure(o.Tunnels, recorded.tunnels, want.tunnels), ensure(o.Ports, recorded.ports, want.ports),
	)
}

// nodeWords returns all words of the map "node_bits" for the given content of the map "known".
func nodeWords(known map[[16]byte]uint32) map[uint32]uint64 {
	words := make([]uint64, 1<<nodeBits/64)
	for a, flags := range known {
		if flags&ofNode != 0 {
			addrbits.Set(words, netip.AddrFrom16(a), nodeBits)
		}
	}
	all := make(map[uint32]uint64, len(words))
	for at, word := range words {
		all[uint32(at)] = word
	}
	return all
}

// bigEndian returns a number in network byte order, as program.c compares it.
func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// ensure updates a map to the wanted content, and the recorded content of that map accordingly.
func ensure[K, V comparable](m *ebpf.Map, recorded, want map[K]V) error {
	for k, v := range want {
		if was, is := recorded[k]; is && was == v {
			continue
		}
		if err := m.Put(k, v); err != nil {
			return fmt.Errorf("update the maps of the guard: %w", err)
		}
		recorded[k] = v
	}
	for k := range recorded {
		if _, is := want[k]; is {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("update the maps of the guard: %w", err)
		}
		delete(recorded, k)
	}
	return nil
}
