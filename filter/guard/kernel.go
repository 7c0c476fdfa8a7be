package guard

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// write brings the maps from what they hold to what is wanted: addresses first, for a
// port is strict as soon as it is said to be a pod's.
func (o *programObjects) write(now *state, want state) error {
	return errors.Join(
		bring(o.Own, now.own, want.own), bring(o.Known, now.known, want.known),
		bring(o.Tunnels, now.tunnels, want.tunnels), bring(o.Ports, now.ports, want.ports),
	)
}

// bigEndian is a number in network byte order, as program.c compares it.
func bigEndian(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// bring brings a map up to date, and what is known of it.
func bring[K, V comparable](m *ebpf.Map, now, want map[K]V) error {
	for k, v := range want {
		if was, is := now[k]; is && was == v {
			continue
		}
		if err := m.Put(k, v); err != nil {
			return fmt.Errorf("tell the guard of the pods' interfaces: %w", err)
		}
		now[k] = v
	}
	for k := range now {
		if _, is := want[k]; is {
			continue
		}
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("tell the guard of the pods' interfaces: %w", err)
		}
		delete(now, k)
	}
	return nil
}
