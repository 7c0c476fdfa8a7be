package guard

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// write updates the maps to the wanted state, and now, the record of their content. It writes the
// addresses before the ports: as soon as a port has a pod, the programs accept only the known
// addresses of that pod there.
func (o *programObjects) write(now *state, want state) error {
	return errors.Join(
		ensure(o.Own, now.own, want.own), ensure(o.Known, now.known, want.known),
		ensure(o.Tunnels, now.tunnels, want.tunnels), ensure(o.Ports, now.ports, want.ports),
	)
}

// bigEndian returns a number in network byte order, as program.c compares it.
func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// ensure updates a map to the wanted content, and now, the record of the map's content.
func ensure[K, V comparable](m *ebpf.Map, now, want map[K]V) error {
	for k, v := range want {
		if was, is := now[k]; is && was == v {
			continue
		}
		if err := m.Put(k, v); err != nil {
			return fmt.Errorf("update the maps of the guard: %w", err)
		}
		now[k] = v
	}
	for k := range now {
		if _, is := want[k]; is {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("update the maps of the guard: %w", err)
		}
		delete(now, k)
	}
	return nil
}
