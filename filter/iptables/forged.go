package iptables

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
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

// countedDrop matches a DROP rule as iptables prints it with its counters.
var countedDrop = regexp.MustCompile(`-c (\d+) \d+ -j DROP$`)

// Dropped returns the number of packets that the rules of a chain have dropped since the chain was
// written, 0 if the chain does not exist.
func (k *kernelTable) Dropped(chain string) (packets uint64, err error) {
	lines, err := k.reader.ListWithCounters(k.in.table, chain)
	if err != nil {
		// The error does not reveal that the chain is missing: iptables-nft reports a missing
		// chain as incompatible.
		if chains, listErr := k.reader.ListChains(k.in.table); listErr == nil && !slices.Contains(chains, chain) {
			return 0, nil
		}
		return 0, fmt.Errorf("list the counters of %s %s: %w", k.in.table, chain, explain(err))
	}
	for _, line := range lines {
		if m := countedDrop.FindStringSubmatch(line); m != nil {
			n, err := strconv.ParseUint(m[1], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the counter of %q: %w", line, err)
			}
			packets += n
		}
	}
	return packets, nil
}
