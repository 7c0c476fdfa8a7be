package iptables

import (
	"fmt"
	"sync"
)

// A [Table] that is also a dropCounter counts the packets that the rules of a chain have dropped.
type dropCounter interface {
	Dropped(chain string) (packets uint64, err error)
}

// forged sums the readings of a table's counters of dropped packets. The kernel restarts these
// counters at 0 when the chain is written. Packets that were dropped after the last reading before
// such a restart are missing from the sum.
type forged struct {
	mu          sync.Mutex
	last, total uint64
}

// add adds a reading of the counters and returns the sum.
func (f *forged) add(now uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now < f.last {
		f.last = 0
	}
	f.total += now - f.last
	f.last = now
	return f.total
}

// Forged returns the number of packets that the rules have dropped because of a forged source.
// Reading the counters takes a few milliseconds.
func (m *Manager) Forged() (sum uint64, err error) {
	for _, t := range m.tables {
		c, can := t.Table.(dropCounter)
		if !can {
			continue
		}
		n, err := c.Dropped(sourceChain)
		if err != nil {
			return sum, fmt.Errorf("count forged packets: %w", err)
		}
		sum += t.forged.add(n)
	}
	return sum, nil
}
